from __future__ import annotations

import pytest
from PIL import Image, ImageColor
from simulated import results_table

from optidel_hf.drawing import PAPER, SCALE
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.testbed_map import (
    CELL_HEIGHT,
    CELL_WIDTH,
    COLOURS,
    LEFT,
    TITLE,
    TOP,
    contrasts,
    draw_map,
    panel_size,
    verdict,
)


NONE = float("nan")
ABOVE, LEVEL, BELOW = COLOURS


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, seeds=5, images=40)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.01, 0.03), ABOVE), ((-0.03, -0.01), BELOW), ((-0.01, 0.03), LEVEL), ((NONE, NONE), LEVEL)],
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


def test_cells_lie_and_look_as_their_difference(tmp_path):
    first = {(1, 0.0): interval(-0.03, -0.01), (1, 0.2): interval(-0.01, 0.01), (20, 0.2): interval(0.01, 0.05)}
    second = {(1, 0.0): interval(0.01, 0.05)}
    draw_map(tmp_path / "map.png", {"optidel minus random_images": first, "optidel minus full": second})
    picture = Image.open(tmp_path / "map.png")

    def colour(panel, column, row):
        left = panel * panel_size(2, 2)[0] + LEFT + column * CELL_WIDTH
        return picture.getpixel(((left + 4) * SCALE, (TOP + TITLE + row * CELL_HEIGHT + 4) * SCALE))

    expected = {(0, 0, 0): LEVEL, (0, 1, 0): ABOVE, (0, 0, 1): BELOW, (0, 1, 1): None, (1, 0, 1): ABOVE}
    assert {place: colour(*place) for place in expected} == {
        place: ImageColor.getrgb(COLOURS.get(name, PAPER)) for place, name in expected.items()
    }


def test_a_cell_without_headroom_is_marked(tmp_path):
    found = {"optidel minus random_images": {(1, 0.0): interval(0.01, 0.05), (5, 0.0): interval(0.01, 0.05)}}
    draw_map(tmp_path / "map.png", found, {(5, 0.0)})
    picture = Image.open(tmp_path / "map.png")
    top, left = (TOP + TITLE) * SCALE, LEFT * SCALE
    cells = [
        picture.crop((x, top, x + (CELL_WIDTH - 2) * SCALE, top + (CELL_HEIGHT - 2) * SCALE))
        for x in (left, left + CELL_WIDTH * SCALE)
    ]
    note = 44 * SCALE
    above = [cell.crop((0, 0, cell.width, note)).tobytes() for cell in cells]
    assert above[0] == above[1]
    assert cells[0].tobytes() != cells[1].tobytes()
