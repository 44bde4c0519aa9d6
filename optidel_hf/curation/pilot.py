"""
`strategy="auto"`: a pilot on the pool that says whether to keep its easy, its medium or its hard patches, or refuses.

Where data are plentiful the hard teach most, where they are scarce the easy (Sorscher et al. 2022, arXiv 2206.14486;
`optidel theory`), and which holds depends on the pool, the budget and the model. So short runs ask: a small ViT-MAE
learns each arm at a quarter and at half of the budget, for the same number of steps, and is judged by its
V-information on patches of groups that no arm of that repeat trained on. What it would be at the whole budget is
extrapolated along the logarithm of the budget,

    v(b) = v(b/2) + (v(b/2) - v(b/4)),

repeat by repeat, with other groups held out and another seed each time. The best arm is named if the 95 % interval of
its lead over every other excludes zero (Student's t over repeats, Bonferroni over the three pairs) and it has learnt
anything at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image
from scipy.stats import t as student

from optidel_hf.curation.frames import hold_out
from optidel_hf.curation.heldout import information, measure_images
from optidel_hf.curation.reference import Reference, ReferenceConfig, decode_patches, training_config
from optidel_hf.curation.selection import mosaics_in_budget, select
from optidel_hf.curation.shards import read_rows
from optidel_hf.embeddings import spaced
from optidel_hf.errors import UserError
from optidel_hf.files import read_json, write_text
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.trainer import Pretrainer
from optidel_hf.processes import single_process


ARMS = ("easiest", "medium", "optidel")
SHARES = (0.25, 0.5)
"""Of the budget; the whole is one more doubling away."""
HELD_OUT = 0.2
JUDGED = 1024
"""Patches, at most, that a run is judged on."""
CONFIDENCE = 0.95

Choose = Callable[[str, int], np.ndarray]
"""From an arm and a count to rows of the pool, best first."""
Train = Callable[[np.ndarray, np.ndarray, int], float]
"""From rows to train on, rows to judge on and a seed to V-information in bits."""


@dataclass(frozen=True)
class PilotConfig:
    """The pilot of `--strategy auto`."""

    pilot_repeats: int = field(default=5, metadata={"help": "Times that the pilot trains every arm, at two budgets."})
    pilot_steps: int = field(default=100, metadata={"help": "Steps of each run of the pilot."})

    def __post_init__(self) -> None:
        if self.pilot_repeats < 2 or self.pilot_steps < 1:
            raise UserError("pilot_repeats is at least 2, for an interval, and pilot_steps at least 1.")


class Lead(NamedTuple):
    """The best arm's lead, in bits, over its closest rival: the one for which the interval reaches lowest."""

    arm: str
    over: str
    gain: float
    low: float
    high: float


def run_pilot(
    groups: Sequence[str], count: int, choose: Choose, train: Train, repeats: int, record: Path | None = None
) -> dict[str, Any]:
    """
    Train every arm at both sub-budgets, `repeats` times, and name the best.

    Args:
        groups (`Sequence[str]`): near-duplicate group of each row of the pool.
        count (`int`): patches of the whole budget.
        choose (`Callable`): chooses an arm's rows.
        train (`Callable`): trains on rows and judges on others.
        repeats (`int`): at least 2.
        record (`Path`, *optional*): JSON file of finished runs, which are not run again.

    Returns:
        `dict`: the `arm` that was named, `over` whom by what `gain` from `low` to `high`, and each arm's mean `bits`
        at the sub-budgets and extrapolated.

    Raises:
        `UserError`: if the interval includes zero or the best arm learnt less than the mean tells, with the figures.
    """
    counts = [max(1, round(share * count)) for share in SHARES]
    chosen = {(arm, number): choose(arm, number) for arm in ARMS for number in counts}
    done = read_json(record) if record and record.exists() else {}
    bits = np.empty((repeats, len(ARMS), len(SHARES)))
    held_out = [np.isin(groups, list(hold_out(groups, HELD_OUT, seed=repeat + 1))) for repeat in range(repeats)]
    if any(held[rows].all() for held in held_out for rows in chosen.values()):
        raise UserError(
            f"The budget of {count} patches is too small for a pilot: of the {min(counts)} or {max(counts)} of an arm "
            "all are held out at times. Give a larger --budget, or name a --strategy."
        )
    for repeat, held in enumerate(held_out):
        candidates = np.flatnonzero(held)
        judged = candidates[spaced(len(candidates), JUDGED)]
        for (a, arm), (b, number) in ((x, y) for x in enumerate(ARMS) for y in enumerate(counts)):
            key = f"{arm}, {number} patches, repeat {repeat}"
            if key not in done:
                rows = chosen[arm, number]
                done[key] = train(rows[~held[rows]], judged, repeat)
                if record:
                    write_text(json.dumps(done, indent=2) + "\n", record)
            bits[repeat, a, b] = done[key]
    whole = bits[..., 1] + (bits[..., 1] - bits[..., 0])
    lead = find_lead(whole)
    means = np.concatenate([bits, whole[..., None]], axis=-1).mean(axis=0)
    facts: dict[str, Any] = {"bits": dict(zip(ARMS, means.tolist())), "counts": [*counts, count], "repeats": repeats}
    if lead.low <= 0 or facts["bits"][lead.arm][1] <= 0:
        raise UserError(_refusal(lead, facts))
    return {**lead._asdict(), **facts}


