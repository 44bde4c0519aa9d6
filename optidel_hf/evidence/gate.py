"""
The gate, before any claim: does pre-training help here at all, and could a choice of images help?

On the validation part, in every mode, `full` minus `none` must be positive with an interval off zero, and so must
`oracle` (the pool's images nearest to the downstream set's unlabelled ones) minus `random_images`. Where one is not,
arms may be level for a reason that has nothing to do with selection, and the grid is called "no headroom".
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from optidel_hf.evidence.comparison import VALIDATION, Judged
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.wording import count_text, difference_text, mode_words


CONDITIONS = (("full", "none"), ("oracle", "random_images"))


@dataclass(frozen=True)
class Gate:
    """
    Whether a grid can support a claim.

    Args:
        passed (`bool`): Whether both conditions hold in every mode.
        sentence (`str`): The verdict with its figures.
    """

    passed: bool
    sentence: str


def headroom(results: pa.Table) -> Gate:
    """
    Judge a grid by its validation part.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`.
    """
    judged = Judged.of(results, VALIDATION)
    found = [_intervals(judged, a, b) for a, b in CONDITIONS]
    passed = bool(judged.modes) and all(
        mode in intervals and intervals[mode].low > 0 for intervals in found for mode in judged.modes
    )
    return Gate(passed, _sentence(judged, passed, found))


def _intervals(judged: Judged, a: str, b: str) -> dict[str, Interval]:
    compared = {mode: judged.compare(a, b, mode) for mode in judged.modes}
    return {mode: comparison.interval for mode, comparison in compared.items() if comparison}


def _sentence(judged: Judged, passed: bool, found: list[dict[str, Interval]]) -> str:
    if not judged.modes:
        return "No headroom shown: no run was judged on the validation part. The grid supports no claim."
    parts = []
    for (a, b), intervals in zip(CONDITIONS, found):
        for mode in judged.modes:
            interval = intervals.get(mode)
            text = f"{difference_text(interval)} on {count_text(interval.seeds, 'seed')}" if interval else "not run"
            parts.append(f"{a} minus {b}, {mode_words(mode)}: {text}")
    verdict = "Headroom" if passed else "No headroom shown, and so no claim is supported"
    return f"{verdict} (validation part, {judged.setting}; points of mIoU, 95 % interval). {'; '.join(parts)}."
