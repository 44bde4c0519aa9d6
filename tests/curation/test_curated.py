"""From a selection to curated images and the published list."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from optidel_hf.curation.curated import (
    CURATED_FEATURES,
    MosaicConfig,
    build_curated,
    check_grid,
    curated_dataset,
    curated_shards,
    draft_selection,
    publish_selection,
)
from optidel_hf.curation.mosaic import pixels_sha256
from optidel_hf.curation.selection import Selection
from optidel_hf.errors import UserError
from optidel_hf.images import ImageRejected, cut_square, encode_png, open_image
from optidel_hf.layout import METADATA_KEY


SIZE = 32


def source_image(name: str) -> Image.Image:
    seed = int(name[1:])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 70, 3), dtype=np.uint8))


def find_source(name: str) -> dict[str, Any]:
    return {"bytes": encode_png(source_image(name)), "path": None}


def scored(n: int = 10, scores: bool = True) -> pa.Table:
    columns = {
        "source": [f"s{i}" for i in range(n)],
        "crop": pa.array([[i, 2 * i, 20 + i] for i in range(n)], pa.list_(pa.int32(), 3)),
        "pvi": pa.array([i / 10 for i in range(n)], pa.float32()),
        "cond_entropy": pa.array([-i / 10 for i in range(n)], pa.float32()),
        "embedding": pa.array([[0.0, 1.0]] * n, pa.list_(pa.float16(), 2)),
    }
    return pa.table(columns if scores else {name: columns[name] for name in ("source", "crop")})


def selection() -> Selection:
    """Eight of ten patches, best first: mosaic 0 has rows 7 0 5 1 and mosaic 1 has rows 9 3 2 8."""
    rows = np.array([9, 7, 3, 5, 0, 8, 1, 2])
    mosaic, slot = np.array([1, 0, 1, 0, 0, 1, 0, 1]), np.array([0, 0, 1, 2, 1, 3, 3, 2])
    facts = {"strategy": "optidel", "counts": {"chosen": 8}}
    return Selection(rows, mosaic, slot, np.array([0, 1, 2, 3, 0, 1, 2, 3]), facts)


ORDER = ([7, 0, 5, 1], [9, 3, 2, 8])


def test_the_draft_lists_the_chosen_by_rank_without_embeddings() -> None:
    draft = draft_selection(scored(), selection())
    assert draft.column_names == ["source", "crop", "pvi", "cond_entropy", "rank", "mosaic", "slot", "cluster"]
    assert draft["source"].to_pylist() == ["s9", "s7", "s3", "s5", "s0", "s8", "s1", "s2"]
    assert draft["rank"].to_pylist() == list(range(8))
    assert draft["slot"].to_pylist() == selection().slot.tolist()
    assert draft["crop"].to_pylist()[0] == [9, 18, 29]
    assert json.loads(draft.schema.metadata[METADATA_KEY]) == selection().facts


def test_every_tile_of_every_mosaic_is_cut_from_its_source() -> None:
    curated = build_curated(draft_selection(scored(), selection()), find_source, SIZE)
    assert curated.features == CURATED_FEATURES
    assert len(curated) == 2
    for image, order in zip(curated["image"], ORDER):
        pixels = np.asarray(image)
        for slot, row in enumerate(order):
            y, x = divmod(slot, 2)
            tile = pixels[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
            expected = cut_square(source_image(f"s{row}"), (row, 2 * row, 20 + row), 16)
            assert np.array_equal(tile, np.asarray(expected))


def test_the_lineage_names_the_tiles_row_by_row() -> None:
    curated = build_curated(draft_selection(scored(), selection()), find_source, SIZE)
    for tiles, order in zip(curated["tiles"], ORDER):
        assert [tile["source"] for tile in tiles] == [f"s{row}" for row in order]
        assert [tile["crop"] for tile in tiles] == [[row, 2 * row, 20 + row] for row in order]
        assert [tile["pvi"] for tile in tiles] == pytest.approx([row / 10 for row in order])
    assert [tile["cluster"] for tile in curated["tiles"][0]] == [1, 0, 3, 2]


def test_without_scores_the_lineage_has_none() -> None:
    curated = build_curated(draft_selection(scored(scores=False), selection()), find_source, SIZE)
    assert curated.features == CURATED_FEATURES
    assert {tile["pvi"] for tiles in curated["tiles"] for tile in tiles} == {None}


def test_an_uncut_image_passes_through_whole() -> None:
    table = pa.table({"source": ["s1"], "crop": pa.array([[5, 0, 60]], pa.list_(pa.int32(), 3))})
    one = Selection(np.array([0]), np.array([0]), np.array([0]), np.array([-1]), {})
    image = build_curated(draft_selection(table, one), find_source, 60)["image"][0]
    assert image.tobytes() == source_image("s1").crop((5, 0, 65, 60)).tobytes()


def test_shards_hold_what_load_dataset_reads_and_finished_ones_stay(tmp_path: Path) -> None:
    draft = draft_selection(scored(), selection())
    curated_shards(draft, find_source, SIZE, tmp_path / "curated", rows_per_shard=1)
    paths = sorted((tmp_path / "curated").iterdir())
    assert [path.name for path in paths] == ["shard-00000-of-00002.parquet", "shard-00001-of-00002.parquet"]
    loaded = load_dataset("parquet", data_files=[str(p) for p in paths], split="train", cache_dir=str(tmp_path / "c"))
    assert loaded.features == CURATED_FEATURES
    expected = build_curated(draft, find_source, SIZE)
    assert [image.tobytes() for image in loaded["image"]] == [image.tobytes() for image in expected["image"]]
    assert loaded["tiles"][:] == expected["tiles"][:]

    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    curated_shards(draft, lambda name: find_source(name), SIZE, tmp_path / "curated", rows_per_shard=1)
    assert [path.read_bytes() for path in paths] == before


def test_the_published_list_has_the_hashes_of_sources_and_mosaics(tmp_path: Path) -> None:
    draft = draft_selection(scored(), selection())
    curated_shards(draft, find_source, SIZE, tmp_path / "curated", rows_per_shard=1)
    publish_selection(draft, find_source, tmp_path / "curated", tmp_path / "selection.parquet", {"tile_size": 16})
    table = pq.read_table(tmp_path / "selection.parquet")
    images = build_curated(draft, find_source, SIZE)["image"]
    for row in table.to_pylist():
        assert row["pixels_sha256"] == pixels_sha256(images[row["mosaic"]])
        assert row["source_sha256"] == hashlib.sha256(find_source(row["source"])["bytes"]).hexdigest()
    metadata = json.loads(table.schema.metadata[METADATA_KEY])
    assert metadata["tile_size"] == 16
    assert metadata["strategy"] == "optidel"
    assert metadata["versions"]["pillow"]

    # The list alone makes the same images again.
    again = build_curated(table, find_source, SIZE)["image"]
    assert [pixels_sha256(image) for image in again] == [pixels_sha256(image) for image in images]


def test_stored_images_are_lossless_png() -> None:
    curated = build_curated(draft_selection(scored(), selection()), find_source, SIZE)
    stored = curated.with_format("arrow")[:]["image"].to_pylist()[0]["bytes"]
    assert Image.open(io.BytesIO(stored)).format == "PNG"
    picture = source_image("s3")
    assert Image.open(io.BytesIO(encode_png(picture))).tobytes() == picture.tobytes()


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="image_size 64 is no multiple of 3, the tiles along a mosaic's side"):
        check_grid(9, 64)
    with pytest.raises(UserError, match="tiles_per_mosaic is 5"):
        check_grid(5, 64)
    with pytest.raises(UserError, match="image_size is 8"):
        MosaicConfig(image_size=8)
    check_grid(9, 63)


def test_sources_over_the_default_limit_reach_the_mosaics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, tile = tmp_path / "wide.png", {"source": "wide.png", "crop": [0, 0, 32], "mosaic": 0, "slot": 0}
    Image.new("RGB", (80, 40), "red").save(source)
    monkeypatch.setattr(open_image, "__defaults__", (80 * 40 - 1, "white"))
    with pytest.raises(ImageRejected):
        open_image(str(source))
    images = build_curated(pa.Table.from_pylist([tile]), lambda name: {"bytes": None, "path": str(source)}, 16)[
        "image"
    ]
    assert images[0].size == (16, 16)


def named(names: list[str]) -> Dataset:
    features = Features({"image": ImageFeature(decode=False), "source": Value("string")})
    return Dataset.from_dict({"image": [find_source("s1")] * len(names), "source": names}, features=features)


def test_images_that_cannot_be_told_apart_are_refused() -> None:
    table = Dataset(scored())
    with pytest.raises(UserError, match=r"Images 3 and 10 are both called 's3'.* add a column 'source'"):
        curated_dataset(table, selection(), named([f"s{i}" for i in range(10)] + ["s3"]), SIZE)
    with pytest.raises(UserError, match="'s9' is selected and not among these images"):
        curated_dataset(table, selection(), named([f"s{i}" for i in range(9)]), SIZE)
    decoded = named([f"s{i}" for i in range(10)]).cast_column("image", ImageFeature())
    assert len(curated_dataset(table, selection(), decoded.rename_column("image", "frame"), SIZE)) == 2
    unnamed = Dataset.from_dict({"image": [None]}, features=Features({"image": ImageFeature(decode=False)}))
    with pytest.raises(UserError, match="'s0' is selected and not among these images"):
        curated_dataset(table, selection(), unnamed, SIZE)
    with pytest.raises(UserError, match=f"image_size {SIZE + 1} is no multiple of 2"):
        curated_dataset(table, selection(), decoded, SIZE + 1)