def find_lead(bits: np.ndarray) -> Lead:
    """The best arm's lead over the other whose interval reaches lowest: `(repeats, arms)` of paired figures."""
    repeats, arms = bits.shape
    best = int(bits.mean(axis=0).argmax())
    pairs = arms * (arms - 1) / 2
    quantile = student.ppf(1 - (1 - CONFIDENCE) / (2 * pairs), repeats - 1)
    leads = []
    for other in set(range(arms)) - {best}:
        gain = bits[:, best] - bits[:, other]
        half = float(quantile * gain.std(ddof=1) / np.sqrt(repeats))
        mean = float(gain.mean())
        leads.append(Lead(ARMS[best], ARMS[other], mean, mean - half, mean + half))
    return min(leads, key=lambda lead: lead.low)


@dataclass(frozen=True)
class MaePilot:
    """
    The pilot's training: a small ViT-MAE on single patches, judged on raw pixels of others.

    Args:
        patches (`Path`): the patch stage's folder.
        reference (`ReferenceConfig`): sizes, rate and batch of the reference model, which this one has too.
        steps (`int`): of every run.
        folder (`Path`): for what a run leaves, which is deleted.
        device (`str`).
    """

    patches: Path
    reference: ReferenceConfig
    steps: int
    folder: Path
    device: str

    def __call__(self, rows: np.ndarray, judged: np.ndarray, seed: int) -> float:
        """Train on `rows` and give the V-information in bits per value on `judged`."""
        patches = self._read(rows)
        told = replace(self.reference, reference_steps=self.steps, reference_seed=seed)
        shutil.rmtree(self.folder, ignore_errors=True)
        config = training_config(told, self.folder, patches, self.device)
        trainer = Pretrainer(config, decode_patches(patches), description="pilot")
        trainer.train()
        processor = image_processor(config.image_size)
        model = Reference(trainer.model.eval(), tuple(processor.image_mean), tuple(processor.image_std))
        moments = measure_images(model, self._read(judged)["image"])
        shutil.rmtree(self.folder, ignore_errors=True)
        return information(moments, ["judged"] * len(judged))["v_information"]

    def _read(self, rows: np.ndarray) -> Dataset:
        table = read_rows(self.patches, rows.tolist()).select(["image", "source"])
        return Dataset(table).cast_column("image", Image(decode=False))


def settle_strategy(
    table: pa.Table,
    options: dict[str, Any],
    patches: Path,
    record: Path,
    config: PilotConfig,
    reference: ReferenceConfig,
    device: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Run the pilot on scored patches.

    Args:
        table (`pyarrow.Table`): scored patches.
        options (`dict`): what `select` is told, with `"auto"` for a strategy.
        patches (`Path`): the patch stage's folder, row-aligned with `table`.
        record (`Path`): JSON file of finished runs; what a run leaves is deleted beside it.

    Returns:
        `tuple[dict, dict]`: the options with the strategy that was named, and `{"pilot": ...}`, what was found.
    """
    options = {**options, "score": options["score"] or "difficulty"}
    count = mosaics_in_budget(options["budget"], options["images"]) * options["tiles_per_mosaic"]
    train = MaePilot(patches, reference, config.pilot_steps, record.with_name(".pilot"), device)
    groups, choose = table["group"].to_pylist(), chooser(table, options)
    with single_process():
        found = run_pilot(groups, count, choose, train, config.pilot_repeats, record)
    return {**options, "strategy": found["arm"]}, {"pilot": found}


def chooser(table: pa.Table, options: dict[str, Any]) -> Choose:
    """An arm's rows as `select` chooses them, all arms by the same score; `options` are those of `select`."""

    def choose(arm: str, count: int) -> np.ndarray:
        told = {**options, "strategy": arm, "budget": 1.0, "images": count, "tiles_per_mosaic": 1}
        return select(table, **told).rows

    return choose


def _refusal(lead: Lead, facts: dict[str, Any]) -> str:
    small, half, count = facts["counts"]
    figures = "; ".join(
        f"{arm} {at_small:.3f} bits per value at {small} patches, {at_half:.3f} at {half}, {at_whole:.3f} extrapolated"
        for arm, (at_small, at_half, at_whole) in facts["bits"].items()
    )
    learnt = facts["bits"][lead.arm][1] > 0
    interval = f"the 95 % interval, {lead.low:.3f} to {lead.high:.3f}, includes zero"
    return (
        f"The pilot cannot tell which {count} patches to keep: {lead.arm} leads {lead.over} by {lead.gain:.3f} bits, "
        f"{'and ' + interval if learnt else 'but has learnt less than the mean of the pixels tells'} ({figures}; "
        f"{facts['repeats']} repeats). Give --strategy yourself, or more --pilot_repeats or --pilot_steps."
    )
