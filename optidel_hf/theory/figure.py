"""The study's picture: error over the fraction kept, one panel a data ratio, simulated points over theory's lines."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from optidel_hf.drawing import PAPER, in_style, new_figure
from optidel_hf.theory.saddle_point import saddle_point_errors
from optidel_hf.theory.study import STRATEGIES, Study, TheoryConfig


COLOURS = {"hard": "#c8401c", "easy": "#1f6fb4", "random": "#7d8088"}
COLUMNS = 3
WIDTH, HEIGHT, HEAD = 3.3, 2.6, 0.6
"""A panel's size and the height of the title, in inches."""
CURVE_POINTS = 24
"""Fractions, at least, at which theory is solved for a line."""
ERRORS = (0.0006, 0.6)
ERROR_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
FRACTION_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@in_style
def theory_figure(config: TheoryConfig, study: Study) -> Figure:
    """
    Solve the saddle-point equations, and draw the study over them.

    Points are the students' mean errors with their 95 % intervals. Lines hold in the limit of many dimensions: by
    margin, copies of a point are taken or left together, as if there were one of each; of points drawn at random, and
    for a test with a shift, there is no line.

    Args:
        config (`TheoryConfig`): What the study was made by.
        study (`Study`): Its students.

    Returns:
        `Figure`: Matplotlib's, with one axes a data ratio.
    """
    rows = -(-len(config.ratios) // COLUMNS)
    title = f"Keep the hard or the easy samples? A perceptron taught by a perceptron\n{_details(config)}"
    figure = new_figure(COLUMNS * WIDTH, HEAD + rows * HEIGHT, title)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    for axes, ratio, errors in zip(panels, config.ratios, study.errors().swapaxes(0, 1)):
        _panel(axes, config, ratio, errors)
    for unused in panels[len(config.ratios) :]:
        unused.remove()
    legend = [Line2D([], [], color=colour, marker="o", label=f"kept: {name}") for name, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="outside lower left", ncols=len(legend))
    return figure


def _details(config: TheoryConfig) -> str:
    details = f"N = {config.dimension}, probe {config.probe_angle:g}° off the teacher, {config.draws} draws"
    details += f", {config.copies} copies of each point" if config.copies > 1 else ""
    return details + (f", shift {config.shift:g}" if config.shift else "; points: simulation, lines: limit of large N")


def _panel(axes: Axes, config: TheoryConfig, ratio: int, errors: np.ndarray) -> None:
    """Theory and simulation at one data ratio; `errors` has the shape `(S, F, B)`."""
    kept = config.kept()
    fine = np.logspace(np.log10(kept[0]), 0, max(CURVE_POINTS, config.fractions))
    half = 1.96 * errors.std(axis=-1, ddof=1) / np.sqrt(errors.shape[-1])
    for strategy, means, halves in zip(STRATEGIES, errors.mean(axis=-1), half):
        colour = COLOURS[strategy]
        axes.errorbar(kept, means, halves, fmt="o", color=colour, markeredgecolor=PAPER, label=strategy)
        if strategy in _solvable(config):
            limit = saddle_point_errors(strategy, ratio / config.copies, fine, config.probe_angle)
            axes.plot(fine, limit, color=colour)
    axes.set(xscale="log", yscale="log", ylim=ERRORS)
    axes.set_title(f"{ratio} points a dimension ({ratio * config.dimension:,})")
    axes.set_xticks([fraction for fraction in FRACTION_TICKS if fraction >= kept[0] * (1 - 1e-9)])
    axes.set_yticks(ERROR_TICKS)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("fraction of the pool kept")
    axes.set_ylabel("error")
    axes.label_outer()


def _solvable(config: TheoryConfig) -> tuple[str, ...]:
    """The strategies of whose errors there is a theory: see [`theory_figure`]."""
    if config.shift:
        return ()
    return STRATEGIES if config.copies == 1 else ("hard", "easy")
