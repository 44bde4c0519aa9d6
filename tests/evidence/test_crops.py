"""Random crops: the sizes that were asked for, anywhere, and nothing outside an image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from optidel_hf.evidence.crops import crop_shares, random_crops


def whole_images(sizes: list[tuple[int, int]]) -> pa.Table:
    return pa.table(
        {
            "source": [f"{i}.png" for i in range(len(sizes))],
            "group": [f"g{i}" for i in range(len(sizes))],
            "bbox": [[0.0, 0.0, width - 1.0, height - 1.0] for width, height in sizes],
            "crop": [[0, 0, min(size)] for size in sizes],
            "upscale": [32 / min(size) for size in sizes],
        }
    )


def test_shares_are_sides_over_the_shorter_side() -> None:
    tiles = pa.table({"source": ["1.png", "0.png"], "crop": [[3, 4, 30], [0, 0, 25]]})
    assert crop_shares(tiles, whole_images([(100, 50), (60, 90)])).tolist() == [0.5, 0.5]


def test_crops_have_the_shares_asked_for_and_lie_inside() -> None:
    sizes = [(100, 80), (64, 128), (90, 90)]
    shares = np.linspace(0.2, 1.0, 7)
    whole = whole_images(sizes)
    crops = random_crops(whole, shares, seed=0)
    shorter = {f"{i}.png": min(size) for i, size in enumerate(sizes)}
    rows = crops.to_pylist()
    np.testing.assert_allclose(np.sort(crop_shares(crops, whole)), shares, atol=0.5 / 64)
    for row in rows:
        width, height = sizes[int(row["source"][0])]
        x, y, side = row["crop"]
        assert 0 <= x <= width - side
        assert 0 <= y <= height - side
        assert row["bbox"] == [x, y, side - 1, side - 1]
        assert row["upscale"] == np.float32(32 / side)
        assert row["group"] == f"g{row['source'][0]}"
        assert side <= shorter[row["source"]]
    counts = np.unique(crops["source"].to_numpy().astype(str), return_counts=True)[1]
    assert sorted(counts) == [2, 2, 3]  # seven crops of three images: none gives a third before all gave two


def test_crops_are_spread_and_drawn_by_the_seed() -> None:
    whole, shares = whole_images([(200, 100)] * 4), np.full(400, 0.5)
    crops = random_crops(whole, shares, seed=1)
    corner = np.array(crops["crop"].to_pylist())[:, :2]
    assert abs(corner[:, 0].mean() - 75) < 8  # 0 to 150, standard error 2.2
    assert abs(corner[:, 1].mean() - 25) < 3  # 0 to 50, standard error 0.7
    assert (corner.min(axis=0) < (5, 2)).all()
    assert (corner.max(axis=0) > (145, 48)).all()
    assert crops.equals(random_crops(whole, shares, seed=1))
    assert not crops.equals(random_crops(whole, shares, seed=2))
