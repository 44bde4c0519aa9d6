"""The downstream set: pairing, splits, resizing, and every way in which a folder can be wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from optidel_hf.errors import UserError
from optidel_hf.evaluation.downstream import list_pairs, load_downstream, shared_image


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_folder_is_read_at_full_size(small_folder: Path) -> None:
    data = load_downstream(str(small_folder), "train", image_size=32)
    assert data.names == ["train_a", "train_b"]
    for row, name in enumerate(data.names):
        image = np.asarray(PILImage.open(small_folder / "images" / f"{name}.png"))
        mask = np.asarray(PILImage.open(small_folder / "masks" / f"{name}.png"))
        assert np.array_equal(data.images[row].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(data.masks[row].numpy(), mask // 255)


def test_images_are_squashed_and_masks_stay_binary(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    wide = np.zeros((20, 40), dtype=np.uint8)
    wide[:, 20:] = 255
    PILImage.fromarray(wide).save(tmp_path / "images" / "test_x.png")
    PILImage.fromarray(wide).save(tmp_path / "masks" / "test_x.png")
    data = load_downstream(str(tmp_path), "test", image_size=16)
    assert data.images.shape == (1, 3, 16, 16)
    assert data.masks[0, :, :8].sum() == 0
    assert data.masks[0, :, 8:].min() == data.masks.max() == 1


def test_jpeg_masks_are_cut_at_half(squares_folder: Path) -> None:
    masks = load_downstream(str(squares_folder), "test", image_size=32).masks
    assert len(masks) == 8
    assert set(masks.unique().tolist()) == {0, 1}
    assert masks.sum(dim=(1, 2)).float() == pytest.approx([14**2] * 8, rel=0.1)


def test_excluded_names_are_left_out(small_folder: Path) -> None:
    assert load_downstream(str(small_folder), "train", 32, exclude=["train_a"]).names == ["train_b"]
    with pytest.raises(UserError, match="no image is left in split 'test'"):
        load_downstream(str(small_folder), "test", 32, exclude=["test_c"])


def test_hash_knows_names_and_pixels(small_folder: Path) -> None:
    data = load_downstream(str(small_folder), "train", image_size=32)
    before = data.sha256()
    assert load_downstream(str(small_folder), "train", image_size=32).sha256() == before
    data.masks[0, 0, 0] = 1 - data.masks[0, 0, 0]
    assert data.sha256() != before


def test_missing_mask_names_the_image(small_folder: Path) -> None:
    (small_folder / "masks" / "train_b.png").unlink()
    with pytest.raises(UserError, match="split 'train': 'train_b' has no mask; add it or exclude 'train_b'"):
        load_downstream(str(small_folder), "train", 32)
    assert load_downstream(str(small_folder), "train", 32, exclude=["train_b"]).names == ["train_a"]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(small_folder: Path, part: str) -> None:
    twin = small_folder / part / "train_a.bmp"
    PILImage.new("L", (32, 32)).save(twin)
    with pytest.raises(UserError, match=r"train_a.bmp and train_a.png are both called 'train_a': remove one"):
        load_downstream(str(small_folder), "train", 32)
    assert len(load_downstream(str(small_folder), "test", 32).names) == 1


def test_unknown_split_names_those_that_exist(small_folder: Path) -> None:
    with pytest.raises(UserError, match=r"none of 3 images is of split 'val'.*'train_', 'test_'"):
        load_downstream(str(small_folder), "val", 32)


def test_no_images_and_no_masks_folder(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "images").mkdir()
    with pytest.raises(UserError, match=r"masks: no such folder"):
        load_downstream(str(empty), "train", 32)
    (empty / "masks").mkdir()
    with pytest.raises(UserError, match=r"none of 0 images"):
        load_downstream(str(empty), "train", 32)


def test_broken_image_is_named(small_folder: Path) -> None:
    (small_folder / "images" / "train_a.png").write_bytes(b"no image")
    (small_folder / "masks" / "train_b.png").write_bytes(b"no mask")
    named = r"2 cannot be used, first the image of 'train_a' \(not an image .* by --exclude train_a train_b$"
    with pytest.raises(UserError, match=named):
        load_downstream(str(small_folder), "train", 32)


def test_turned_mask_is_refused(small_folder: Path) -> None:
    PILImage.fromarray(np.full((32, 64), 255, np.uint8)).save(small_folder / "masks" / "test_c.png")
    with pytest.raises(UserError, match="'test_c', whose image is 32x32 but its mask 64x32"):
        load_downstream(str(small_folder), "test", 32)


def test_masks_that_are_numbered_among_white_ones_are_told(small_folder: Path, caplog) -> None:
    with PILImage.open(small_folder / "masks" / "train_a.png") as mask:
        levels = np.ones_like(np.asarray(mask.convert("L")))
    PILImage.fromarray(levels).save(small_folder / "masks" / "train_a.png")
    load_downstream(str(small_folder), "train", 32)
    assert "1 masks are not black but have no pixel above 127" in caplog.text


def test_masks_of_zeros_and_ones_are_refused(small_folder: Path) -> None:
    for path in (small_folder / "masks").iterdir():
        PILImage.fromarray(np.asarray(PILImage.open(path)) // 255).save(path)
    with pytest.raises(UserError, match="no mask has a pixel above 127"):
        load_downstream(str(small_folder), "train", 32)


def test_masks_of_several_classes_are_told_to_be_taken_as_one(small_folder: Path, caplog) -> None:
    load_downstream(str(small_folder), "train", 32)
    assert "black" not in caplog.text
    path = small_folder / "masks" / "train_a.png"
    classes = np.asarray(PILImage.open(path)).copy()
    classes[:16] = np.where(classes[:16] > 0, 170, 85)
    PILImage.fromarray(classes).save(path)
    masks = load_downstream(str(small_folder), "train", 32).masks
    assert np.array_equal(masks[0].numpy(), classes > 127)
    assert "split 'train': 25 % of the masks' pixels are neither black (0) nor white (255)" in caplog.text


def test_masks_of_class_numbers_with_a_white_border_are_told(small_folder: Path, caplog) -> None:
    for path in (small_folder / "masks").glob("train_*"):
        numbers = np.full((32, 32), 3, np.uint8)
        numbers[:2] = 255  # what other tools leave out of a loss
        PILImage.fromarray(numbers).save(path)
    load_downstream(str(small_folder), "train", 32)
    assert "94 % of the masks' pixels are neither black (0) nor white (255)" in caplog.text


def test_transparent_parts_of_a_mask_are_no_object(small_folder: Path) -> None:
    expected = load_downstream(str(small_folder), "train", 32).masks
    for path in (small_folder / "masks").glob("train_*"):
        white = PILImage.new("L", (32, 32), 255)
        white.putalpha(PILImage.open(path).convert("L"))
        white.save(path)
    assert torch.equal(load_downstream(str(small_folder), "train", 32).masks, expected)


def table(path: Path, masks: list[bytes | None]) -> str:
    black = png(np.zeros((16, 16, 3), np.uint8))
    images = [{"bytes": black, "path": f"frame_{row}.png"} for row in range(len(masks))]
    columns = {"picture": images, "truth": [mask and {"bytes": mask, "path": None} for mask in masks]}
    features = Features({"picture": Image(decode=False), "truth": Image(decode=False)})
    Dataset.from_dict(columns, features=features).cast(Features({"picture": Image(), "truth": Image()})).to_parquet(
        path
    )
    return str(path)


def test_parquet_with_named_columns(tmp_path: Path) -> None:
    file = table(tmp_path / "set.parquet", [png(np.full((16, 16), 255 * row, np.uint8)) for row in (0, 1)])
    data = load_downstream(file, "train", 16, image_column="picture", mask_column="truth")
    assert data.names == ["frame_0", "frame_1"]
    assert data.masks.sum(dim=(1, 2)).tolist() == [0, 256]
    with pytest.raises(UserError, match="mask"):
        load_downstream(file, "train", 16, image_column="picture")


def test_a_folder_of_the_hubs_parquet_files(tmp_path: Path) -> None:
    for split, rows in (("train", 3), ("test", 2)):
        table(tmp_path / f"{split}-00000-of-00001.parquet", [png(np.full((16, 16), 255, np.uint8))] * rows)
    for split, rows in (("train", 3), ("test", 2)):
        data = load_downstream(str(tmp_path), split, 16, image_column="picture", mask_column="truth")
        assert data.names == [f"frame_{row}" for row in range(rows)]


def test_parquet_row_without_a_mask_is_named(tmp_path: Path) -> None:
    file = table(tmp_path / "set.parquet", [png(np.full((16, 16), 255, np.uint8)), None])
    with pytest.raises(UserError, match="'frame_1' has no mask"):
        load_downstream(file, "train", 16, image_column="picture", mask_column="truth")


@pytest.mark.parametrize(("source", "kind"), [("a/b#0", "string"), (7, "int64")])
def test_rows_without_a_file_name_are_named_by_source(tmp_path: Path, source: Any, kind: str) -> None:
    both = {"bytes": png(np.full((16, 16), 255, np.uint8)), "path": None}
    features = Features({"image": Image(), "mask": Image(), "source": Value(kind)})
    Dataset.from_dict({"image": [both], "mask": [both], "source": [source]}, features=features).to_parquet(
        tmp_path / "x.parquet"
    )
    assert load_downstream(str(tmp_path / "x.parquet"), "train", 16).names == [str(source)]


def test_images_are_resized_by_bicubic_and_masks_by_nearest(tmp_path: Path) -> None:
    rng, size = np.random.default_rng(0), (16, 16)
    image = PILImage.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    mask = PILImage.fromarray(255 * rng.integers(0, 2, (40, 50), dtype=np.uint8))
    for part, picture in (("images", image), ("masks", mask)):
        (tmp_path / part).mkdir()
        picture.save(tmp_path / part / "test_x.png")
    data = load_downstream(str(tmp_path), "test", image_size=16)
    expected = np.asarray(image.resize(size, PILImage.Resampling.BICUBIC))
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(255 * data.masks[0].numpy(), np.asarray(mask.resize(size, PILImage.Resampling.NEAREST)))


@pytest.mark.parametrize(("width", "refused"), [(33, False), (35, True)])
def test_a_mask_may_be_a_twentieth_wider(small_folder: Path, width: int, refused: bool) -> None:
    PILImage.fromarray(np.full((32, width), 255, np.uint8)).save(small_folder / "masks" / "test_c.png")
    if refused:
        with pytest.raises(UserError, match=f"image is 32x32 but its mask {width}x32"):
            load_downstream(str(small_folder), "test", 32)
    else:
        assert len(load_downstream(str(small_folder), "test", 32)) == 1


def test_of_tables_the_same_bytes_under_the_same_name_are_the_same_image(tmp_path: Path) -> None:
    def split(name: str, level: int, path: str = "frame_0.png") -> None:
        image = {"bytes": png(np.full((16, 16, 3), level, np.uint8)), "path": path}
        features = Features({"image": Image(), "mask": Image()})
        table = Dataset.from_dict({"image": [image], "mask": [image]}, features=features)
        table.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")

    for name, level in (("train", 200), ("test", 200), ("validation", 201)):
        split(name, level)
    train, test, other = (list_pairs(str(tmp_path), name) for name in ("train", "test", "validation"))
    assert shared_image(train, test) == "frame_0"
    assert shared_image(train, other) is None  # as frames of two videos are called


def test_transparent_parts_of_an_image_are_white(small_folder: Path) -> None:
    picture = PILImage.new("RGBA", (32, 32), (10, 20, 30, 255))
    picture.paste((0, 0, 0, 0), (0, 0, 32, 16))
    picture.save(small_folder / "images" / "test_c.png")
    image = load_downstream(str(small_folder), "test", 32).images[0]
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 31, 0].tolist() == [10, 20, 30]
