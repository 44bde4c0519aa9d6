"""The theory's figure: every strategy is drawn, where its error is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from optidel_hf.theory import figure
from optidel_hf.theory.figure import draw_theory
from optidel_hf.theory.study import TheoryConfig, run_study


CONFIG = TheoryConfig(dimension=10, ratios=[20], smallest_fraction=0.1, fractions=3, probe_angle=0, draws=3)


@pytest.fixture(scope="module")
def students():
    return run_study(CONFIG)


def test_a_figure_is_written_whole(tmp_path, students):
    assert draw_theory(tmp_path / "theory.png", CONFIG, students) is students
    assert [path.name for path in tmp_path.iterdir()] == ["theory.png"]
    picture = Image.open(tmp_path / "theory.png")
    assert picture.size == (3 * 330 * 2, (64 + 260) * 2)


def test_points_lie_at_their_errors(tmp_path, students, monkeypatch):
    monkeypatch.setattr(figure, "saddle_point_errors", lambda strategy, ratio, kept, angle: np.full(len(kept), 0.001))
    students.weights[:] = students.teachers[None, :, None]
    students.weights[0, :, 0] = 0.0
    students.weights[0, :, 0, :, 1] = 1.0  # at a right angle to the teacher: an error of one half
    draw_theory(tmp_path / "theory.png", CONFIG, students)
    pixels = np.asarray(Image.open(tmp_path / "theory.png"))
    # The axis runs from 0.0006 to 0.6 over 194 units that begin 40 above the panel's end.
    up = np.log(0.5 / 0.0006) / np.log(0.6 / 0.0006) * 194
    assert tuple(pixels[round(2 * (64 + 260 - 40 - up)), 2 * 56]) == (0xC8, 0x40, 0x1C)
