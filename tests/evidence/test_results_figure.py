"""The picture of a grid: marks lie where their arm is, and a part of a grid is drawn as well."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from simulated import results_table

from optidel_hf.drawing import PAPER, encode_figure
from optidel_hf.evidence.comparison import Judged
from optidel_hf.evidence.figure import COLOURS, POOL, number_places, results_figure


ARMS = {"full": 0.7, "random_images": 0.65, "optidel": 0.8}


@pytest.fixture(scope="module")
def results() -> pa.Table:
    return results_table(ARMS, modes=["probe"])


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_label() == f"probe/{name}")


def panels(figure: Figure) -> list[str]:
    return [str(axes.get_label()).removeprefix("probe/") for axes in figure.axes]


def marks(axes: Axes, arm: str) -> np.ndarray:
    """Where an arm's discs and rings lie, shape `(n, 2)`."""
    return np.concatenate(
        [line.get_xydata() for line in axes.lines if (line.get_gid(), line.get_marker()) == (arm, "o")]
    )


@pytest.mark.parametrize("seeds", [5, 2])
def test_an_arm_lies_at_its_difference_and_is_a_ring_where_nothing_is_claimed(results, seeds):
    part = results.filter(pc.less(results["seed"], seeds))
    figure = results_figure(part)
    found = Judged.of(part, "validation").compare("optidel", "random_images", "probe").interval
    axes = panel(figure, "differences")
    assert [name.get_text() for name in panel(figure, "levels").get_yticklabels()] == [
        "1  full",
        "2  random_images",
        "3  optidel",
    ]
    np.testing.assert_allclose(marks(axes, "optidel"), [[100 * found.difference, 2]])
    assert len(marks(axes, "full")) == 1
    bars = [line.get_xdata() for line in axes.lines if line.get_color() == COLOURS["optidel"] and not line.get_gid()]
    np.testing.assert_allclose(bars, [[100 * found.low, 100 * found.high]])
    (mark,) = (line for line in axes.lines if line.get_gid() == "optidel")
    assert mark.get_color() == (COLOURS["optidel"] if seeds == 5 else PAPER)


def test_levels_have_a_line_at_the_whole_pool_and_costs_add_up(results):
    figure = results_figure(results)
    level = Judged.of(results, "validation").find("full", "probe").interval().difference
    assert any(np.allclose(line.get_xdata(), 100 * level) for line in panel(figure, "levels").lines)
    row = results.filter(pc.equal(results["arm"], "optidel"))
    seconds = sum(pc.mean(row[name]).as_py() for name in ("pretrain_seconds", "curation_seconds"))
    np.testing.assert_allclose(marks(panel(figure, "cost"), "optidel")[:, 0], seconds)


def test_several_budgets_have_a_panel_more(results):
    assert panels(results_figure(results)) == ["levels", "differences", "cost"]
    other = results_table({"optidel": 0.8}, seeds=2, modes=["probe"], budget=0.2)
    figure = results_figure(pa.concat_tables([results, other]))
    assert panels(figure) == ["levels", "differences", "cost", "budget"]
    axes = panel(figure, "budget")
    np.testing.assert_allclose(marks(axes, "optidel")[:, 0], [5, 20])
    (level,) = (line for line in axes.lines if line.get_gid() == "full")
    full = Judged.of(results, "validation").find("full", "probe").interval().difference
    np.testing.assert_allclose(level.get_ydata(), 100 * full, atol=0.05)
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]


def test_several_checkpoints_have_a_panel_more():
    results = results_table({"none": 0.6, "full": 0.8}, modes=["probe"], checkpoints=4)
    judged = Judged.of(results, "validation")
    _, steps, values = judged.curve(judged.find("full", "probe"))
    assert steps.tolist() == [100, 200, 300, 400]
    axes = panel(results_figure(results), "steps")
    np.testing.assert_allclose(marks(axes, "full"), np.stack([steps, 100 * values.mean(axis=0)], axis=1))
    assert {line.get_color() for line in axes.lines} == {POOL}
    one_short = results.filter(pc.or_(pc.not_equal(results["step"], 100), pc.not_equal(results["seed"], 0)))
    fewer = panel(results_figure(one_short), "steps")
    np.testing.assert_allclose(marks(fewer, "full")[:, 1], 100 * values[1:].mean(axis=0))
    assert PAPER in {line.get_color() for line in fewer.lines}  # four seeds have every checkpoint


def test_a_part_of_a_grid_is_drawn(results):
    one = results.filter(pc.and_(pc.equal(results["seed"], 0), pc.not_equal(results["arm"], "random_images")))
    for part in (one.drop_columns(["pretrain_seconds", "curation_seconds"]), results.slice(0, 0)):
        picture = Image.open(io.BytesIO(encode_figure(results_figure(part))))
        assert picture.convert("L").getextrema()[0] < 100


def test_numbers_leave_the_layout_as_it_is(results):
    figure = results_figure(results)
    before = [axes.get_position().bounds for axes in figure.axes]
    figure.draw_without_rendering()
    np.testing.assert_allclose([axes.get_position().bounds for axes in figure.axes], before, atol=1e-6)


def test_a_number_stands_beside_its_mark_and_covers_neither_marks_nor_numbers():
    assert number_places([(100.0, 50.0)]) == [(111.0, 50.0)]
    marks = [tuple(mark) for mark in np.random.default_rng(0).normal((300.0, 120.0), (40.0, 15.0), (24, 2)).tolist()]
    places = number_places(marks)
    for i, place in enumerate(places):
        others = np.array(marks + places[:i] + places[i + 1 :]) - place
        assert ((np.abs(others[:, 0]) >= 11) | (np.abs(others[:, 1]) >= 8)).all()
        assert np.hypot(*np.subtract(place, marks[i])) < 80
