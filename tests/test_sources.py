"""Whatever `open_dataset` is given, every image gets its own name, none is left out unsaid, and mistakes say so."""

from __future__ import annotations

import logging
import os
import sys
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from hub_server import HubServer
from PIL import Image as PILImage

from optidel_hf.errors import UserError
from optidel_hf.images import open_image
from optidel_hf.sources import (
    find_image_column,
    hub_commit,
    lies_among,
    open_dataset,
    unique_sources,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def fill(folder: Path, *names: str) -> Path:
    """One grey picture a name, each of another grey."""
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8), (shade, shade, shade)).save(folder / name, "PNG")
    return folder


def table(rows: int = 3, **columns: list[object]) -> Dataset:
    pictures = [PILImage.new("RGB", (8, 8), (i, i, i)) for i in range(rows)]
    return Dataset.from_dict({"image": pictures, **columns}).cast_column("image", Image())


def sources(dataset: object, split: str | None = None) -> list[str]:
    return list(open_dataset(str(dataset), split)["source"])


def refused(dataset: object, split: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        open_dataset(str(dataset), split)
    return str(error.value)


def test_nested_folders_give_relative_paths(tmp_path: Path) -> None:
    fill(tmp_path, "b/c/1.png", "a/1.png", "1.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    fill(tmp_path, ".hidden/1.png", "a/._1.png")
    opened = open_dataset(str(tmp_path))
    assert opened["source"] == ["1.png", "a/1.png", "b/c/1.png"]
    assert [open_image(value).getpixel((0, 0))[0] for value in opened["image"]] == [2, 1, 0]
    assert opened.features["image"] == Image(decode=False)


def test_names_that_look_like_splits_leave_nothing_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "train_0.png", "val_0.png", "frame_1.png", "test/0.png")
    with caplog.at_level(logging.INFO, "optidel_hf.sources"):
        assert sources(tmp_path) == ["frame_1.png", "test/0.png", "train_0.png", "val_0.png"]
    assert "reading all 4 images" in caplog.text


def test_a_split_of_a_folder_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "train_0.png", "train_1.png", "val_0.png")
    assert sources(tmp_path, "validation") == ["val_0.png"]
    assert "has the splits ['train', 'validation']" in refused(tmp_path, "test")


def test_metadata_of_a_folder_becomes_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,patient\n1.png,ann\n2.png,bob\n")
    opened = open_dataset(str(tmp_path))
    assert dict(zip(opened["source"], opened["patient"])) == {"1.png": "ann", "2.png": "bob"}
    assert "1 of 3 images are in no split and no row of metadata" in caplog.text


def test_files_called_metadata_that_describe_no_image_leave_nothing_out(tmp_path: Path) -> None:
    fill(tmp_path, "train_0.png", "frame_1.png")
    (tmp_path / ".cache").mkdir()
    for name in ("metadata.json", "metadata.xml", ".cache/metadata.csv"):
        (tmp_path / name).write_text("{}")
    assert sources(tmp_path) == ["frame_1.png", "train_0.png"]


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="the locale has no such file names")
def test_odd_names_and_extensions(tmp_path: Path) -> None:
    names = ["A.PNG", "b c#%[1].Jpg", "x'y\".JPEG", "ünï cödé/内視鏡.png"]
    opened = open_dataset(str(fill(tmp_path, *names)))
    assert sorted(opened["source"]) == sorted(names)
    assert [open_image(value).size for value in opened["image"]] == [(8, 8)] * 4


def test_brackets_in_names_are_no_wildcards(tmp_path: Path) -> None:
    folder = tmp_path / "run [v2]"
    folder.mkdir()
    table().to_parquet(str(folder / "a.parquet"))
    assert sources(folder) == sources(folder / "a.parquet") == ["a.parquet#0", "a.parquet#1", "a.parquet#2"]
    described = fill(tmp_path / "pool [v2]", "1.png", "2.png")
    (described / "metadata.csv").write_text("file_name,patient\n1.png,a\n2.png,b\n")
    assert open_dataset(str(described))["patient"] == ["a", "b"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "1.png").read_bytes())
    assert "the name b'caf\\xe9.png' is no UTF-8: rename the file" in refused(tmp_path)


def test_parts_of_other_columns_are_refused(tmp_path: Path) -> None:
    table(label=["a", "b", "c"]).to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    table(label=[0, 1, 2]).to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    assert "the parts do not fit together" in refused(tmp_path)
    assert len(open_dataset(str(tmp_path), "test")) == 3


def test_links(tmp_path: Path) -> None:
    fill(tmp_path / "real", "1.png", "2.png")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.png").symlink_to(tmp_path / "real" / "1.png")
    (linked / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (linked / "folder").symlink_to(tmp_path / "real")
    (linked / "loop").symlink_to(linked)
    assert sources(linked) == ["a.png", "folder/1.png", "folder/2.png", "gone.png"]
    (tmp_path / "door").symlink_to(tmp_path / "real")
    assert sources(tmp_path / "door") == ["1.png", "2.png"]
    assert sources(tmp_path / "door", "train") == ["1.png", "2.png"]


def test_archives_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    (tmp_path / "broken.zip").write_bytes(b"junk")
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "2.png")
    assert sources(tmp_path) == ["1.png"]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    assert f"{tmp_path} holds no image." in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    assert "holds no image." in refused(tmp_path)
    (tmp_path / "data").mkdir()
    table().to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    assert f"give --dataset {tmp_path / 'data'}" in refused(tmp_path)


