"""Which images may be labelled and which judge: ranges, exclusions, and near-duplicates of the test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_grid import SIDE, write_square, write_squares

from optidel_hf.errors import UserError
from optidel_hf.evaluation.downstream import shared_image
from optidel_hf.evidence.config import ReproduceConfig
from optidel_hf.evidence.labels import judged_part, label_candidates, list_test_pairs


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares")


def protocol(folder: Path, **changes: Any) -> ReproduceConfig:
    return ReproduceConfig(downstream=str(folder), **{"labels": [2], "near_distance": 0, **changes})


def test_by_default_the_splits_are_the_protocol(squares: Path) -> None:
    config = protocol(squares)
    assert label_candidates(config, SIDE).names == [f"train_{i:02d}" for i in range(12)]
    assert judged_part(config, "validation", SIDE).names == [f"validation_{i:02d}" for i in range(3)]
    assert judged_part(config, "test", SIDE).names == [f"test_{i:02d}" for i in range(4)]


def test_ranges_are_inclusive_and_exclusions_hold_in_both_parts(squares: Path) -> None:
    ranges = {"label_range": "train_01:train_04", "test_range": "train_08:train_11"}
    config = protocol(squares, **ranges, exclude=["train_02", "train_09", "test_00"])
    assert label_candidates(config, SIDE).names == ["train_01", "train_03", "train_04"]
    test = ["test_01", "test_02", "test_03", "train_08", "train_10", "train_11"]
    assert judged_part(config, "test", SIDE).names == test
    with pytest.raises(
        UserError, match=r"--exclude train_02\.png: no image of .* has this name; one is called 'test_00'"
    ):
        label_candidates(protocol(squares, exclude=["train_02.png"]), SIDE)


def test_label_candidates_near_a_test_image_are_dropped(squares: Path) -> None:
    ranges = {"label_range": "train_00:train_07", "test_range": "train_08:train_11"}
    for test, label in (("test_02", "train_05"), ("train_09", "train_03")):
        shutil.copy(squares / "images" / f"{test}.png", squares / "images" / f"{label}.png")
    kept = label_candidates(protocol(squares, **ranges), SIDE).names
    assert kept == [f"train_{i:02d}" for i in range(8) if i not in (3, 5)]
    with pytest.raises(UserError, match=r"0 label candidates are left of 8 in split 'train', and 2 are to be"):
        label_candidates(protocol(squares, **ranges, near_distance=256), SIDE)


def test_an_image_cannot_be_label_and_test(squares: Path) -> None:
    with pytest.raises(UserError, match="'train_03' is both a label candidate and a test image"):
        label_candidates(protocol(squares, label_range="train_00:train_05", test_range="train_03:train_11"), SIDE)


def test_an_image_cannot_be_label_and_validation(squares: Path) -> None:
    for i in range(2):
        write_square(squares, f"train_val_{i}", 50 + i)
    with pytest.raises(UserError, match="'train_val_0' is both a label candidate and a validation image"):
        label_candidates(protocol(squares, validation_split="train_val"), SIDE)


def test_rows_of_two_splits_may_share_a_name() -> None:
    rows = [("0001", {"path": "0001.png", "bytes": bytes([i])}, None) for i in range(3)]
    assert shared_image(rows[:2], rows[2:]) is None
    assert shared_image(rows[:2], rows[1:]) == "0001"
    files = [("a", Path("x/a.png"), None), ("a", Path("y/a.png"), None)]
    assert shared_image(files[:1], files[1:]) is None
    assert shared_image(files, files[1:]) == "a"


def test_a_range_without_images_is_refused(squares: Path) -> None:
    with pytest.raises(UserError, match="no image of split 'train' is left between 'train_50' and 'train_60'"):
        label_candidates(protocol(squares, label_range="train_50:train_60"), SIDE)
    with pytest.raises(ValueError, match="label_range is 'train_09': it is FIRST:LAST"):
        protocol(squares, label_range="train_09")


def test_the_name_of_a_test_image_that_cannot_be_read_is_told(squares: Path) -> None:
    write_square(squares, "test_04", 99)
    (squares / "images" / "test_04.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="Image 'test_04' cannot be used"):
        label_candidates(protocol(squares), SIDE)


@pytest.mark.realdata
def test_kvasir_has_698_test_images(realdata: Path) -> None:
    ranges = {"label_range": "train_0000:train_0199", "test_range": "train_0200:train_0799"}
    config = protocol(realdata / "kvasir-seg", **ranges, exclude=["train_0222", "train_0620"])
    assert len(list_test_pairs(config)) == 698
