"""How figures of the evidence are written: points of mIoU with a sign, an interval, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from optidel_hf.evidence.inference import FEWEST_SEEDS, Interval, RankCorrelation, Reached


MISSING = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mode_words(mode: str) -> str:
    """How a mode is called in a sentence."""
    return {"finetune": "fine-tuned", "probe": "probed"}.get(mode, mode)


def points(value: float, signed: bool = True) -> str:
    """A fraction of mIoU in points, with a true minus."""
    return format(100 * value, "+.2f" if signed else ".2f").replace("-", "−")


def difference_text(interval: Interval) -> str:
    """A difference in points with its interval; bold where it lies off zero and enough seeds stand behind it."""
    text = f"{points(interval.difference)} {_ends(interval)}"
    return f"**{text}**" if interval.excludes_zero and interval.seeds >= FEWEST_SEEDS else text


def level_text(interval: Interval) -> str:
    """An arm's mIoU in per cent with its interval."""
    return f"{points(interval.difference, signed=False)} {_ends(interval, signed=False)}"


def detectable_text(value: float) -> str:
    """A minimum detectable difference in points."""
    return MISSING if math.isnan(value) else points(value, signed=False)


def count_text(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def seeds_text(seeds: int) -> str:
    """How many seeds, and that they are too few where they are."""
    words = count_text(seeds, "seed")
    return words if seeds >= FEWEST_SEEDS else f"{words}, no claims"


def number_text(value: float | None) -> str:
    """A mean of any size, short."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def reached_text(reached: Reached) -> str:
    """Steps to a level."""
    if math.isnan(reached.low):
        return f"{_steps(reached.steps)} (no interval)"
    return f"{_steps(reached.steps)} [{_steps(reached.low)}, {_steps(reached.high)}]"


def correlation_text(found: RankCorrelation) -> str:
    """A rank correlation over arms."""
    if math.isnan(found.value):
        return f"not measured ({count_text(found.arms, 'arm')} with both)"
    interval = "no interval" if math.isnan(found.low) else f"95 % {found.low:.2f} to {found.high:.2f}"
    return f"{found.value:.2f} ({interval}; {found.arms} arms)".replace("-", "−")


def _steps(value: float) -> str:
    return "not reached" if math.isinf(value) else f"{value:,.0f}"


def _ends(interval: Interval, signed: bool = True) -> str:
    if math.isnan(interval.low):
        return "(no interval)"
    return f"[{points(interval.low, signed)}, {points(interval.high, signed)}]"
