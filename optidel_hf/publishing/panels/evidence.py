"""The panel of the evidence: a grid of arms, budgets and seeds, with intervals, against budget and against cost.

All figures are handed over, as for the grid's own summary: this panel only draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optidel_hf.publishing.figures import Point, line_class, points


FILTERS = ("arm", "budget", "labels", "mode", "split")
MIOU = "mean IoU, %"


class Interval(Protocol):
    """An estimate of mean IoU, or of a difference of two, and its ends; fractions, and NaN where there is no end."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def seeds(self) -> int: ...


class Comparison(Protocol):
    """Arm `a` less arm `b`, the least true difference that would show, and whether a claim may rest on the seeds."""

    @property
    def a(self) -> str: ...
    @property
    def b(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def interval(self) -> Interval: ...
    @property
    def detectable(self) -> float: ...
    @property
    def supports_claims(self) -> bool: ...


@dataclass(frozen=True)
class Row:
    """
    What one arm reached, over its seeds.

    Args:
        arm (`str`): Name of the arm.
        budget (`float`): Share of the pool.
        labels (`int`): Labelled images; 0 for all.
        mode (`str`): `finetune` or `probe`.
        split (`str`): Which images judged it.
        budgeted (`bool`): Whether it has a budget of its own; else it is drawn as a level.
        own ([`Interval`]): Its mean IoU.
        minus (`Mapping[str, Comparison]`): By name, the arms that it is compared with; `None` where no seed has both.
        facts (`Mapping[str, float]`): What its data were and cost, by heading; `None` where that was not measured.
        seconds (`float`, *optional*): Of curation and pre-training.
    """

    arm: str
    budget: float
    labels: int
    mode: str
    split: str
    budgeted: bool
    own: Interval
    minus: Mapping[str, Comparison | None]
    facts: Mapping[str, float | None]
    seconds: float | None


@dataclass(frozen=True)
class Evidence:
    """
    A grid's results, judged.

    Args:
        rows (`Sequence[Row]`): Every arm, budget, number of labels, mode and split.
        primary (`Sequence[Comparison]`): The contrasts that were fixed beforehand, where they were run.
        split (`str`): Whose images judged these.
        budget (`float`): That of the arms with which arms without a budget are compared.
        agreement (`Sequence[str]`): How V-information goes with mean IoU, in sentences.
        passed (`bool`): Whether the grid has headroom; without it no claim is supported.
        sentence (`str`): What the gate found.
    """

    rows: Sequence[Row]
    primary: Sequence[Comparison]
    split: str
    budget: float
    agreement: Sequence[str]
    passed: bool
    sentence: str


def evidence_panel(evidence: Evidence | None) -> dict[str, Any] | None:
    """
    The table, the primary endpoint and the charts of a grid.

    Args:
        evidence ([`Evidence`], *optional*): The grid; without it the panel is left out.

    Returns:
        `dict`, or `None`: `passed`, `sentence`, `budget`, `agreement`, `rows`, `sets` (one of the rows for every arm
        and budget), `filters` (values by key, where there are several), `baselines` and `facts` (headings), `primary`,
        `charts` and `arms` (`name` and `css`, of all charts).
    """
    if evidence is None:
        return None
    rows = evidence.rows
    ordered = sorted(rows, key=lambda row: (not row.budgeted, row.arm != "optidel"))
    arms = dict.fromkeys(row.arm for row in ordered)
    classes = {arm: line_class(place) for place, arm in enumerate(arms)}
    filters = {name: sorted({getattr(row, name) for row in rows}) for name in FILTERS}
    kinds = sorted({(row.labels, row.mode, row.split) for row in rows})
    charted = [kind for kind in kinds if kind[2] == "test"] or kinds
    sets: dict[tuple[str, float], Row] = {}
    for row in rows:
        sets.setdefault((row.arm, row.budget), row)
    return {
        "passed": evidence.passed,
        "sentence": evidence.sentence,
        "budget": 100 * evidence.budget,
        "agreement": evidence.agreement,
        "rows": [_row(row) for row in rows],
        "sets": list(sets.values()),
        "filters": {name: values for name, values in filters.items() if len(values) > 1},
        "baselines": list(dict.fromkeys(name for row in rows for name in row.minus)),
        "facts": list(dict.fromkeys(head for row in sets.values() for head in row.facts)),
        "primary": [_difference(found) | {"split": evidence.split} for found in evidence.primary],
        "charts": [
            _charts(kind, [row for row in rows if (row.labels, row.mode, row.split) == kind], classes)
            for kind in charted
        ],
        "arms": [{"name": arm, "css": css} for arm, css in classes.items()],
    }


def _row(row: Row) -> dict[str, Any]:
    told = {name: getattr(row, name) for name in FILTERS}
    minus = {name: found and _difference(found) for name, found in row.minus.items()}
    return told | {"seeds": row.own.seeds, "own": _in_points(row.own), "minus": minus}


def _difference(found: Comparison) -> dict[str, Any]:
    told = {"baseline": found.b, "mode": found.mode, "seeds": found.interval.seeds}
    above = found.interval.low > 0 and found.supports_claims
    return told | _in_points(found.interval) | {"detectable": _percent(found.detectable), "above": above}


def _in_points(found: Interval) -> dict[str, float | None]:
    return {"mean": _percent(found.difference), "low": _percent(found.low), "high": _percent(found.high)}


def _charts(kind: tuple[int, str, str], rows: list[Row], classes: dict[str, str]) -> dict[str, Any]:
    """Mean IoU of the arms of one kind of run, against the budget and against the seconds that it cost."""
    labels, mode, split = kind
    levels: dict[str, float] = {}
    by_budget: dict[str, list[Point]] = {}
    by_cost: dict[str, list[Point]] = {}
    for row in rows:
        miou = 100 * row.own.difference
        if row.budgeted:
            ends = _percent(row.own.low), _percent(row.own.high)
            by_budget.setdefault(row.arm, []).append((100 * row.budget, miou, *ends))
        else:
            levels[row.arm] = miou
        if row.seconds:
            by_cost.setdefault(row.arm, []).append((row.seconds, miou, None, None))
    return {
        "title": f"{mode}, {labels or 'all'} labels, {split} images",
        "budget": points(by_budget, levels, classes, "budget, % of the pool", MIOU) if by_budget else None,
        "cost": points(by_cost, {}, classes, "curation and pre-training, s", MIOU, False) if by_cost else None,
    }


def _percent(value: float) -> float | None:
    """A fraction in per cent; `None` for NaN."""
    return None if math.isnan(value) else 100 * float(value)
