"""
What the arms cost and what was measured of them beside mIoU: the summary's sections of facts.

The three measurements of a set are kept apart: (i) its null entropy H_V(Y|0) and its coverage of the pool, (ii) its
entropy H_V(Y|X) under the reference model, (iii) the held-out V-information of the model that was pre-trained on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.evidence.comparison import Judged, Series
from optidel_hf.evidence.inference import correlate_arms, pooled_miou, steps_to_level
from optidel_hf.evidence.wording import correlation_text, mode_words, number_text, reached_text, table


COSTS = {
    "images": "images",
    "stored_pixels": "stored pixels",
    "stored_bytes": "bytes",
    "sources": "source images",
    "groups": "near-duplicate groups",
    "native_pixels": "native pixels",
    "images_seen": "images seen",
    "curation_seconds": "curation, s",
    "curation_steps": "curation, in steps",
    "pretrain_seconds": "pre-training, s",
    "downstream_seconds": "downstream, s",
}
MEASURES = {
    "null_entropy": "(i) H(Y without X)",
    "coverage": "(i) distance to the nearest",
    "cond_entropy": "(ii) H(Y with X)",
    "vinfo_held_out": "(iii) held-out V-information",
}
Arm = tuple[str, float]
"""Name and budget."""


def cost_section(judged: Judged) -> list[str]:
    """What each arm stores and took, and whether all saw equally many images."""
    seen = {round(value) for (arm, _), value in mean_fact(judged.rows, "images_seen").items() if arm != "none"}
    note = "All pre-trained arms saw equally many images."
    if len(seen) > 1:
        note = "**Not all arms saw equally many images**: their differences are not of the data alone."
    return ["## Cost (means over seeds)", *_fact_table(with_curation_steps(judged.rows), COSTS), *[note] * bool(seen)]


def with_curation_steps(rows: pa.Table) -> pa.Table:
    """Add `curation_steps`: the pre-training steps that take as long as the curation of a row's arm did."""
    steps, seconds = rows["steps"].to_numpy(), rows["pretrain_seconds"].cast("float64").to_numpy()
    known = seconds > 0
    rate = np.divide(steps, seconds, out=np.zeros(len(steps)), where=known)
    bought = rate * rows["curation_seconds"].cast("float64").to_numpy()
    return rows.append_column("curation_steps", pa.array(bought, mask=~known | np.isnan(bought)))


def measure_section(judged: Judged) -> list[str]:
    """The three measurements, and whether the third goes with mIoU."""
    measured = _fact_table(judged.rows, MEASURES)
    if not measured:
        return []
    title = "## The three measurements (means over seeds; bits per value, the distance in cosine)"
    return [title, *measured, *(correlation_sentence(judged, mode) for mode in judged.modes)]


def level_section(judged: Judged) -> list[str]:
    """Steps from which arms stay within half a point of full's final mIoU, where several checkpoints were judged."""
    rows = [
        [one.arm, mode_words(mode), *row]
        for mode in judged.modes
        for one in judged.headline(mode)
        if (row := _level_row(judged, one, judged.find("full", mode)))
    ]
    if not rows:
        return []
    note = "The interval is over seeds, for these images. Every later checkpoint has to stay within half a point, too."
    return ["## Steps to full's level", table(["arm", "mode", "steps", "seeds"], rows), note]


def mean_fact(rows: pa.Table, name: str) -> dict[Arm, float]:
    """A column's mean over the runs of each arm, in order of appearance; arms without a value are left out."""
    if name not in rows.column_names:
        return {}
    means = rows.filter(pc.is_valid(rows[name])).group_by(["arm", "budget"], use_threads=False)
    means = means.aggregate([(name, "mean")])
    return {
        (arm, budget): value
        for arm, budget, value in zip(*(means[column].to_pylist() for column in ("arm", "budget", f"{name}_mean")))
    }


def mean_facts(rows: pa.Table, columns: Mapping[str, str]) -> dict[str, dict[Arm, float]]:
    """The means of columns, by their words; columns of which no arm has a value are left out."""
    return {words: found for name, words in columns.items() if (found := mean_fact(rows, name))}


def seconds_taken(rows: pa.Table) -> dict[Arm, float]:
    """The seconds of curation and pre-training together; arms without pre-training are left out."""
    curation = mean_fact(rows, "curation_seconds")
    training = mean_fact(rows, "pretrain_seconds")
    return {arm: seconds + curation.get(arm, 0.0) for arm, seconds in training.items() if seconds > 0}


def correlation_sentence(judged: Judged, mode: str) -> str:
    """How held-out V-information goes with mIoU over all arms and budgets with the headline's labels."""
    information = mean_fact(judged.rows, "vinfo_held_out")
    series = [one for one in judged.series if (one.mode, one.setting.labels) == (mode, judged.setting.labels)]
    found = correlate_arms(
        np.array([information.get((one.arm, one.setting.budget), np.nan) for one in series]),
        np.array([pooled_miou(one.confusion()).mean() for one in series]),
    )
    return f"Rank correlation of (iii) with mIoU over arms, {mode_words(mode)}: {correlation_text(found)}."


def _fact_table(rows: pa.Table, columns: Mapping[str, str]) -> list[str]:
    """One line an arm, with the columns of which any arm has a value."""
    if not (facts := mean_facts(rows, columns)):
        return []
    arms = dict.fromkeys(zip(rows["arm"].to_pylist(), rows["budget"].to_pylist()))
    lines = [
        [name, f"{100 * budget:g} %", *(number_text(fact.get((name, budget))) for fact in facts.values())]
        for name, budget in arms
    ]
    return [table(["arm", "budget", *facts], lines)]


def _level_row(judged: Judged, one: Series, full: Series | None) -> list[str]:
    """Steps and seeds, from the seeds that have all checkpoints and `full`; nothing where there are none."""
    if full is None:
        return []
    seeds, steps, curve = judged.curve(one)
    shared = [number for number, seed in enumerate(seeds) if seed in full.runs]
    if len(steps) < 2 or not shared:
        return []
    level = pooled_miou(full.confusion([seeds[number] for number in shared]))
    return [reached_text(steps_to_level(curve[shared], steps, level)), str(len(shared))]
