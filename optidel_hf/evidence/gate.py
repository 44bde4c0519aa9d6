"""
The gate, before any claim: does pre-training help here at all, and could a choice of images help?

On the validation part, in every mode, `full` minus `none` must be positive with an interval off zero, and so must
`oracle` (the pool's images nearest to the downstream set's unlabelled ones) minus `random_images`. Where one is not,
arms may be level for a reason that has nothing to do with selection, and the grid is called "no headroom". Where none
fails and some were not run nothing is known, and it is called "gate not run".
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from optidel_hf.evidence.comparison import VALIDATION, Judged
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.wording import count_text, difference_text, mode_words


CONDITIONS = (("full", "none"), ("oracle", "random_images"))
NO_HEADROOM, NOT_RUN = "no headroom", "gate not run"
OPENINGS = {
    "": "Headroom",
    NO_HEADROOM: "No headroom shown, and so no claim is supported",
    NOT_RUN: "The gate was not run as a whole, and so no claim is supported",
}


@dataclass(frozen=True)
class Gate:
    """
    Whether a grid can support a claim.

    Args:
        verdict (`str`): Empty if both conditions hold in every mode, else `"no headroom"` or `"gate not run"`.
        sentence (`str`): The verdict with its figures.
    """

    verdict: str
    sentence: str

    @property
    def passed(self) -> bool:
        """`bool`: Whether both conditions hold in every mode."""
        return not self.verdict


def headroom(results: pa.Table) -> Gate:
    """
    Judge a grid by its validation part.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`.
    """
    judged = Judged.of(results, VALIDATION)
    found = [_intervals(judged, a, b) for a, b in CONDITIONS]
    verdict = _verdict(judged, found)
    return Gate(verdict, _sentence(judged, verdict, found))


def _verdict(judged: Judged, found: list[dict[str, Interval]]) -> str:
    if any(not interval.low > 0 for intervals in found for interval in intervals.values()):
        return NO_HEADROOM
    complete = judged.modes and all(mode in intervals for intervals in found for mode in judged.modes)
    return "" if complete else NOT_RUN


def _intervals(judged: Judged, a: str, b: str) -> dict[str, Interval]:
    compared = {mode: judged.compare(a, b, mode) for mode in judged.modes}
    return {mode: comparison.interval for mode, comparison in compared.items() if comparison}


def _sentence(judged: Judged, verdict: str, found: list[dict[str, Interval]]) -> str:
    if not judged.modes:
        return f"{OPENINGS[verdict]}: no run was judged on the validation part."
    parts = []
    for (a, b), intervals in zip(CONDITIONS, found):
        for mode in judged.modes:
            interval = intervals.get(mode)
            text = f"{difference_text(interval)} on {count_text(interval.seeds, 'seed')}" if interval else "not run"
            parts.append(f"{a} minus {b}, {mode_words(mode)}: {text}")
    return (
        f"{OPENINGS[verdict]} (validation part, {judged.setting}; points of mIoU, 95 % interval). {'; '.join(parts)}."
    )
