from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optidel_hf.publishing.figures import Axes, histogram, intervals, line_class, lines, thumbnail, ticks


def vertices(svg: str, name: str) -> list[tuple[float, float]]:
    path = re.search(rf'<path class="{name}" d="M([^"]*?)Z?"', svg)
    assert path
    return [tuple(map(float, point.split(","))) for point in path[1].split("L")]


def test_axes_map_the_corners_of_the_box() -> None:
    axes = Axes((0, 10), (0, 1))
    assert (axes.across(0), axes.across(10)) == (50, 380)
    assert (axes.up(0), axes.up(1)) == (196, 12)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3.1, 0.9, [-3, -2, -1, 0]), (0, 4e4, [0, 1e4, 2e4, 3e4, 4e4])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == expected


def test_histogram_gives_shares_of_each_group() -> None:
    # Two bins; all: half and half. Chosen: everything in the upper one, so it is twice as high.
    svg = histogram(np.array([0.0, 1.0, np.nan]), np.array([1.0, 1.0]), "score", bins=2)
    heights = {name: [196 - y for _, y in vertices(svg, name)] for name in ("all", "chosen")}
    assert heights["all"][1] == pytest.approx(heights["all"][3], abs=0.1)
    assert heights["chosen"][1] == pytest.approx(0, abs=0.1)
    assert heights["chosen"][3] == pytest.approx(2 * heights["all"][3], abs=0.2)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: histogram(np.ones(5), np.zeros(0), "score"),
        lambda: lines({"a": (np.array([1.0]), np.array([2.0]))}, "step", "loss"),
        lambda: intervals([("a", 50.0, None, None)], "mean IoU"),
    ],
)
def test_a_single_value_has_a_place(draw: Callable[[], Any]) -> None:
    assert "nan" not in draw()


def test_names_are_escaped() -> None:
    drawn = intervals([("<b>", 50.0, 40.0, 60.0)], "mean IoU") + lines({"<i>": (np.arange(2), np.arange(2))}, "x", "y")
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert "&lt;b&gt;" in drawn


def test_lines_beyond_the_colours_are_dashed() -> None:
    assert [line_class(number) for number in (0, 7, 8)] == ["c0", "c7", "c0 again"]


def test_thumbnail_is_a_small_jpeg_that_keeps_the_aspect() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(buffer, "PNG")
    uri = thumbnail({"bytes": buffer.getvalue(), "path": None}, 100)
    header, data = uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (header, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (100, 50))
