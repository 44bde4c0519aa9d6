"""
The grid in one picture, `results.png`: a column a mode, and in it each arm's mIoU and its difference to random images
with their 95 % intervals, mIoU over what curation and pre-training took and, where there are several, over the budget
and over the steps of pre-training.

An arm has its number throughout. A ring is an arm of fewer than 5 seeds, of which nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from PIL import ImageDraw

from optidel_hf.drawing import GRID, INK, Point, dot, line, new_picture, save_picture, text
from optidel_hf.evidence.comparison import WITHOUT_BUDGET, Judged, Series
from optidel_hf.evidence.gate import headroom
from optidel_hf.evidence.inference import FEWEST_SEEDS, Interval, pooled_miou
from optidel_hf.evidence.measured import mean_fact
from optidel_hf.evidence.wording import mode_words
from optidel_hf.publishing.figures import ticks


WIDTH, HEIGHT, HEAD = 620, 250, 66
"""A panel's size and the title's height."""
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 34, 44
NAMES, ROW, GAP = 176, 24, 28
"""Room for the arms' names, a row's height, and what is between a row's two columns."""
ROOM, BESIDE = (15, 11), 15
"""A number's size with its margin, and how far from a mark it stands right beside it."""
AROUND = sorted(
    ((across, down) for across in range(-90, 91, 15) for down in range(-88, 89, 11) if (across, down) != (0, 0)),
    key=lambda shift: (math.hypot(shift[0], 1.5 * shift[1]), -shift[0]),
)
"""Where a number may stand about its mark."""
BASELINE = "random_images"
COLOURS = {"optidel": "#c8401c", "hardest": "#d98e04", "random_images": "#7d8088", "oracle": "#3a8f5c"}
POOL, OTHER = "#1f6fb4", "#22262e"
"""Colours of the arms without a budget, and of those that have none of their own."""


@dataclass(frozen=True)
class Axes:
    """
    A panel's box and what it spans; the horizontal axis is logarithmic where that is asked for.

    Args:
        box (`tuple`): Left, top, right and bottom.
        x (`tuple[float, float]`): Range across.
        y (`tuple[float, float]`): Range upwards.
        logarithmic (`bool`, *optional*, defaults to `False`): Whether `x` is.
    """

    box: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool = False

    def place(self, x: float, y: float) -> Point:
        """Where a value lies in the picture."""
        left, top, right, bottom = self.box
        low, high = map(math.log, self.x) if self.logarithmic else self.x
        across = ((math.log(x) if self.logarithmic else x) - low) / (high - low)
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)


def draw_results(results: pa.Table, path: Path) -> None:
    """
    Draw the test part where any run was judged there, else the validation part.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`.
        path (`Path`): PNG file to write.
    """
    judged = Judged.of(results)
    arms = list(dict.fromkeys(one.arm for mode in judged.modes for one in judged.headline(mode)))
    budgets = {one.setting.budget for one in judged.series if one.arm not in WITHOUT_BUDGET}
    panels = [_cost_panel] + [_budget_panel] * (len(budgets) > 1)
    panels += [_steps_panel] * (judged.checkpoints.num_rows > judged.rows.num_rows)
    rows = TOP + ROW * len(arms) + BOTTOM
    picture, draw = new_picture(max(1, len(judged.modes)) * WIDTH, HEAD + rows + HEIGHT * len(panels))
    _title(draw, judged, headroom(results).verdict)
    for column, mode in enumerate(judged.modes):
        _arm_panels(draw, (column * WIDTH, HEAD), judged, mode, arms)
        for number, panel in enumerate(panels):
            panel(draw, (column * WIDTH, HEAD + rows + number * HEIGHT), judged, mode, arms)
    save_picture(picture, path)


def _title(draw: ImageDraw.ImageDraw, judged: Judged, verdict: str) -> None:
    text(draw, (14, 12), f"mIoU on the {judged.split} part{verdict and f': {verdict}, no claims'}", 17)
    details = f"{judged.setting}; 95 % intervals over seeds and images; ring: under {FEWEST_SEEDS} seeds, no claims"
    text(draw, (14, 40), details, 13)


