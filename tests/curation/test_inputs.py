"""The source images: names, sizes and groups; what changed since the last run is refused by name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, Image
from PIL import Image as PILImage

from optidel_hf.curation.inputs import InputConfig, _given_groups, inputs_hash, list_inputs, open_sources, read_hashes
from optidel_hf.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Twelve of the scenes, `copy.png` the same as the first, and one file that is no image."""
    target = tmp_path / "images"
    target.mkdir()
    for path in sorted(image_folder.iterdir())[:12]:
        shutil.copy(path, target)
    shutil.copy(target / "frame-00.png", target / "copy.png")
    (target / "broken.png").write_bytes(b"no image")
    return target


@pytest.fixture
def parquet(folder: Path, tmp_path: Path) -> Path:
    """The scenes as a table with ids, patients and a second image column."""
    scenes = sorted(folder.glob("frame-*.png"))
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in scenes]
    columns = {
        "image": pictures,
        "mask": pictures,
        "id": [f"scene {11 - i:02d}" for i in range(len(scenes))],
        "patient": [i // 3 for i in range(len(scenes))],
    }
    table = Dataset.from_dict(columns).cast_column("image", Image()).cast_column("mask", Image())
    table.to_parquet(str(tmp_path / "scenes.parquet"))
    return tmp_path / "scenes.parquet"


def listed(config: InputConfig, output: Path, images_per_shard: int = 5) -> pa.Table:
    return list_inputs(open_sources(config), output, images_per_shard)


def refused(config: InputConfig, output: Path) -> str:
    with pytest.raises(UserError) as error:
        listed(config, output)
    assert f"{output / 'inputs.parquet'} lists" in str(error.value)
    assert f"--reuse {output} --output_dir" in str(error.value)
    return str(error.value)


def test_a_folder(folder: Path, tmp_path: Path) -> None:
    inputs = listed(InputConfig(str(folder)), tmp_path / "out")
    rows = {row["source"]: row for row in inputs.to_pylist()}
    assert list(rows) == sorted(path.name for path in folder.iterdir())
    assert all(rows[path.name]["size"] == path.stat().st_size for path in folder.iterdir())
    assert rows["frame-00.png"]["group"] == rows["copy.png"]["group"] == "copy.png"
    assert rows["broken.png"]["group"] == "broken.png"


def test_shards_make_no_difference(folder: Path, tmp_path: Path) -> None:
    one, many = (listed(InputConfig(str(folder)), tmp_path / str(size), size) for size in (100, 3))
    assert one == many
    assert inputs_hash(one) == inputs_hash(many)


def test_hashes_of_another_beginning_are_not_taken_for_these(folder: Path, tmp_path: Path) -> None:
    before = listed(InputConfig(str(folder)), tmp_path / "out", 4)  # 14 images in 4 shards, as by 5 a shard
    (tmp_path / "out" / "inputs.parquet").unlink()
    assert listed(InputConfig(str(folder)), tmp_path / "out", 5) == before
    (tmp_path / "out" / "inputs.parquet").unlink()
    shutil.move(folder / "frame-00.png", folder / "renamed.png")
    now = listed(InputConfig(str(folder)), tmp_path / "out", 5)
    assert "renamed.png" in now["source"].to_pylist()


def test_named_columns(parquet: Path, tmp_path: Path) -> None:
    config = InputConfig(str(parquet), image_column="mask", id_column="id", group_column="patient")
    dataset = open_sources(config)
    assert dataset.column_names == ["image", "source", "group"]
    assert dataset["source"] == [f"scene {i:02d}" for i in range(12)]
    assert dataset["group"] == [str((11 - i) // 3) for i in range(12)]
    assert dataset.features["image"] == Image(decode=False)
    inputs = list_inputs(dataset, tmp_path / "out", 5)
    assert inputs["size"].to_pylist() == [len(value["bytes"]) for value in dataset["image"]]
    large = inputs["group"].to_pylist()  # a patient holds a quarter of the pool: split by near-duplicates
    assert large == [f"{(11 - i) // 3}/scene {i:02d}" for i in range(12)]


def test_an_image_without_a_group_is_of_its_near_duplicates(folder: Path, tmp_path: Path) -> None:
    plain = listed(InputConfig(str(folder)), tmp_path / "plain")
    names = plain["source"].to_pylist()
    given = list(map(str, range(len(names) - 3)))
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    table = Dataset.from_dict({"id": names, "patient": [None, None, "", *given], "image": images})
    table.cast_column("image", Image(decode=False)).to_parquet(str(tmp_path / "grouped.parquet"))
    config = InputConfig(str(tmp_path / "grouped.parquet"), id_column="id", group_column="patient")
    grouped = listed(config, tmp_path / "grouped")["group"].to_pylist()
    assert grouped[:3] == plain["group"].to_pylist()[:3]
    assert grouped[3:] == given
    assert listed(config, tmp_path / "grouped")["group"].to_pylist() == grouped  # finished, and not refused


def test_an_image_without_a_group_goes_with_its_copy_that_has_one() -> None:
    others = [f"v{i}" for i in range(30)]
    groups = _given_groups(["", "video", "", *others], ["a", "a", "alone", *(f"x{i}" for i in range(30))])
    assert groups == ["video", "video", "alone", *others]


def test_images_are_no_groups(parquet: Path) -> None:
    with pytest.raises(UserError, match="--group_column mask holds images: name a column of names or numbers"):
        open_sources(InputConfig(str(parquet), image_column="image", group_column="mask"))


def test_columns_that_do_not_exist(parquet: Path) -> None:
    for column in ("image_column", "id_column", "group_column"):
        with pytest.raises(UserError, match=f"--{column} nope: no such"):
            open_sources(InputConfig(str(parquet), **{"image_column": "image", column: "nope"}))
    with pytest.raises(UserError, match="2 image columns"):
        open_sources(InputConfig(str(parquet)))
    with pytest.raises(UserError, match="'0' occurs twice in column 'patient'"):
        open_sources(InputConfig(str(parquet), image_column="image", id_column="patient"))


def test_limit(folder: Path) -> None:
    assert open_sources(InputConfig(str(folder), limit=2))["source"] == ["broken.png", "copy.png"]
    assert len(open_sources(InputConfig(str(folder), limit=99))) == 14
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"limit is {limit}"):
            InputConfig(str(folder), limit=limit)


def test_missing_images_have_no_size(tmp_path: Path) -> None:
    rows = {"image": [None, {"bytes": None, "path": str(tmp_path / "gone.png")}, {"bytes": b"x", "path": "in.png"}]}
    dataset = Dataset.from_dict({**rows, "source": ["a", "b", "c"]}).cast_column("image", Image(decode=False))
    inputs = list_inputs(dataset, tmp_path / "out", 2)
    assert inputs["size"].to_pylist() == [None, None, 1]
    assert list_inputs(dataset, tmp_path / "out", 2) == inputs


def test_changed_images_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    config, output = InputConfig(str(folder)), tmp_path / "out"
    first = listed(config, output)
    assert listed(config, output) == first
    PILImage.new("RGB", (40, 40)).save(folder / "new.png")
    assert "14 images and the dataset now has 15: 'new.png' is new" in refused(config, output)
    os.remove(folder / "new.png")
    os.rename(folder / "copy.png", tmp_path / "copy.png")
    assert "'copy.png' is gone" in refused(config, output)
    PILImage.new("RGB", (40, 40)).save(folder / "copy.png")
    assert "'copy.png' has changed" in refused(config, output)
    os.replace(tmp_path / "copy.png", folder / "copy.png")
    assert listed(config, output) == first


def test_changed_groups_are_refused(parquet: Path, tmp_path: Path) -> None:
    plain = InputConfig(str(parquet), image_column="image")
    grouped = InputConfig(str(parquet), image_column="image", group_column="patient")
    listed(plain, tmp_path / "plain")
    assert "the group of 'scenes.parquet#0' was 'scenes.parquet#0'" in refused(grouped, tmp_path / "plain")
    first = listed(grouped, tmp_path / "grouped")
    assert listed(grouped, tmp_path / "grouped") == first
    assert "--group_column was given then" in refused(plain, tmp_path / "grouped")


def test_the_sample_has_a_folder_and_no_name_in_python() -> None:
    with pytest.raises(
        UserError, match="'embedded' is the command line's name for the sample, which `optidel sample`"
    ):
        open_sources(InputConfig())


def test_the_hashes_of_what_was_listed_can_be_read(folder: Path, tmp_path: Path) -> None:
    assert read_hashes(tmp_path / "out").num_rows == 0
    inputs = listed(InputConfig(str(folder)), tmp_path / "out")
    hashes = dict(zip(*read_hashes(tmp_path / "out").to_pydict().values()))
    assert list(hashes) == inputs["source"].to_pylist()
    assert hashes["copy.png"] == hashes["frame-00.png"] != hashes["frame-01.png"]
    assert hashes["broken.png"] is None
