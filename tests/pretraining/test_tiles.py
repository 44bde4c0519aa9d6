"""Tile-aware augmentation against plain loops with Pillow over single tiles, and what it may not change or forget."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ViTConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from optidel_hf.errors import UserError
from optidel_hf.pretraining.batches import Batches
from optidel_hf.pretraining.draws import Augmentation, draw, sample_order
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.residency import place
from optidel_hf.pretraining.stored import StoredImages, open_images
from optidel_hf.pretraining.tiles import take_tiles
from optidel_hf.pretraining.trainer import Pretrainer

from .test_augmentation import smooth
from .test_stored import archive, pictures, png
from .tiny import tiny_config


SEED, BATCH = 3, 12
CPU = torch.device("cpu")
TILED = {"tile_augmentation": True, "tiles_per_mosaic": 4}


def _views(images: torch.Tensor, augmentation: Augmentation, size: int, steps: int) -> list[torch.Tensor]:
    """The views `(V, B, 3, T, T)` of the first steps, in 0 to 255."""
    pool = place(images, "device", CPU, SEED, tiles=augmentation.tiles)
    model = ViTConfig(image_size=size, patch_size=size // 2)
    batches = Batches(pool, augmentation, model, seed=SEED, batch_size=BATCH)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return [255 * (torch.stack(views) * std + mean) for views, _ in itertools.islice(batches.after(0), steps)]


def _cut(channels: list[Image.Image], box: np.ndarray, flip: bool, size: int) -> np.ndarray:
    """A crop of a tile, channel by channel in Pillow's float mode, `(3, size, size)`."""
    x, y, width, height = box * channels[0].width
    cut = {"resample": Image.Resampling.BICUBIC, "box": (x, y, x + width, y + height)}
    resized = np.stack([np.asarray(channel.resize((size, size), **cut)) for channel in channels])
    return resized[..., ::-1] if flip else resized


