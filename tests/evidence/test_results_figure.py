"""The picture of a grid: marks lie where their arm is, and a part of a grid is drawn as well."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from simulated import results_table

from optidel_hf.evidence.comparison import Judged
from optidel_hf.evidence.figure import draw_results, number_places


ARMS = {"full": 0.7, "random_images": 0.65, "optidel": 0.8}
RED, BLUE, WHITE = (0xC8, 0x40, 0x1C), (0x1F, 0x6F, 0xB4), (255, 255, 255)


@pytest.fixture(scope="module")
def results() -> pa.Table:
    return results_table(ARMS, modes=["probe"])


def drawn(results: pa.Table, folder) -> np.ndarray:
    draw_results(results, folder / "results.png")
    assert [path.name for path in folder.iterdir()] == ["results.png"]
    return np.asarray(Image.open(folder / "results.png"))


@pytest.mark.parametrize(("seeds", "inside"), [(5, RED), (2, WHITE)])
def test_an_arm_lies_at_its_difference_and_is_hollow_where_nothing_is_claimed(tmp_path, results, seeds, inside):
    part = results.filter(pc.less(results["seed"], seeds))
    judged = Judged.of(part, "validation")
    full, optidel = (judged.compare(arm, "random_images", "probe").interval for arm in ("full", "optidel"))
    low, high = min(0.0, full.low), max(full.high, optidel.high)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    # The right column goes from 400 to 596 units; the third row's middle is 2.5 x 24 units below the first row's top.
    across = 400 + (optidel.difference - low) / (high - low) * 196
    pixels = drawn(part, tmp_path)
    assert tuple(pixels[2 * (66 + 34 + 60), round(2 * across)]) == inside


def test_several_budgets_have_a_panel_more(tmp_path, results):
    assert drawn(results, tmp_path).shape == (2 * (66 + 34 + 3 * 24 + 44 + 250), 2 * 620, 3)
    other = results_table({"optidel": 0.8}, seeds=2, modes=["probe"], budget=0.2)
    assert drawn(pa.concat_tables([results, other]), tmp_path).shape[0] == 2 * (66 + 34 + 3 * 24 + 44 + 2 * 250)


def test_several_checkpoints_have_a_panel_more(tmp_path):
    arms = {"none": 0.6, "full": 0.8}
    results = results_table(arms, modes=["probe"], checkpoints=4)
    judged = Judged.of(results, "validation")
    _, steps, values = judged.curve(judged.find("full", "probe"))
    assert steps.tolist() == [100, 200, 300, 400]
    height = 66 + 34 + 2 * 24 + 44 + 2 * 250
    pixels = drawn(results, tmp_path)
    assert pixels.shape[0] == 2 * height
    # Means of checkpoints span the panel but for a twentieth at either end; the first lies log 1.15 from its left.
    means = values.mean(axis=0)
    up = (means - means[0] + 0.05 * np.ptp(means)) / (1.1 * np.ptp(means))
    right = np.log(1.15 * steps / steps[0]) / np.log(1.15**2 * 4)
    top, bottom = height - 250 + 12, height - 44
    for x, y in zip(56 + right * (620 - 24 - 14 - 56), bottom - up * (bottom - top)):
        assert tuple(pixels[round(2 * y), round(2 * x)]) == BLUE
    one_short = results.filter(pc.or_(pc.not_equal(results["step"], 100), pc.not_equal(results["seed"], 0)))
    fewer = drawn(one_short, tmp_path)  # four seeds have every checkpoint
    assert tuple(fewer[round(2 * (bottom - up[0] * (bottom - top))), round(2 * (56 + right[0] * 526))]) != BLUE


def test_a_part_of_a_grid_is_drawn(tmp_path, results):
    one = results.filter(pc.and_(pc.equal(results["seed"], 0), pc.not_equal(results["arm"], "random_images")))
    pixels = drawn(one.drop_columns(["pretrain_seconds", "curation_seconds"]), tmp_path)
    assert (pixels == RED).all(axis=-1).any()
    nothing = drawn(results.slice(0, 0), tmp_path)
    assert not (nothing == RED).all(axis=-1).any()


def test_a_number_stands_beside_its_mark_and_covers_neither_marks_nor_numbers():
    assert number_places([(100.0, 50.0)]) == [(115.0, 50.0)]
    marks = [tuple(mark) for mark in np.random.default_rng(0).normal((300.0, 120.0), (40.0, 15.0), (24, 2)).tolist()]
    places = number_places(marks)
    for i, place in enumerate(places):
        others = np.array(marks + places[:i] + places[i + 1 :]) - place
        assert ((np.abs(others[:, 0]) >= 15) | (np.abs(others[:, 1]) >= 11)).all()
        assert np.hypot(*np.subtract(place, marks[i])) < 80
