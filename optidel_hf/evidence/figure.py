"""
The grid in one picture, `results.png`: a column a mode, and in it each arm's mIoU and its difference to random images
with their 95 % intervals, mIoU over what curation and pre-training took and, where there are several, over the budget
and over the steps of pre-training.

An arm has its number throughout. A ring is an arm of fewer than 5 seeds, of which nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from optidel_hf.drawing import DPI, GRID, INK, PAPER, hide_frame, in_style, new_figure
from optidel_hf.evidence.comparison import WITHOUT_BUDGET, Judged, Series
from optidel_hf.evidence.gate import headroom
from optidel_hf.evidence.inference import FEWEST_SEEDS, Interval, pooled_miou
from optidel_hf.evidence.measured import seconds_taken
from optidel_hf.evidence.wording import mode_words


WIDTH, HEIGHT, ROW, HEAD, ROWS_HEAD = 6.2, 2.6, 0.22, 0.7, 1.0
"""In inches: a mode's width, a panel's height, an arm's, the title's, and what an arm's rows have around them."""
BASELINE = "random_images"
COLOURS = {"optidel": "#c8401c", "hardest": "#d98e04", "random_images": "#7d8088", "oracle": "#3a8f5c"}
POOL, OTHER = "#1f6fb4", "#22262e"
"""Colours of the arms without a budget, and of those that have none of their own."""
ROOM, BESIDE = (11.0, 8.0), 11.0
"""In points: a number's size with its margin, and how far from a mark it stands right beside it."""
AROUND = sorted(
    ((across, down) for across in range(-66, 67, 11) for down in range(-64, 65, 8) if (across, down) != (0, 0)),
    key=lambda shift: (math.hypot(shift[0], 1.5 * shift[1]), -shift[0]),
)
"""Where a number may stand about its mark, in points."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """
    What a panel shows of an arm.

    Args:
        arm (`str`): Name of the arm.
        x (`Sequence[float]`): Where its values lie; none if there is one value for the whole of the panel.
        miou (`Sequence[float]`): Mean mIoU, a fraction.
        seeds (`Sequence[int]`): How many seeds each is the mean of.
    """

    arm: str
    x: Sequence[float]
    miou: Sequence[float]
    seeds: Sequence[int]


@in_style
def results_figure(results: pa.Table) -> Figure:
    """
    Draw the test part where any run was judged there, else the validation part.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`.

    Returns:
        `Figure`: Matplotlib's. An axes is labelled by mode and panel: `probe/levels`, `probe/differences`,
            `probe/cost`, `probe/budget`, `probe/steps`.
    """
    judged = Judged.of(results)
    arms = list(dict.fromkeys(one.arm for mode in judged.modes for one in judged.headline(mode)))
    panels = _panels(judged)
    heights = [ROWS_HEAD + ROW * len(arms), *[HEIGHT] * len(panels)]
    columns = max(1, len(judged.modes))
    verdict = headroom(results).verdict
    title = f"mIoU on the {judged.split} part{verdict and f': {verdict}, no claims'}"
    figure = new_figure(columns * WIDTH, HEAD + sum(heights), title)
    caption = f"{judged.setting}; 95 % intervals over seeds and images; ring: under {FEWEST_SEEDS} seeds, no claims"
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8)
    for part, mode in zip(figure.subfigures(1, columns, squeeze=False)[0], judged.modes):
        _draw_mode(part, judged, mode, arms, panels, heights)
    figure.draw_without_rendering()  # the layout says how far apart the marks are
    for axes in figure.axes:
        if str(axes.get_label()).split("/")[1] in panels:
            _number_marks(axes, arms)
    return figure


def _panels(judged: Judged) -> dict[str, str]:
    """The panels below the intervals, by name, and the label of their horizontal axis."""
    budgets = {one.setting.budget for one in judged.series if one.arm not in WITHOUT_BUDGET}
    panels = {"cost": "curation and pre-training, seconds"}
    if len(budgets) > 1:
        panels["budget"] = "share of the pool, %"
    if judged.checkpoints.num_rows > judged.rows.num_rows:
        panels["steps"] = "steps of pre-training"
    return panels


def _draw_mode(
    part: SubFigure, judged: Judged, mode: str, arms: list[str], panels: dict[str, str], heights: list[float]
) -> None:
    """A mode's column: the arms' intervals, and below them its panels."""
    rows = part.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    rows[0].suptitle(mode_words(mode).capitalize(), x=0.01, ha="left", fontsize=9)
    levels, differences = rows[0].subplots(1, 2, sharey=True)
    levels.set_label(f"{mode}/levels")
    _draw_intervals(levels, {one.arm: one.interval() for one in judged.headline(mode)}, arms, "full")
    levels.set_xlabel("mIoU, %")
    differences.set_label(f"{mode}/differences")
    compared = {arm: judged.compare(arm, BASELINE, mode) for arm in arms if arm != BASELINE}
    _draw_intervals(differences, {arm: found.interval for arm, found in compared.items() if found}, arms)
    differences.set_xlabel(f"minus {BASELINE}, points")
    for row, (name, label) in zip(rows[1:], panels.items()):
        axes = row.add_subplot(label=f"{mode}/{name}")
        _draw_curves(axes, CURVES[name](judged, mode))
        axes.set(xlabel=label, ylabel="mIoU, %")


def _draw_intervals(axes: Axes, intervals: dict[str, Interval], arms: list[str], rule: str | None = None) -> None:
    """A row an arm, its mean and interval, in per cent; a line through all of them at one arm's mean, or at zero."""
    hide_frame(axes, "left", "bottom")
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(arms)), [f"{row}  {arm}" for row, arm in enumerate(arms, start=1)])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if rule is None or rule in intervals:
        axes.axvline(100 * intervals[rule].difference if rule else 0, color=POOL if rule else INK, linewidth=0.6)
    for arm, found in intervals.items():
        axes.plot([100 * found.low, 100 * found.high], 2 * [arms.index(arm)], color=_colour(arm))
        _mark(axes, 100 * found.difference, arms.index(arm), arm, found.seeds)


def _cost_curves(judged: Judged, mode: str) -> Iterator[Curve]:
    """Mean mIoU over the seconds of curation and pre-training."""
    taken = seconds_taken(judged.rows)
    for one in judged.headline(mode):
        if seconds := taken.get((one.arm, one.setting.budget)):
            yield Curve(one.arm, [seconds], [_mean(one)], [len(one.runs)])


def _budget_curves(judged: Judged, mode: str) -> Iterator[Curve]:
    """Mean mIoU over the budget, in per cent; one value of the arms without a budget."""
    arms = {one.arm for one in judged.headline(mode)}
    series = [one for one in judged.series if (one.mode, one.setting.labels) == (mode, judged.setting.labels)]
    for arm in dict.fromkeys(one.arm for one in series if one.arm in arms):
        own = sorted((one for one in series if one.arm == arm), key=lambda one: one.setting.budget)
        budgets = [] if arm in WITHOUT_BUDGET else [100 * one.setting.budget for one in own]
        yield Curve(arm, budgets, [_mean(one) for one in own], [len(one.runs) for one in own])


def _steps_curves(judged: Judged, mode: str) -> Iterator[Curve]:
    """Mean mIoU over the steps of pre-training, of the seeds of which every checkpoint was judged."""
    for one in judged.headline(mode):
        seeds, steps, values = judged.curve(one)
        if seeds and len(steps) > 1:
            yield Curve(one.arm, steps.tolist(), values.mean(axis=0).tolist(), [len(seeds)] * len(steps))


CURVES = {"cost": _cost_curves, "budget": _budget_curves, "steps": _steps_curves}


def _draw_curves(axes: Axes, curves: Iterable[Curve]) -> None:
    """A line an arm, and a mark for each of its values; the horizontal axis is logarithmic."""
    axes.set_xscale("log")
    axes.margins(x=0.06, y=0.08)
    axes.grid(axis="x", visible=False)
    hide_frame(axes, "left")
    for curve in curves:
        if curve.x:
            axes.plot(curve.x, [100 * miou for miou in curve.miou], color=_colour(curve.arm), linewidth=0.6)
            for x, miou, seeds in zip(curve.x, curve.miou, curve.seeds):
                _mark(axes, x, 100 * miou, curve.arm, seeds)
        else:
            axes.axhline(100 * curve.miou[0], color=_colour(curve.arm), linewidth=0.6, xmax=0.95, gid=curve.arm)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _mark(axes: Axes, x: float, y: float, arm: str, seeds: int) -> None:
    """A disc, or a ring where there are too few seeds."""
    colour = _colour(arm)
    inside, edge = (colour, PAPER) if seeds >= FEWEST_SEEDS else (PAPER, colour)
    axes.plot(x, y, "o", color=inside, markeredgecolor=edge, gid=arm, zorder=3)


def _number_marks(axes: Axes, arms: list[str]) -> None:
    """Each arm's number beside its last mark, with a line to it where it is not right beside it."""
    last = {gid: line for line in axes.lines if (gid := line.get_gid()) in arms}
    ends = [line.get_transform().transform(np.stack(line.get_data(), axis=1)[-1]) for line in last.values()]
    marks = [(x * 72 / DPI, y * 72 / DPI) for x, y in ends]
    for arm, mark, place in zip(last, marks, number_places(marks)):
        away = math.dist(mark, place) > BESIDE
        axes.annotate(
            str(arms.index(arm) + 1),
            mark,
            (place[0] - mark[0], place[1] - mark[1]),
            xycoords="figure points",
            textcoords="offset points",
            ha="center",
            va="center",
            color=_colour(arm),
            fontsize=7,
            arrowprops={"arrowstyle": "-", "color": GRID, "shrinkA": 4, "shrinkB": 2} if away else None,
            annotation_clip=False,
        ).set_in_layout(False)


def number_places(marks: Sequence[Point]) -> list[Point]:
    """For each mark the nearest place, the right side first, at which a number covers no mark and no other number."""
    taken, places = list(marks), list[Point]()
    for x, y in marks:
        around = [(x + across, y + down) for across, down in AROUND]
        free = (at for at in around if all(abs(at[0] - u) >= ROOM[0] or abs(at[1] - v) >= ROOM[1] for u, v in taken))
        places.append(next(free, around[0]))
        taken.append(places[-1])
    return places


def _mean(one: Series) -> float:
    return float(pooled_miou(one.confusion()).mean())


def _colour(arm: str) -> str:
    return POOL if arm in WITHOUT_BUDGET else COLOURS.get(arm, OTHER)
