"""The theory's figure and numbers: every strategy is there, where its error is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from optidel_hf import cli
from optidel_hf.theory import figure
from optidel_hf.theory.figure import COLOURS, theory_figure
from optidel_hf.theory.study import STRATEGIES, Study, TheoryConfig, run_study
from optidel_hf.theory.summary import best_strategies, results


CONFIG = TheoryConfig(dimension=10, ratios=[20], smallest_fraction=0.1, fractions=3, probe_angle=0, draws=3)


@pytest.fixture(scope="module")
def students():
    return run_study(CONFIG)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_points_and_lines_lie_at_their_errors(students, monkeypatch, strategy):
    levels = {"hard": 0.002, "easy": 0.006, "random": 0.02}
    monkeypatch.setattr(figure, "saddle_point_errors", lambda name, ratio, kept, _: np.full(len(kept), levels[name]))
    weights = np.broadcast_to(students.teachers[None, :, None], students.weights.shape).copy()
    weights[STRATEGIES.index(strategy), :, 0] = 0.0
    weights[STRATEGIES.index(strategy), :, 0, :, 1] = 1.0  # at a right angle to the teacher: an error of one half
    (axes,) = theory_figure(CONFIG, Study(weights, students.teachers)).axes
    points = axes.containers[STRATEGIES.index(strategy)].lines[0]
    (line,) = (one for one in axes.lines if one.get_color() == COLOURS[strategy] and one is not points)
    np.testing.assert_allclose(points.get_xdata(), CONFIG.kept())
    np.testing.assert_allclose(points.get_ydata(), [0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), levels[strategy])


def test_bars_are_intervals_and_every_ratio_has_its_panel(students):
    (axes,) = theory_figure(CONFIG, students).axes
    errors = students.errors()[0, 0]
    half = 1.96 * errors.std(axis=-1, ddof=1) / np.sqrt(3)
    ends = np.array(axes.containers[0].lines[2][0].get_segments())[:, :, 1]
    np.testing.assert_allclose(ends, np.stack([errors.mean(axis=-1) - half, errors.mean(axis=-1) + half], axis=1))
    config = replace(CONFIG, ratios=[20, 30, 40, 50])
    titles = [axes.get_title(loc="left") for axes in theory_figure(config, run_study(config)).axes]
    assert titles == [f"{ratio} points a dimension ({10 * ratio})" for ratio in config.ratios]


def test_where_there_is_no_theory_there_is_no_line(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figure, "saddle_point_errors", lambda *told: drawn.append((told[0], told[1])) or np.full(len(told[2]), 0.01)
    )
    for changes in ({"shift": 0.4}, {"copies": 4}):
        config = replace(CONFIG, **changes)
        theory_figure(config, run_study(config))
    assert drawn == [("hard", 5.0), ("easy", 5.0)]


def test_the_best_strategy_is_named_and_what_is_not_told_from_it():
    teachers = np.tile(np.eye(3)[0], (1, 4, 1))
    weights = np.tile(teachers, (3, 1, 3, 1, 1)).reshape(3, 1, 3, 4, 3)
    turned = np.array([0.10, 0.11, 0.09, 0.10])  # tangents of the angles between student and teacher, one a draw
    for strategy, factor in zip(STRATEGIES, (3.0, 1.0, 2.0)):
        weights[STRATEGIES.index(strategy), 0, :, :, 1] = factor * turned
    weights[STRATEGIES.index("random"), 0, 1, :, 1] = turned[::-1]
    config = replace(CONFIG, dimension=3, draws=4)
    told = Study(weights, teachers)
    (line,) = best_strategies(config, told)
    assert line.startswith("20 points a dimension: 10.0% easy, 31.6% ")
    assert line.endswith(("easy = random", "random = easy"))
    numbers = results(config, told)
    easy = numbers["mean_error"][numbers["strategies"].index("easy")]
    np.testing.assert_allclose(easy, np.full((1, 3), np.arctan(turned).mean() / np.pi))


def test_the_command_writes_numbers_and_figure(tmp_path, capsys):
    flags = "--dimension 3 --ratios 20 --smallest_fraction 0.1 --fractions 2 --draws 2 --probe_angle 0"
    assert cli.main(["theory", *flags.split(), "--output_dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theory.json", "theory.png"]
    assert "20 points a dimension: 10.0% " in capsys.readouterr().out
    assert json.loads((tmp_path / "theory.json").read_text())["config"]["dimension"] == 3