def _arm_panels(draw: ImageDraw.ImageDraw, corner: Point, judged: Judged, mode: str, arms: list[str]) -> None:
    """A row an arm: its mIoU, and beside it the paired difference to random images, which is far more certain."""
    text(draw, (corner[0] + 14, corner[1] + 10), mode_words(mode).capitalize(), 14)
    for row, arm in enumerate(arms):
        text(draw, (corner[0] + 14, corner[1] + TOP + ROW * (row + 0.5)), f"{row + 1}  {arm}", 12, "lm")
    levels = {one.arm: one.interval() for one in judged.headline(mode)}
    compared = {arm: judged.compare(arm, BASELINE, mode) for arm in arms if arm != BASELINE}
    differences = {arm: found.interval for arm, found in compared.items() if found}
    rule = levels["full"].difference if "full" in levels else None
    middle = (NAMES + WIDTH - RIGHT) / 2
    _intervals(draw, (corner[0] + NAMES, corner[0] + middle - GAP / 2), corner[1] + TOP, arms, levels, "mIoU, %", rule)
    box = corner[0] + middle + GAP / 2, corner[0] + WIDTH - RIGHT
    _intervals(draw, box, corner[1] + TOP, arms, differences, f"minus {BASELINE}, paired, points", 0.0)


def _intervals(
    draw: ImageDraw.ImageDraw,
    across: tuple[float, float],
    top: float,
    arms: list[str],
    intervals: dict[str, Interval],
    label: str,
    rule: float | None,
) -> None:
    """One column of means and intervals, and a line through all of them at `rule`."""
    if not intervals:
        return
    bottom, rows = top + ROW * len(arms), (len(arms) - 0.5, -0.5)
    span = _span(intervals, rule)
    axes = Axes((across[0], top, across[1], bottom), span, rows)
    for tick in ticks(*span, count=4):
        line(draw, [axes.place(tick, end) for end in rows], GRID, 1)
        text(draw, (axes.place(tick, 0)[0], bottom + 6), f"{100 * tick:g}", 11, "ma")
    text(draw, (sum(across) / 2, bottom + 22), label, 11, "ma")
    if rule is not None:
        line(draw, [axes.place(rule, end) for end in rows], POOL if rule else INK, 0.5)
    for arm, found in intervals.items():
        row = arms.index(arm)
        if not math.isnan(found.low):
            line(draw, [axes.place(end, row) for end in (found.low, found.high)], _colour(arm), 1.5)
        dot(draw, axes.place(found.difference, row), _colour(arm), filled=found.seeds >= FEWEST_SEEDS)


def _cost_panel(draw: ImageDraw.ImageDraw, corner: Point, judged: Judged, mode: str, arms: list[str]) -> None:
    """Mean mIoU over the seconds of curation and pre-training, by the arm's number."""
    curation = mean_fact(judged.rows, "curation_seconds")
    seconds = {
        arm: value + curation.get(arm, 0.0) for arm, value in mean_fact(judged.rows, "pretrain_seconds").items()
    }
    values = [
        (one, cost, _mean(one))
        for one in judged.headline(mode)
        if (cost := seconds.get((one.arm, one.setting.budget), 0.0)) > 0
    ]
    if not values:
        return
    _, costs, heights = zip(*values)
    axes = _panel(draw, corner, costs, heights, "curation and pre-training, seconds")
    places = [(one, axes.place(cost, height)) for one, cost, height in values]
    _numbers(draw, [(at, one.arm) for one, at in places], arms)
    for one, at in places:
        dot(draw, at, _colour(one.arm), filled=len(one.runs) >= FEWEST_SEEDS)


def _budget_panel(draw: ImageDraw.ImageDraw, corner: Point, judged: Judged, mode: str, arms: list[str]) -> None:
    """Mean mIoU over the budget, a line an arm, level for the arms without a budget."""
    series = [one for one in judged.series if (one.mode, one.setting.labels) == (mode, judged.setting.labels)]
    series = [one for one in series if one.arm in arms]
    budgets = [one.setting.budget for one in series if one.arm not in WITHOUT_BUDGET]
    axes = _panel(draw, corner, budgets, [_mean(one) for one in series], "share of the pool, %", scale=100)
    marks = []
    for arm in dict.fromkeys(one.arm for one in series):
        own = sorted((one for one in series if one.arm == arm), key=lambda one: one.setting.budget)
        level = arm in WITHOUT_BUDGET
        spots = [(x, _mean(own[0])) for x in axes.x] if level else [(one.setting.budget, _mean(one)) for one in own]
        points = [axes.place(*spot) for spot in spots]
        _curve(draw, points, arm, [] if level else [len(one.runs) for one in own])
        marks.append((points[-1], arm))
    _numbers(draw, marks, arms)