@pytest.mark.parametrize("masks", ["masks", "Ground Truth", "ground_truth", "GT", "train/annotations", "lesion_mask"])
def test_masks_are_refused_with_the_way_out(tmp_path: Path, masks: str) -> None:
    images = str(Path(masks).with_name("images"))
    fill(tmp_path, f"{images}/1.png", f"{masks}/1.png")
    said = refused(tmp_path)
    assert f"a folder '{masks}' that looks like masks" in said
    assert f"such as --dataset {tmp_path / images}" in said
    assert sources(tmp_path / images) == ["1.png"]
    assert sources(tmp_path / masks) == ["1.png"]


def test_only_folders_with_images_can_be_masks(tmp_path: Path) -> None:
    fill(tmp_path, "images/1.png", "unmasked/1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 0 0 1 1")
    assert sources(tmp_path) == ["images/1.png", "unmasked/1.png"]


def test_tables(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        table(2).to_parquet(str(tmp_path / name))
    both = ["a.parquet#0", "a.parquet#1", "b.parquet#0", "b.parquet#1"]
    assert sources(tmp_path) == sources(tmp_path / "*.parquet") == both
    opened = open_dataset(str(tmp_path / "b.parquet"))
    assert opened["source"] == both[2:]
    assert opened.features["image"] == Image(decode=False)
    assert [open_image(value).getpixel((0, 0)) for value in opened["image"]] == [(0, 0, 0), (1, 1, 1)]
    assert "no such file" in refused(tmp_path / "z*.parquet")
    assert "are of ['train'], by names such as" in refused(tmp_path / "a.parquet", "test")


def test_tables_are_of_the_split_that_the_hub_names_them_by(tmp_path: Path) -> None:
    names = [f"{name}.parquet" for name in ("extra", "test-00000-of-00001", "train-00000-of-00002", "test-set")]
    for name in names:
        table(1).to_parquet(str(tmp_path / name))
    assert sources(tmp_path) == [f"{name}#0" for name in sorted(names)]
    assert sources(tmp_path, "test") == sources(tmp_path / "*.parquet", "test") == [f"{names[1]}#0"]
    assert len(sources(tmp_path, "train")) == 3
    assert "are of ['test', 'train']" in refused(tmp_path, "validation")


def test_tables_of_one_schema_are_opened_as_each_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(3):
        table(2 + shard).to_parquet(str(tmp_path / f"{shard}.parquet"))
    at_once = open_dataset(str(tmp_path))
    assert at_once["source"][:3] == ["0.parquet#0", "0.parquet#1", "1.parquet#0"]
    monkeypatch.setattr("optidel_hf.sources._open_alike", lambda files, root: None)
    by_itself = open_dataset(str(tmp_path))
    assert at_once.features == by_itself.features
    assert at_once[:] == by_itself[:]


def test_tables_beside_images(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", "1.png", "2.png")
    described = Dataset.from_dict({"file_name": ["1.png", "2.png"], "patient": ["a", "b"]})
    described.to_parquet(str(photos / "metadata.parquet"))
    opened = open_dataset(str(photos))
    assert (opened["source"], opened["patient"]) == (["1.png", "2.png"], ["a", "b"])
    table(1).to_parquet(str(photos / "a.parquet"))
    said = refused(photos)
    assert "holds images (1.png) as well as tables (a.parquet)" in said
    assert f"--dataset '{photos}/*.parquet'" in said


def test_an_output_of_curate_names_its_dataset(tmp_path: Path) -> None:
    (tmp_path / "curated").mkdir()
    for file in ("inputs.parquet", "curated/shard-00000-of-00001.parquet"):
        table(1).to_parquet(str(tmp_path / file))
    assert refused(tmp_path).endswith(f"its dataset is {tmp_path / 'curated'}.")
    assert len(sources(tmp_path / "curated")) == 1


def test_wildcards_over_folders_keep_names_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        table(1).to_parquet(str(tmp_path / folder / "a.parquet"))
    assert sources(tmp_path / "*" / "*.parquet") == ["x/a.parquet#0", "y/a.parquet#0"]


def test_saved_to_disk(tmp_path: Path) -> None:
    table(2).save_to_disk(str(tmp_path / "one"))
    assert sources(tmp_path / "one") == ["train#0", "train#1"]
    assert "has the splits ['train']" in refused(tmp_path / "one", "test")
    arrow = next((tmp_path / "one").glob("*.arrow"))
    assert sources(arrow) == [f"{arrow.name}#0", f"{arrow.name}#1"]
    DatasetDict({"train": table(1), "test": table(2)}).save_to_disk(str(tmp_path / "two"))
    assert sources(tmp_path / "two") == ["train#0", "test#0", "test#1"]
    assert sources(tmp_path / "two", "test") == ["test#0", "test#1"]
    arrow.write_bytes(b"junk")
    assert "no folder that `save_to_disk` finished" in refused(tmp_path / "one")
    DatasetDict({"train": table(1), "test": Dataset.from_dict({"image": []})}).save_to_disk(str(tmp_path / "three"))
    assert "a split without rows" in refused(tmp_path / "three")


def test_own_source_column_is_kept(tmp_path: Path) -> None:
    table(2, source=["u", "v"]).to_parquet(str(tmp_path / "a.parquet"))
    assert sources(tmp_path / "a.parquet") == ["u", "v"]


@pytest.mark.parametrize("cut", [0, 10, -20])
def test_broken_parquet(tmp_path: Path, cut: int, capfd: pytest.CaptureFixture[str]) -> None:
    table().to_parquet(str(tmp_path / "whole.parquet"))
    (tmp_path / "a.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:cut])
    assert "a.parquet cannot be read as parquet" in refused(tmp_path / "a.parquet")
    assert "rror" not in capfd.readouterr().err


def test_empty_table(tmp_path: Path) -> None:
    pq.write_table(table().data.table.slice(0, 0), tmp_path / "a.parquet")
    assert "holds no rows" in refused(tmp_path / "a.parquet")
    table(2).to_parquet(str(tmp_path / "b.parquet"))
    assert sources(tmp_path) == ["b.parquet#0", "b.parquet#1"]


def test_what_is_no_dataset(tmp_path: Path) -> None:
    fill(tmp_path, "1.png")
    assert f"names images: give the folder that holds them, {tmp_path}." in refused(tmp_path / "1.png")
    (tmp_path / "list.csv").touch()
    assert "is a file of kind '.csv'" in refused(tmp_path / "list.csv")
    for name in (tmp_path / "nothing", "no/such-dataset", "no such name"):
        assert f"--dataset {name} is neither a folder or file here" in refused(name)
    assert "--dataset is empty" in refused("")


@pytest.mark.parametrize("version", [{"revision": "v2"}, {"config": "v2"}])
def test_what_lies_here_has_no_revision_and_no_configuration(tmp_path: Path, version: dict[str, str]) -> None:
    fill(tmp_path, "1.png")
    for dataset in (tmp_path, tmp_path / "mistyped.parquet"):
        with pytest.raises(UserError, match=r"only datasets of the Hub have .* leave 'v2' out"):
            open_dataset(str(dataset), **version)


def test_image_column() -> None:
    two = table().add_column("words", ["a", "b", "c"])
    two = Dataset.from_dict(
        {**two[:], "mask": two["image"]},
        features=Features({"image": Image(), "words": Value("string"), "mask": Image()}),
    )
    assert find_image_column(two, "mask") == "mask"
    assert find_image_column(two.remove_columns("mask")) == "image"
    with pytest.raises(UserError, match=r"2 image columns, \['image', 'mask'\]: name one with --image_column"):
        find_image_column(two)
    with pytest.raises(UserError, match=r"--image_column words: no such image column"):
        find_image_column(two, "words")
    with pytest.raises(UserError, match=r"no image column \(columns: \['words'\]\)"):
        find_image_column(two.select_columns("words"))


def test_unique_sources() -> None:
    assert unique_sources([1, "b"]) == ["1", "b"]
    with pytest.raises(UserError, match="Row 2: '1' occurs twice in column 'id'"):
        unique_sources(["1", "b", 1], "id")
    for nothing in (None, "", float("nan")):
        with pytest.raises(UserError, match="Row 1 has nothing in column 'id', which names the images: fill it in"):
            unique_sources(["1", nothing], "id")


def test_the_commit_of_a_hub_dataset(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.put("me/frames", "datasets", {"a.txt": b"a"})
    first, head = (commit.oid for commit in repo.history["main"])
    assert hub_commit("me/frames") == hub_commit("me/frames", "main") == head
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_commit("me/frames", first) == first  # nothing to ask
    with pytest.raises(UserError, match=r"the Hub does not tell its commit .* correct the path, or give the commit"):
        hub_commit("me/frames", "main")


def test_outputs_among_images_and_beside_tables(tmp_path: Path) -> None:
    pool = fill(tmp_path / "pool", "1.png")
    assert lies_among(pool / "out", str(pool))
    assert lies_among(pool, str(pool))
    assert not lies_among(tmp_path / "out", str(pool))
    assert not lies_among(tmp_path, str(tmp_path / "*.arrow"))
    (tmp_path / "a.arrow").touch()
    assert lies_among(tmp_path, str(tmp_path / "*.arrow"))
    assert not lies_among(tmp_path / "out", str(tmp_path / "*.arrow"))
    assert not lies_among(tmp_path, str(tmp_path / "a.arrow"))  # which is read alone
    assert not lies_among(tmp_path, "me/frames")


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "1.png", "locked/2.png")
    scan = os.scandir

    def refused(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert sources(tmp_path) == ["1.png"]
    assert "locked cannot be read (Permission denied): what it holds is left out." in caplog.text
