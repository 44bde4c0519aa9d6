"""The panel of the evidence: a grid of arms, budgets and seeds, with intervals, against budget and against cost.

The statistics are handed over with the results: this panel groups, subtracts and draws.

S seeds; N test images; C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.errors import UserError
from optidel_hf.publishing.figures import Point, line_class, number, points
from optidel_hf.publishing.panels.scores import rank_correlation


KEYS = ("arm", "budget", "labels", "mode", "split")
"""What one row of the table stands for; seeds are averaged over."""
NEEDED = (*KEYS, "seed", "step", "steps", "miou", "confusion", "pretrain_seconds", "downstream_seconds")
CLASSES = 2
BASELINES = {"minus_random": "random_images", "minus_full": "full"}
PRIMARY = {"arm": "optidel", "budget": 0.05, "labels": 100}
MIOU = "mean IoU, %"
LEVELS = ("none", "full")
"""Arms without a budget of their own, drawn as levels."""
FACTS = {
    "images": "images",
    "stored_pixels": "stored pixels",
    "stored_bytes": "bytes",
    "sources": "source images",
    "groups": "near-duplicate groups",
    "native_pixels": "native pixels",
    "curation_seconds": "curation, s",
    "pretrain_seconds": "pre-training, s",
    "null_entropy": "(i) H_V(Y|0)",
    "coverage": "(i) coverage",
    "cond_entropy": "(ii) H_V(Y|X)",
    "vinfo_held_out": "(iii) held-out V-information",
}
"""What an arm's data were and cost: column to heading."""
FEWEST_SEEDS = 5  # that support a claim, as in `optidel_hf.evidence`, which this does not know


class Interval(Protocol):
    """An estimate of mean IoU, or of a difference of two, and its ends; fractions, and NaN where there is no end."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Evidence:
    """
    A grid's results, and what judges them.

    Args:
        results (`pyarrow.Table`): One row a downstream run.
        miou_interval (`Callable`): From an arm's confusion matrices `(S, N, C, C)` to its mean IoU.
        paired_interval (`Callable`): From two arms', over the same seeds and images, to the difference.
        detectable (`Callable`): From the same to the least true difference that so many seeds and images would show.
        passed (`bool`): Whether the grid has headroom; without it no claim is supported.
        sentence (`str`): What the gate found.
    """

    results: pa.Table
    miou_interval: Callable[[np.ndarray], Interval]
    paired_interval: Callable[[np.ndarray, np.ndarray], Interval]
    detectable: Callable[[np.ndarray, np.ndarray], float]
    passed: bool
    sentence: str


class Runs(NamedTuple):
    """The runs of one row: means over the seeds, and confusion matrices by seed, each `(N, C, C)`."""

    miou: float
    means: dict[str, float | None]
    confusion: dict[int, np.ndarray]


def evidence_panel(evidence: Evidence | None) -> dict[str, Any] | None:
    """
    The table, the primary endpoint and the charts of a grid.

    Args:
        evidence ([`Evidence`], *optional*): The grid; without it the panel is left out.

    Returns:
        `dict`, or `None`: `passed`, `sentence`, `rows`, `sets` (one of the rows for every arm and budget), `filters`
        (values by key, where there are several), `facts` (headings of the columns that were measured), `primary`,
        `charts`, `arms` (`name` and `css`, of all charts) and `agreement`.

    Raises:
        UserError: If the results lack a column or hold no finished run.
    """
    if evidence is None:
        return None
    runs = _group(evidence.results)
    rows = [_row(key, runs, evidence) for key in runs]
    kinds = [dict(zip(KEYS[2:], kind)) for kind in sorted({key[2:] for key in runs})]
    charted = [kind for kind in kinds if kind["split"] == "test"] or kinds
    arms = sorted({row["arm"] for row in rows}, key=lambda arm: (arm in LEVELS, arm != PRIMARY["arm"], arm))
    classes = {arm: line_class(place) for place, arm in enumerate(arms)}
    filters = {name: sorted({row[name] for row in rows}) for name in KEYS}
    return {
        "passed": evidence.passed,
        "sentence": evidence.sentence,
        "rows": rows,
        "sets": list({(row["arm"], row["budget"]): row for row in rows}.values()),
        "filters": {name: values for name, values in filters.items() if len(values) > 1},
        "facts": {name: head for name, head in FACTS.items() if any(row["facts"][name] is not None for row in rows)},
        "primary": _primary(rows),
        "charts": [_charts(kind, [row for row in rows if kind.items() <= row.items()], classes) for kind in charted],
        "arms": [{"name": arm, "css": css} for arm, css in classes.items()],
        "agreement": [text for kind in charted for text in _agreement(kind, rows)],
    }


def _group(table: pa.Table) -> dict[tuple, Runs]:
    """The runs of each row of the table, those of the last checkpoint alone."""
    missing = [name for name in NEEDED if name not in table.column_names]
    if missing:
        raise UserError(
            f"The results lack the column '{missing[0]}': give the results.parquet of `optidel reproduce`."
        )
    table = table.filter(pc.equal(table["step"], table["steps"]))
    if not len(table):
        raise UserError("The results hold no run of a last checkpoint yet: let `optidel reproduce` finish one.")
    rows: dict[tuple, list[dict[str, Any]]] = {}
    for row, flat in zip(table.drop_columns("confusion").to_pylist(), table["confusion"]):
        row["confusion"] = flat.values.to_numpy().reshape(-1, CLASSES, CLASSES)
        rows.setdefault(tuple(row[name] for name in KEYS), []).append(row)
    if any(len({row["seed"] for row in part}) < len(part) for part in rows.values()):
        raise UserError("The results hold several runs of one cell: give the results.parquet of one grid.")
    return {
        key: Runs(
            float(np.mean([row["miou"] for row in part])),
            {name: _mean([row.get(name) for row in part]) for name in FACTS},
            {row["seed"]: row["confusion"] for row in part},
        )
        for key, part in sorted(rows.items())
    }


def _row(key: tuple, runs: dict[tuple, Runs], judge: Evidence) -> dict[str, Any]:
    """One row of the table: the arm's own figures, and its differences from the arms that it must beat."""
    own, told = runs[key], dict(zip(KEYS, key))
    row = told | {"seeds": len(own.confusion), "miou": 100 * own.miou, "facts": own.means}
    row["own"] = _in_points(judge.miou_interval(_stack(own, own.confusion)))
    for name, arm in BASELINES.items():
        other = _find(runs, {**told, "arm": arm}, ignore_budget=arm in LEVELS) if told["arm"] != arm else None
        row[name] = _difference(own, other, judge) if other else None
    return row