def _steps_panel(draw: ImageDraw.ImageDraw, corner: Point, judged: Judged, mode: str, arms: list[str]) -> None:
    """Mean mIoU over the steps of pre-training, a line an arm, of the seeds of which every checkpoint was judged."""
    curves: dict[str, list[Point]] = {}
    counts: dict[str, int] = {}
    for one in judged.headline(mode):
        seeds, steps, values = judged.curve(one)
        if seeds and len(steps) > 1:
            curves[one.arm] = list(zip(steps.tolist(), values.mean(axis=0).tolist()))
            counts[one.arm] = len(seeds)
    if not curves:
        return
    across, heights = zip(*(spot for curve in curves.values() for spot in curve))
    axes, marks = _panel(draw, corner, across, heights, "steps of pre-training"), []
    for arm, curve in curves.items():
        points = [axes.place(*spot) for spot in curve]
        _curve(draw, points, arm, [counts[arm]] * len(points))
        marks.append((points[-1], arm))
    _numbers(draw, marks, arms)


def _curve(draw: ImageDraw.ImageDraw, points: list[Point], arm: str, seeds: list[int]) -> None:
    """An arm's line, and on it a mark for each number of seeds."""
    line(draw, points, _colour(arm), 1)
    for at, count in zip(points, seeds):
        dot(draw, at, _colour(arm), filled=count >= FEWEST_SEEDS)


def _panel(
    draw: ImageDraw.ImageDraw,
    corner: Point,
    xs: Sequence[float],
    ys: Sequence[float],
    label: str,
    scale: float = 1,
) -> Axes:
    """A panel's grid, ticks and label, for these values; the horizontal axis is logarithmic."""
    left, top = corner
    low, high, y = min(xs), max(xs), _padded(min(ys), max(ys))
    box = (left + LEFT, top + 12, left + WIDTH - RIGHT - 14, top + HEIGHT - BOTTOM)
    axes = Axes(box, (low / 1.15, high * 1.15), y, logarithmic=True)
    for tick in ticks(*y, count=5):
        line(draw, [axes.place(axes.x[0], tick), axes.place(axes.x[1], tick)], GRID, 1)
        text(draw, (box[0] - 6, axes.place(axes.x[0], tick)[1]), f"{100 * tick:g}", 11, "rm")
    for tick in _log_ticks(*axes.x):
        x = axes.place(tick, y[0])[0]
        line(draw, [(x, box[3]), (x, box[3] + 4)], INK, 1)
        text(draw, (x, box[3] + 6), f"{scale * tick:,g}", 11, "ma")
    line(draw, [(box[0], box[3]), (box[2], box[3])], INK, 1)
    text(draw, ((box[0] + box[2]) / 2, box[3] + 22), label, 11, "ma")
    text(draw, (left + 14, top - 4), "mIoU, %", 11)
    return axes


def _numbers(draw: ImageDraw.ImageDraw, marks: list[tuple[Point, str]], arms: list[str]) -> None:
    """Each arm's number beside its mark, with a line to it where it is not right beside it."""
    for at, (mark, arm) in zip(number_places([mark for mark, _ in marks]), marks):
        if math.dist(at, mark) > BESIDE:
            line(draw, [mark, at], GRID, 1)
        text(draw, at, str(arms.index(arm) + 1), 11, "mm", _colour(arm))


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


def _span(intervals: dict[str, Interval], rule: float | None) -> tuple[float, float]:
    """What holds all intervals and the line."""
    values = [value for found in intervals.values() for value in (found.low, found.difference, found.high)]
    values = [value for value in values if not math.isnan(value)]
    values += [] if rule is None else [rule]
    return _padded(min(values), max(values))


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis: 1, 2 and 5 times powers of ten, evenly spaced ones where it is short."""
    if high < 5 * low:
        return ticks(low, high, count=4)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for step in (1, 2, 5) if low <= (tick := step * 10.0**power) <= high]


def _colour(arm: str) -> str:
    return POOL if arm in WITHOUT_BUDGET else COLOURS.get(arm, OTHER)
