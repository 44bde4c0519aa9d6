"""The study's picture: error over the fraction kept, one panel a data ratio, simulated points over theory's lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ImageDraw

from optidel_hf.drawing import GRID, INK, Point, dot, line, new_picture, save_picture, text
from optidel_hf.theory.saddle_point import saddle_point_errors
from optidel_hf.theory.study import STRATEGIES, Study, TheoryConfig


COLOURS = {"hard": "#c8401c", "easy": "#1f6fb4", "random": "#7d8088"}
COLUMNS = 3
WIDTH, HEIGHT, HEAD = 330, 260, 64
"""A panel's size and the height of the title."""
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 26, 40
CURVE_POINTS = 24
"""Fractions, at least, at which theory is solved for a line."""
ERRORS = (0.0006, 0.6)
ERROR_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
FRACTION_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def draw_theory(path: str | Path, config: TheoryConfig, study: Study) -> None:
    """
    Solve the saddle-point equations, and draw the study over them.

    Points are the students' mean errors with their 95 % intervals. Lines hold in the limit of many dimensions: by
    margin, copies of a point are taken or left together, as if there were one of each; of points drawn at random, and
    for a test with a shift, there is no line.

    Args:
        path (`str` or `Path`): PNG file to write.
        config (`TheoryConfig`): What the study was made by.
        study (`Study`): Its students.
    """
    rows = -(-len(config.ratios) // COLUMNS)
    picture, draw = new_picture(COLUMNS * WIDTH, HEAD + rows * HEIGHT)
    _title(draw, config)
    for number, ratio in enumerate(config.ratios):
        corner = (number % COLUMNS * WIDTH, HEAD + number // COLUMNS * HEIGHT)
        _panel(draw, corner, config, ratio, study.errors()[:, number])
    save_picture(picture, path)


def _title(draw: ImageDraw.ImageDraw, config: TheoryConfig) -> None:
    """What is shown, and the strategies' colours."""
    text(draw, (14, 14), "Keep the hard or the easy samples? A perceptron taught by a perceptron", 17)
    details = f"N = {config.dimension}, probe {config.probe_angle:g}° off the teacher, {config.draws} draws"
    details += f", {config.copies} copies of each point" if config.copies > 1 else ""
    details += f", shift {config.shift:g}" if config.shift else "; points: simulation, lines: limit of large N"
    across = 14 + text(draw, (14, 42), f"{details};  kept:", 13) + 14
    for strategy, colour in COLOURS.items():
        line(draw, [(across, 50), (across + 22, 50)], colour, 2)
        dot(draw, (across + 11, 50), colour)
        across += 28 + text(draw, (across + 28, 42), strategy, 13) + 16


def _panel(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], config: TheoryConfig, ratio: int, errors: np.ndarray
) -> None:
    """Axes, theory and simulation at one data ratio; `errors` has the shape `(S, F, B)`."""
    kept = config.kept()

    def place(fraction: float, error: float) -> Point:
        across = np.log(fraction / kept[0]) / np.log(1 / kept[0])
        up = np.log(np.clip(error, *ERRORS) / ERRORS[0]) / np.log(ERRORS[1] / ERRORS[0])
        x = corner[0] + LEFT + across * (WIDTH - LEFT - RIGHT)
        return x, corner[1] + HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    _axes(draw, corner, place, kept[0], f"{ratio} points a dimension ({ratio * config.dimension:,})")
    fine = np.logspace(np.log10(kept[0]), 0, max(CURVE_POINTS, config.fractions))
    for strategy in _solvable(config):
        curve = saddle_point_errors(strategy, ratio / config.copies, fine, config.probe_angle)
        line(draw, [place(x, y) for x, y in zip(fine, curve)], COLOURS[strategy], 1.5)
    half = 1.96 * errors.std(axis=-1, ddof=1) / np.sqrt(errors.shape[-1])
    for strategy, means, halves in zip(STRATEGIES, errors.mean(axis=-1), half):
        for fraction, mean, spread in zip(kept, means, halves):
            line(draw, [place(fraction, mean - spread), place(fraction, mean + spread)], COLOURS[strategy], 1.5)
            dot(draw, place(fraction, mean), COLOURS[strategy])


def _solvable(config: TheoryConfig) -> tuple[str, ...]:
    """The strategies of whose errors there is a theory: see [`draw_theory`]."""
    if config.shift:
        return ()
    return STRATEGIES if config.copies == 1 else ("hard", "easy")


def _axes(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    place: Callable[[float, float], Point],
    smallest: float,
    title: str,
) -> None:
    """A panel's grid, ticks and labels."""
    for error in ERROR_TICKS:
        line(draw, [place(smallest, error), place(1.0, error)], GRID, 1)
        x, y = place(smallest, error)
        text(draw, (x - 6, y - 7), f"{error:g}", 11, "ra")
    for fraction in FRACTION_TICKS:
        if fraction >= smallest * (1 - 1e-9):
            x, y = place(fraction, ERRORS[0])
            line(draw, [(x, y), (x, y + 4)], INK, 1)
            text(draw, (x, y + 6), f"{100 * fraction:g} %", 11, "ma")
    line(draw, [place(smallest, ERRORS[0]), place(1.0, ERRORS[0])], INK, 1)
    middle = corner[0] + (LEFT + WIDTH - RIGHT) / 2
    text(draw, (middle, corner[1] + HEIGHT - 17), "fraction of the pool kept", 11, "ma")
    text(draw, (corner[0] + LEFT, corner[1] + 6), f"error, {title}", 13)
