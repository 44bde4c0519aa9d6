"""
Means and intervals over seeds, the tables made of them, and rank correlations.

The interval is Student's t: mean +- t(0.975, n - 1) s / sqrt(n) over the n seeds' scores. One seed has no interval.
Arms share seeds (labels, head, order of batches), so a difference of two arms is judged by the interval of the paired
differences, which is narrower than two intervals side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """
    Mean and 95 % interval (Student's t) of independent values.

    Returns:
        `tuple` of mean, lower and upper end; the ends are `None` for a single value.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half


def bootstrap_correction(count: int) -> float:
    """
    What a bootstrap's deviations from its estimate are multiplied by: of `count` samples redrawn with replacement the
    variance is (count - 1) / count of what it should be, and the tails are a normal's where Student's t is due.

    Returns:
        `float`: 1.02 for 100 samples, 1.22 for 10.
    """
    upper = (1 + CONFIDENCE) / 2
    return float(np.sqrt(count / (count - 1)) * stats.t.ppf(upper, count - 1) / stats.norm.ppf(upper))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float | None:
    """
    Spearman's rank correlation of two values of the same things; those with a value that is not finite are left out.

    Returns:
        `float`, or `None` where it has no meaning: of fewer than three things, or where a value never changes.
    """
    both = np.array([first, second], dtype=np.float64)
    both = both[:, np.isfinite(both).all(axis=0)]
    if both.shape[1] < 3 or np.ptp(both, axis=1).min() == 0:
        return None
    return float(stats.spearmanr(*both).statistic)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    One row for every arm and mode, in order of appearance.

    Args:
        rows (`Sequence[dict]`): runs with `arm`, `mode` and `miou` (fraction), one for every seed.

    Returns:
        `list[dict]` with `arm`, `mode`, `seeds` (their number), `miou_mean`, `miou_low` and `miou_high`.
    """
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["mode"]), []).append(row["miou"])
    return [
        {"arm": arm, "mode": mode, "seeds": len(scores)}
        | dict(zip(("miou_mean", "miou_low", "miou_high"), mean_interval(scores), strict=True))
        for (arm, mode), scores in groups.items()
    ]


def markdown_table(results: dict[str, Any]) -> str:
    """
    The summary as a Markdown table, arms by modes, mIoU in per cent, with what it does not show below it.

    Args:
        results (`dict`): the content of `results.json`; its `summary` is read.
    """
    summary = results["summary"]
    modes = list(dict.fromkeys(row["mode"] for row in summary))
    cells = {(row["arm"], row["mode"]): _cell(row) for row in summary}
    lines = ["| arm | " + " | ".join(f"{mode} mIoU, %" for mode in modes) + " |", "|---" * (len(modes) + 1) + "|"]
    for arm in dict.fromkeys(row["arm"] for row in summary):
        lines.append(f"| {arm} | " + " | ".join(cells.get((arm, mode), "") for mode in modes) + " |")
    return "\n".join([*lines, "", _footnote(min(row["seeds"] for row in summary))])


def _cell(row: dict[str, Any]) -> str:
    seeds = f"{row['seeds']} seed" + "s" * (row["seeds"] > 1)
    seeds += f", NormDEL {row['normdel']:.4f}" if "normdel" in row else ""
    if row["miou_low"] is None:
        return f"{100 * row['miou_mean']:.2f} ({seeds})"
    return f"{100 * row['miou_mean']:.2f} [{100 * row['miou_low']:.2f}, {100 * row['miou_high']:.2f}] ({seeds})"


def _footnote(seeds: int) -> str:
    if seeds < 2:
        return "Means over one seed, which has no interval: no difference in this table is a claim."
    return (
        f"Mean and 95 % interval (Student's t) over {seeds} seeds. "
        "Differences between arms whose intervals overlap are not claims."
    )