def _plain_view(images: torch.Tensor, draws: Any, augmentation: Augmentation, i: int, v: int, size: int) -> np.ndarray:
    """View `v` of the batch's image `i` in the first step, by loops over tiles that Pillow cuts from the mosaics."""
    tiles, side = augmentation.tiles, math.isqrt(augmentation.tiles)
    width = images.shape[-1] // side
    view = np.zeros((3, size, size), dtype=np.float32)
    for m, number in enumerate(sample_order(SEED, range(i * tiles, (i + 1) * tiles), len(images) * tiles)):
        mosaic, (row, column) = images[number // tiles], divmod(int(number) % tiles, side)
        corner = column * width, row * width, (column + 1) * width, (row + 1) * width
        channels = [Image.fromarray(channel.float().numpy()).crop(corner) for channel in mosaic]
        box, flip = draws.box[i, v, m].double().numpy(), bool(draws.flip[i, v, m])
        if draws.alone[i]:
            return _cut(channels, box, flip, size)
        part = size // side
        at = slice(m // side * part, (m // side + 1) * part), slice(m % side * part, (m % side + 1) * part)
        view[:, at[0], at[1]] = _cut(channels, box, flip, part)
    return view


@pytest.mark.parametrize("tiles", [4, 9])
@pytest.mark.parametrize("views", [1, 2])
def test_views_equal_pillow_tile_by_tile(tiles: int, views: int) -> None:
    augmentation, size = Augmentation(views=views, min_scale=0.2, tiles=tiles), 48
    images = smooth(7, 36)
    (found,) = _views(images, augmentation, size, steps=1)
    draws = draw(SEED, 0, 0, BATCH, augmentation=augmentation, n_tokens=1)
    assert 0 < draws.alone.sum() < BATCH
    assert draws.flip.any()
    for i in range(BATCH):
        for v in range(views):
            expected = _plain_view(images, draws, augmentation, i, v, size)
            np.testing.assert_allclose(found[v, i], expected.clip(0, 255), atol=0.01)


def test_an_epoch_shows_no_tile_twice_and_pairs_them_anew() -> None:
    # Tile number `i` is of the grey `5 i`, which no crop changes.
    images = (5 * torch.arange(48, dtype=torch.uint8)).view(12, 1, 2, 1, 2, 1).expand(12, 3, 2, 8, 2, 8)
    images = images.reshape(12, 3, 16, 16)
    augmentation = Augmentation(views=2, min_scale=0.08, tiles=4)
    epochs = _views(images, augmentation, 16, steps=20)
    pairs, alone = [], 0
    for views in epochs:
        greys = views[:, :, 0, 3::8, 3::8].flatten(2)  # (V, B, M)
        assert torch.equal(*greys.round().unbind(0))  # both views show the same tiles
        shown = [sorted({round(grey / 5) for grey in tiles}) for tiles in greys[0].tolist()]
        assert {len(tiles) for tiles in shown} == {1, 4}
        assert len(set(itertools.chain(*shown))) == len(list(itertools.chain(*shown)))
        pairs += [tuple(tiles) for tiles in shown if len(tiles) == 4]
        alone += sum(len(tiles) == 1 for tiles in shown)
    assert abs(alone / (20 * 12) - 0.5) < 0.1
    assert len(set(pairs)) == len(pairs)


def test_a_pool_of_tiles_is_the_same_wherever_it_lies() -> None:
    stored = StoredImages(_table([2]), "image", 24)
    device, stream = (place(stored, where, CPU, SEED, 2, tiles=4) for where in ("device", "stream"))
    assert (device.n_images, device.fingerprint) == (stream.n_images, stream.fingerprint) == (24, stored.fingerprint)
    for mine, its in itertools.islice(
        zip(*(pool.batches(itertools.repeat(range(20, 28))) for pool in (device, stream))), 1
    ):
        assert mine.shape == (8, 3, 12, 12)
        assert torch.equal(mine, its)
    images = stored.read_all()
    assert torch.equal(take_tiles(images, torch.tensor([6, 23]), 4)[0], images[1, :, 12:, :12])
    assert torch.equal(take_tiles(images, torch.tensor([6, 23]), 4)[1], images[5, :, 12:, 12:])


def _table(sides: list[int], count: int = 6) -> Dataset:
    """Images with the lineage that a curated dataset has, of grids with these sides in turn."""
    values = [png(array) for array in pictures(count, 24, 24)]
    tiles = [[{"source": f"frame-{row}"}] * sides[row % len(sides)] ** 2 for row in range(count)]
    rows = Dataset.from_dict({"image": values, "tiles": tiles})
    return rows.cast_column("image", datasets.Image(decode=False))


def _losses(out: Path, images: Any, **changes: Any) -> list[float]:
    pretrainer = Pretrainer(tiny_config(out, **{"steps": 6, "checkpoint_every": 3, **changes}), images)
    pretrainer.train()
    pretrainer.save()
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl")]


def test_the_grid_is_the_datasets_own_and_a_resumed_run_the_straight_one(tmp_path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    expected = _losses(straight, StoredImages(_table([2]), "image", 32), tile_augmentation=True)
    record = json.loads((straight / "pretrain_config.json").read_text())
    assert (record["tiles_per_mosaic"], record["augmentation"]["tiles"], record["n_images"]) == (4, 4, 6)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000006")
    stored = StoredImages(_table([2]), "image", 32)
    assert _losses(resumed, stored, residency="stream", **TILED) == expected
    assert _losses(tmp_path / "whole", stored) != expected


def test_a_loss_that_is_not_finite_names_the_mosaics_that_were_shown(images, tmp_path) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, **TILED), images)
    assert pretrainer.batches.images_of(0) == [number // 4 for number in sample_order(0, range(64), 160)]
    assert pretrainer.batches.n_images == len(images)


def test_what_has_no_known_grid_is_refused(images, tmp_path) -> None:
    def refused(pool: Any, sentence: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=sentence):
            Pretrainer(tiny_config(tmp_path, tile_augmentation=True, **changes), pool)

    bare = StoredImages(_table([2]).remove_columns("tiles"), "image", 32)
    archive(tmp_path / "a.tar", pictures(2))
    refused(images, "a tensor does not tell how many tiles it has; give --tiles_per_mosaic")
    refused(bare, "the dataset has no column 'tiles'; give --tiles_per_mosaic")
    refused(StoredImages(_table([2, 3]), "image", 32), "images have 4 to 9 tiles, not all as many")
    refused(open_images(str(tmp_path / "a.tar"), size=32), "give a table, no stream", tiles_per_mosaic=4)
    refused(images, "tiles_per_mosaic is 5: a mosaic is a square grid", tiles_per_mosaic=5)
    refused(images, "An image of 40 px has no 3 whole tiles along a side", tiles_per_mosaic=9)
    refused(images[..., :36, :36], "An image of 32 px has no 3 whole tiles along a side", tiles_per_mosaic=9)
