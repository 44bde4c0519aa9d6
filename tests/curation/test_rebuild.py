"""The curated images again from the list and the sources: the same bytes, or a sentence that names what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from PIL import Image

from optidel_hf import cli
from optidel_hf.curation.curated import curated_shards, draft_selection, publish_selection
from optidel_hf.curation.rebuild import RebuildConfig, rebuild
from optidel_hf.curation.selection import Selection
from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.layout import METADATA_KEY


SOURCES = [f"video/{i}.png" for i in range(6)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in SOURCES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def out(images: Path, tmp_path: Path) -> Path:
    """What a curation leaves: three mosaics of four tiles, from five of the six sources, two shards."""
    crops = pa.array([[i, i, 20] for i in range(12)], pa.list_(pa.int32(), 3))
    table = pa.table({"source": [SOURCES[i % 5] for i in range(12)], "crop": crops})
    row = np.arange(12)
    draft = draft_selection(table, Selection(row, row % 3, row // 3, row % 2, {"strategy": "random"}))

    def find(name: str) -> dict[str, Any]:
        return {"bytes": None, "path": str(images / name)}

    out = tmp_path / "out"
    curated_shards(draft, find, 32, out / "curated", rows_per_shard=2)
    publish_selection(
        draft, find, out / "curated", out / "selection.parquet", {"image_size": 32, "images_per_shard": 2}
    )
    return out


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "curated").glob("*.parquet"))}


def rewrite(path: Path, target: Path, **facts: Any) -> Path:
    """The same selection with other metadata."""
    table = pq.read_table(path)
    known = json.loads(table.schema.metadata[METADATA_KEY])
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(known | facts)}), target)
    return target


@pytest.mark.parametrize("file", ["", "selection.parquet"])
def test_the_same_bytes(out: Path, images: Path, tmp_path: Path, file: str) -> None:
    again = rebuild(RebuildConfig(str(out / file), str(images), str(tmp_path / "again")))
    assert len(shards(out)) == 2
    assert shards(again) == shards(out)
    assert pq.read_table(again / "selection.parquet").equals(pq.read_table(out / "selection.parquet"))


def test_from_the_hub_and_the_command_line(
    hub: HubServer, out: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.put("me/list", "datasets", {"selection.parquet": (out / "selection.parquet").read_bytes()}, private=True)
    arguments = ["rebuild", "--source", str(images), "--output_dir", str(tmp_path / "again"), "--selection"]
    assert cli.main([*arguments, "me/list"]) == 0
    assert shards(tmp_path / "again") == shards(out)
    assert cli.main([*arguments, "me/nothing"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("optidel rebuild: --selection me/nothing is neither a file or folder here nor a dataset")


def test_the_flag_that_names_the_sources_is_told(out: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source no/where is neither a folder or file here nor a dataset"):
        rebuild(RebuildConfig(str(out), "no/where", str(tmp_path / "again")))


def test_missing_sources_are_named_and_nothing_is_written(out: Path, images: Path, tmp_path: Path) -> None:
    for name in SOURCES[:2]:
        (images / name).unlink()
    with pytest.raises(UserError, match=r"lacks 2 of the 5 source images .*: 'video/0.png', 'video/1.png'\."):
        rebuild(RebuildConfig(str(out), str(images), str(tmp_path / "again")))
    assert not (tmp_path / "again").exists()


def test_a_changed_source_is_named_and_right_shards_are_kept(out: Path, images: Path, tmp_path: Path) -> None:
    chosen = pq.read_table(out / "selection.parquet")
    last = next(row["source"] for row in chosen.to_pylist() if row["mosaic"] == 2)
    first_shard = {row["source"] for row in chosen.to_pylist() if row["mosaic"] < 2}
    flipped = Image.open(images / last).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(images / last)
    with pytest.raises(UserError, match=rf"image 2 differs \(of .*'{last}'.*, whose bytes have changed\)"):
        rebuild(RebuildConfig(str(out), str(images), str(tmp_path / "again")))
    kept = shards(tmp_path / "again")
    assert "shard-00001-of-00002.parquet" not in kept
    assert ("shard-00000-of-00002.parquet" in kept) == (last not in first_shard)
    assert not (tmp_path / "again" / "selection.parquet").exists()


def test_other_bytes_with_the_same_pixels_will_do(out: Path, images: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        Image.open(images / name).save(images / name, compress_level=0)
    again = rebuild(RebuildConfig(str(out), str(images), str(tmp_path / "again")))
    assert shards(again) == shards(out)


def test_a_broken_source_is_said_so(out: Path, images: Path, tmp_path: Path) -> None:
    (images / SOURCES[0]).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"those of 'video/0.png', which cannot be opened \(not an image"):
        rebuild(RebuildConfig(str(out), str(images), str(tmp_path / "again")))


def test_a_source_that_shrank_is_said_so(out: Path, images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(images / SOURCES[0])
    with pytest.raises(UserError, match="a square of which lies outside its source image"):
        rebuild(RebuildConfig(str(out), str(images), str(tmp_path / "again")))


def test_names_of_a_foreign_list_reach_no_file(out: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((images / SOURCES[0]).read_bytes())
    table = pq.read_table(out / "selection.parquet")
    names = pa.array(["../secret.png", str(tmp_path / "secret.png"), *table["source"].to_pylist()[2:]])
    pq.write_table(table.set_column(table.column_names.index("source"), "source", names), tmp_path / "hostile.parquet")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="lacks 2 of the 7 source images"):
        rebuild(RebuildConfig(str(tmp_path / "hostile.parquet"), str(images), str(tmp_path / "again")))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_no_selection_is_refused(out: Path, images: Path, tmp_path: Path) -> None:
    again = str(tmp_path / "again")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="is no selection that `optidel curate` published"):
        rebuild(RebuildConfig(str(tmp_path / "other.parquet"), str(images), again))
    with pytest.raises(UserError, match="is no selection that `optidel curate` published"):
        rebuild(RebuildConfig(str(images / SOURCES[0]), str(images), again))
    for facts in ({"image_size": 10**6}, {"images_per_shard": 0}):
        impossible = rewrite(out / "selection.parquet", tmp_path / "impossible.parquet", **facts)
        with pytest.raises(UserError, match="none can be made of that"):
            rebuild(RebuildConfig(str(impossible), str(images), again))
    later = rewrite(out / "selection.parquet", tmp_path / "later.parquet", versions={"renderer": "grid-9"})
    with pytest.raises(UserError, match=r"renderer grid-9, and this version of optidel_hf has grid-1"):
        rebuild(RebuildConfig(str(later), str(images), again))


def test_a_folder_of_another_selection_is_left_alone(out: Path, images: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    rebuild(RebuildConfig(str(out), str(images), str(again)))
    other = rewrite(out / "selection.parquet", tmp_path / "other.parquet", budget=0.7)
    before = (again / "selection.parquet").read_bytes()
    with pytest.raises(UserError, match=r"again holds the images of another selection: give another --output_dir"):
        rebuild(RebuildConfig(str(other), str(images), str(again)))
    assert (again / "selection.parquet").read_bytes() == before
    rebuild(RebuildConfig(str(out), str(images), str(again)))  # its own goes on, killed or finished
    table = pq.read_table(out / "selection.parquet")
    pq.write_table(table.append_column("spread", pa.array([np.nan] * len(table))), tmp_path / "nan.parquet")
    for _ in range(2):
        rebuild(RebuildConfig(str(tmp_path / "nan.parquet"), str(images), str(tmp_path / "nan")))
    (again / "selection.parquet").unlink()
    with pytest.raises(UserError, match="holds the images of another selection"):
        rebuild(RebuildConfig(str(out), str(images), str(again)))


def test_another_pillow_is_named(out: Path, images: Path, tmp_path: Path) -> None:
    versions = {"renderer": "grid-1", "pillow": "1.1"}
    other = rewrite(out / "selection.parquet", tmp_path / "other.parquet", versions=versions)
    shutil.copy(images / SOURCES[5], images / SOURCES[0])
    with pytest.raises(UserError, match=r"it was made with Pillow 1\.1, and here is"):
        rebuild(RebuildConfig(str(other), str(images), str(tmp_path / "again")))


def test_a_curation_and_another_process_are_left_alone(out: Path, images: Path, tmp_path: Path) -> None:
    def made(folder: Path) -> RebuildConfig:
        return RebuildConfig(str(out), str(images), str(folder))

    curation = tmp_path / "curation"
    curation.mkdir()
    (curation / "inputs.parquet").touch()
    for part in ("curated", "patches"):
        with pytest.raises(UserError, match="is part of the curation"):
            rebuild(made(curation / part))
    with alone_in(tmp_path), pytest.raises(UserError, match="Another process is at work"):
        rebuild(made(tmp_path))
