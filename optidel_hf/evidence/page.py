"""A grid's results for the report, which knows no statistics of its own: the figures of `results.md`, handed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from optidel_hf.errors import UserError
from optidel_hf.evidence.comparison import (
    BASELINES,
    ENDPOINT,
    ENDPOINT_MODES,
    PRIMARY,
    TEST,
    VALIDATION,
    WITHOUT_BUDGET,
    Judged,
    Series,
    Setting,
    compare,
)
from optidel_hf.evidence.gate import headroom
from optidel_hf.evidence.measured import (
    COSTS,
    MEASURES,
    correlation_sentence,
    mean_facts,
    seconds_taken,
    with_curation_steps,
)
from optidel_hf.publishing.panels.evidence import Comparison, Evidence, Row


NEEDED = (
    *("arm", "budget", "seed", "labels", "mode", "split", "step", "steps", "confusion"),
    *("pretrain_seconds", "curation_seconds"),
)


def read_evidence(path: str | Path) -> Evidence:
    """
    Read `results.parquet`, and judge it.

    Raises:
        `UserError`: if the file is missing, no parquet, another table, or holds no finished run.
    """
    results = _read(path)
    gate, judged = headroom(results), Judged.of(results)
    contrasts = [judged.compare(a, b, mode) for a, b in ENDPOINT for mode in ENDPOINT_MODES]
    informed = MEASURES["vinfo_held_out"] in mean_facts(judged.rows, MEASURES)
    return Evidence(
        rows=[row for split in (TEST, VALIDATION) for row in _rows(Judged.of(results, split), judged.setting.budget)],
        primary=[found for found in contrasts if found and judged.setting == PRIMARY],
        split=judged.split,
        budget=judged.setting.budget,
        agreement=[correlation_sentence(judged, mode) for mode in judged.modes] if informed else [],
        passed=gate.passed,
        sentence=gate.sentence.replace("**", ""),  # bold in Markdown
    )


def _read(path: str | Path) -> pa.Table:
    try:
        results = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the results.parquet of `optidel reproduce`.") from None
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is no parquet file ({error}): give the results.parquet of `optidel reproduce`."
        ) from None
    if missing := [name for name in NEEDED if name not in results.column_names]:
        raise UserError(f"{path} has no column {missing[0]}: give the results.parquet of `optidel reproduce`.")
    if others := set(results["split"].to_pylist()) - {TEST, VALIDATION}:
        raise UserError(f"{path} has rows of split '{min(others)}': a grid is judged on '{TEST}' or '{VALIDATION}'.")
    if not pc.any(pc.equal(results["step"], results["steps"])).as_py():
        raise UserError(f"{path} holds no run of a last checkpoint yet: let `optidel reproduce` finish one.")
    return results


def _rows(judged: Judged, budget: float) -> Iterator[Row]:
    """All arms of a split, each at its own budget and labels; those without a budget stand beside this one's."""
    facts = mean_facts(with_curation_steps(judged.rows), COSTS | MEASURES)
    taken = seconds_taken(judged.rows)
    for one in judged.series:
        key, budgeted = (one.arm, one.setting.budget), one.arm not in WITHOUT_BUDGET
        beside = judged.at(Setting(one.setting.budget if budgeted else budget, one.setting.labels))
        yield Row(
            one.arm,
            *one.setting,
            one.mode,
            judged.split,
            budgeted,
            one.interval(),
            {name: _minus(one, beside.find(name, one.mode)) for name in BASELINES},
            {words: means.get(key) for words, means in facts.items()},
            taken.get(key),
        )


def _minus(one: Series, other: Series | None) -> Comparison | None:
    return compare(one, other) if other and other.arm != one.arm else None
