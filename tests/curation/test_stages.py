"""No changed field goes unnoticed, and `--reuse` takes over exactly what is still true."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from optidel_hf.curation.stages import Stage, digest
from optidel_hf.errors import UserError


FIELDS = {"sam": "embedded", "grid": (2, 3), "limit": None}


def test_hash_depends_on_fields_and_upstream_not_on_place_or_order(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a", FIELDS, "up")
    assert stage.hash == Stage(tmp_path / "b", dict(reversed(FIELDS.items())), "up").hash
    assert stage.hash != Stage(tmp_path / "a", {**FIELDS, "limit": 1}, "up").hash
    assert stage.hash != Stage(tmp_path / "a", FIELDS, "other").hash
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})


def test_claiming_again_is_quiet(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "patches", FIELDS, "up")
    assert stage.claim() == stage.claim() == tmp_path / "patches"
    record = json.loads((tmp_path / "patches" / "config.json").read_text())
    assert record["hash"] == stage.hash
    assert record["fields"] == {**FIELDS, "grid": [2, 3]}


def test_changes_are_refused_by_name(tmp_path: Path) -> None:
    Stage(tmp_path / "patches", FIELDS, "up").claim()
    with pytest.raises(UserError) as error:
        Stage(tmp_path / "patches", {**FIELDS, "limit": 5, "new": "x"}, "up").claim()
    assert "(limit was None, now 5, new was None, now 'x')" in str(error.value)
    assert f"--reuse {tmp_path} --output_dir" in str(error.value)
    with pytest.raises(UserError, match="an earlier stage or its input changed"):
        Stage(tmp_path / "patches", FIELDS, "changed").claim()


def test_a_run_that_made_nothing_holds_nobody_to_its_configuration(tmp_path: Path) -> None:
    first, other = (Stage(tmp_path / "patches", fields, "up") for fields in (FIELDS, {**FIELDS, "limit": 5}))
    first.claim()
    other.forget_what_made_nothing()
    other.claim()
    (tmp_path / "patches" / "shard-00000-of-00001.parquet").write_bytes(b"rows")
    first.forget_what_made_nothing()
    with pytest.raises(UserError, match="limit was 5, now None"):
        first.claim()


def test_taking_over(tmp_path: Path) -> None:
    old = Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    (old / "shard-00000-of-00001.parquet").write_bytes(b"rows")
    (old / ".shard.partial").write_bytes(b"half")
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    same.claim()
    assert sorted(os.listdir(same.folder)) == ["config.json", "shard-00000-of-00001.parquet"]
    assert (same.folder / "shard-00000-of-00001.parquet").read_bytes() == b"rows"
    assert sorted(os.listdir(same.folder.parent)) == ["patches"]


def test_folders_taken_over_from_a_read_only_place_can_be_written_to(tmp_path: Path) -> None:
    old = Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    (old / "fold-0").mkdir()
    for folder in (old / "fold-0", old):
        folder.chmod(0o555)
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    assert [oct(folder.stat().st_mode)[-3:] for folder in (same.folder, same.folder / "fold-0")] == ["755", "755"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    stage = Stage(tmp_path / "patches", FIELDS, "up")
    (stage.claim() / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged .*: move that folder away"):
        stage.claim()


def test_other_configurations_and_finished_folders_are_not_taken_over(tmp_path: Path) -> None:
    Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    for other in (Stage(tmp_path / "new" / "patches", {}, "up"), Stage(tmp_path / "new" / "scores", FIELDS, "up")):
        other.take_over(tmp_path / "old")
        assert not other.folder.exists()
    mine = Stage(tmp_path / "mine" / "patches", FIELDS, "up")
    mine.claim()
    (mine.folder / "shard").write_bytes(b"mine")
    mine.take_over(tmp_path / "old")
    assert (mine.folder / "shard").read_bytes() == b"mine"


def test_taking_over_copies_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    assert (same.folder / "config.json").read_text() == (tmp_path / "old" / "patches" / "config.json").read_text()


def test_shards_without_a_record_are_of_nobody_knows_what(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "patches", {"size": 64}, "")
    (stage.claim() / "shard-00000-of-00001.parquet").touch()
    (stage.folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"patches holds shards and no config\.json"):
        stage.claim()