def _find(runs: dict[tuple, Runs], told: dict[str, Any], ignore_budget: bool) -> Runs | None:
    wanted = {name: value for name, value in told.items() if not (ignore_budget and name == "budget")}
    return next((found for key, found in runs.items() if wanted.items() <= dict(zip(KEYS, key)).items()), None)


def _difference(first: Runs, second: Runs, judge: Evidence) -> dict[str, float | None] | None:
    """One arm less another over the seeds that both have; `None` where there are none, or other images."""
    seeds = sorted(first.confusion.keys() & second.confusion.keys())
    if len({len(runs.confusion[seed]) for runs in (first, second) for seed in seeds}) != 1:
        return None
    pair = _stack(first, seeds), _stack(second, seeds)
    detectable = _percent(judge.detectable(*pair))
    return _in_points(judge.paired_interval(*pair)) | {"detectable": detectable, "seeds": len(seeds)}


def _stack(runs: Runs, seeds: Iterable[int]) -> np.ndarray:
    return np.stack([runs.confusion[seed] for seed in seeds])


def _in_points(found: Interval) -> dict[str, float | None]:
    return {"mean": _percent(found.difference), "low": _percent(found.low), "high": _percent(found.high)}


def _primary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contrasts that were fixed beforehand, one a mode and baseline, on the test part where it was read."""
    found = [row for row in rows if PRIMARY.items() <= row.items()]
    found = [row for row in found if row["split"] == "test"] or found
    return [
        {"mode": row["mode"], "split": row["split"], "baseline": arm, **row[name]}
        | {"above": (row[name]["low"] or 0) > 0 and row[name]["seeds"] >= FEWEST_SEEDS}
        for row in found
        for name, arm in BASELINES.items()
        if row[name]
    ]


def _charts(kind: dict[str, Any], rows: list[dict[str, Any]], classes: dict[str, str]) -> dict[str, Any]:
    """Mean IoU of the arms of one kind of run, against the budget and against the seconds that it cost."""
    levels = {row["arm"]: row["miou"] for row in rows if row["arm"] in LEVELS}
    by_budget: dict[str, list[Point]] = {}
    by_cost: dict[str, list[Point]] = {}
    for row in rows:
        if row["arm"] not in LEVELS and row["budget"] > 0:
            ends = row["own"]["low"], row["own"]["high"]
            by_budget.setdefault(row["arm"], []).append((100 * row["budget"], row["miou"], *ends))
        if seconds := _seconds(row):
            by_cost.setdefault(row["arm"], []).append((seconds, row["miou"], None, None))
    return {
        "title": f"{kind['mode']}, {kind['labels']} labels, {kind['split']} images",
        "budget": points(by_budget, levels, classes, "budget, % of the pool", MIOU) if by_budget else None,
        "cost": points(by_cost, {}, classes, "curation and pre-training, s", MIOU, False) if by_cost else None,
    }


def _seconds(row: dict[str, Any]) -> float:
    """What the arm cost: curation, where that was measured, and pre-training."""
    return (row["facts"]["curation_seconds"] or 0.0) + (row["facts"]["pretrain_seconds"] or 0.0)


def _agreement(kind: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """How held-out V-information ranks the arms beside their mean IoU."""
    both = [(row["facts"]["vinfo_held_out"], row["miou"]) for row in rows if kind.items() <= row.items()]
    told = np.array([pair for pair in both if pair[0] is not None], dtype=np.float64).reshape(-1, 2)
    rho = rank_correlation(told[:, 0], told[:, 1])
    return [] if rho is None else [f"{number(rho, 2)} over {len(told)} sets ({kind['mode']}, {kind['labels']} labels)"]


def _mean(values: list[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return float(np.mean(told)) if told else None


def _percent(value: float) -> float | None:
    """A fraction in per cent; `None` for NaN."""
    return None if math.isnan(value) else 100 * float(value)
