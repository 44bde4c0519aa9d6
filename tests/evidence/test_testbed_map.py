from __future__ import annotations

from typing import NamedTuple

import pytest
from PIL import Image, ImageColor

from optidel_hf.evidence.testbed_map import (
    ABOVE,
    BELOW,
    CELL_HEIGHT,
    CELL_WIDTH,
    LEFT,
    LEVEL,
    PAPER,
    SCALE,
    TOP,
    draw_map,
    verdict,
)


NONE = float("nan")


class Difference(NamedTuple):
    difference: float
    low: float
    high: float


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.01, 0.03), "above"), ((-0.03, -0.01), "below"), ((-0.01, 0.03), "level"), ((NONE, NONE), "level")],
)
def test_the_interval_decides(interval, expected):
    assert verdict(Difference(0.02, *interval)) == expected


def test_cells_lie_and_look_as_their_difference(tmp_path):
    found = {
        (1, 0.0): Difference(-0.02, -0.03, -0.01),
        (1, 0.2): Difference(0.0, -0.01, 0.01),
        (20, 0.2): Difference(0.03, 0.01, 0.05),
    }
    draw_map(tmp_path / "map.png", {"optidel minus random": found, "optidel minus full": {(1, 0.0): found[20, 0.2]}})
    picture = Image.open(tmp_path / "map.png")

    def colour(panel, column, row):
        left = panel * (LEFT + 2 * CELL_WIDTH) + LEFT + column * CELL_WIDTH
        return picture.getpixel(((left + 4) * SCALE, (TOP + row * CELL_HEIGHT + 4) * SCALE))

    expected = {(0, 0, 0): LEVEL, (0, 1, 0): ABOVE, (0, 0, 1): BELOW, (0, 1, 1): PAPER, (1, 0, 1): ABOVE}
    assert {place: colour(*place) for place in expected} == {
        place: ImageColor.getrgb(name) for place, name in expected.items()
    }
