from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from simulated import results_table

from optidel_hf.drawing import PAPER
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.testbed_map import COLOURS, NO_INTERVAL, contrasts, map_figure, verdict


NONE = float("nan")
ABOVE, LEVEL, BELOW = COLOURS


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, seeds=5, images=40)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.01, 0.03), ABOVE), ((-0.03, -0.01), BELOW), ((-0.01, 0.03), LEVEL), ((NONE, NONE), NO_INTERVAL)],
)
def test_the_interval_decides(ends, expected):
    assert verdict(interval(*ends)) == expected


def test_contrasts_of_results_have_the_sign_that_was_put_there():
    better = {"full": 0.60, "random_images": 0.65, "optidel": 0.72}
    worse = {"full": 0.72, "random_images": 0.65, "optidel": 0.60}
    small = {"seeds": 3, "images": 20, "modes": ("probe",)}
    found = contrasts({(20, 0.2): results_table(better, **small), (1, 0.0): results_table(worse, **small)})
    assert list(found) == ["optidel minus random_images, probed", "optidel minus full, probed"]
    for intervals in found.values():
        assert {cell: verdict(one) for cell, one in intervals.items()} == {(20, 0.2): ABOVE, (1, 0.0): BELOW}


def test_the_test_part_is_not_read():
    small = {"seeds": 2, "images": 10, "modes": ("probe",)}
    levels = {"full": 0.6, "random_images": 0.65, "optidel": 0.7}
    both, validation = (
        results_table(levels, **small, splits=parts) for parts in (("validation", "test"), ("validation",))
    )
    assert contrasts({(1, 0.0): both}) == contrasts({(1, 0.0): validation})


def test_an_arm_that_was_not_run_leaves_its_cell_out():
    small = {"seeds": 2, "images": 10, "modes": ("probe",)}
    found = contrasts({(1, 0.0): results_table({"full": 0.6, "optidel": 0.7}, **small)})
    assert list(found) == ["optidel minus full, probed"]


def cells(axes: Axes) -> dict[tuple[float, float], str]:
    """The verdict that a cell's colour says, by the cell's middle."""
    verdicts = {to_rgba(colour): name for name, colour in COLOURS.items()}
    return {tuple(patch.get_center().tolist()): verdicts[patch.get_facecolor()] for patch in axes.patches}


def test_cells_lie_and_look_as_their_difference():
    first = {(1, 0.0): interval(-0.03, -0.01), (1, 0.2): interval(-0.01, 0.01), (20, 0.2): interval(0.01, 0.05)}
    second = {(1, 0.0): interval(0.01, 0.05)}
    panels = map_figure({"optidel minus random_images": first, "optidel minus full": second}).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["optidel minus random_images", "optidel minus full"]
    assert [cells(axes) for axes in panels] == [{(0, 0): BELOW, (0, 1): LEVEL, (1, 1): ABOVE}, {(0, 0): ABOVE}]
    assert [name.get_text() for name in panels[0].get_xticklabels()] == ["no near copies", "20 near copies"]
    assert [name.get_text() for name in panels[0].get_yticklabels()] == ["0 % junk", "20 % junk"]


def test_a_cell_without_headroom_is_marked():
    found = {"optidel minus random_images": {(1, 0.0): interval(0.01, 0.05), (5, 0.0): interval(0.02, 0.04)}}
    (axes,) = map_figure(found, {(5, 0.0)}).axes
    words = [text.get_text() for text in axes.texts]
    assert words == ["+3.0", "+1.0 to +5.0\n5 seeds", "+3.0", "+2.0 to +4.0\n5 seeds, no headroom"]


def test_a_cell_of_one_seed_is_blank_and_says_so():
    one_seed = Interval(0.02, NONE, NONE, seeds=1, images=40)
    (axes,) = map_figure({"optidel minus random_images": {(1, 0.0): one_seed}}).axes
    assert [text.get_text() for text in axes.texts] == ["+2.0", "no interval\n1 seed, no claims"]
    assert [patch.get_facecolor() for patch in axes.patches] == [to_rgba(PAPER)]
