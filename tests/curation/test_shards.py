"""A shard that exists is finished; what was interrupted is invisible."""

from __future__ import annotations

import errno
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optidel_hf.curation import shards
from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.layout import existing_shards, shard_paths
from optidel_hf.parquet import write_parquet


def numbers(start: int, stop: int) -> pa.Table:
    n = list(range(start, stop))
    return pa.table({"n": pa.array(n, pa.int64()), "square": pa.array([i * i for i in n], pa.int64())})


@pytest.mark.parametrize(
    ("rows", "size", "lengths"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (0, 4, [0]), (3, 1, [1, 1, 1])]
)
def test_bounds_cover_every_row_once(rows: int, size: int, lengths: list[int]) -> None:
    bounds = shards.shard_bounds(rows, size)
    assert [len(part) for part in bounds] == lengths
    assert [row for part in bounds for row in part] == list(range(rows))


def test_names_sort_as_numbers(tmp_path: Path) -> None:
    paths = shard_paths(tmp_path, 1200)
    assert paths[7].name == "shard-00007-of-01200.parquet"
    assert sorted(paths) == paths


def test_interrupted_writing_leaves_nothing_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard_paths(tmp_path / "stage", 1)[0]
    whole = pq.write_table

    def killed(table: pa.Table, file: object, **options: object) -> None:
        whole(table, file, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(numbers(0, 3), path)
    assert not path.exists()
    assert existing_shards(path.parent) == []
    monkeypatch.undo()
    write_parquet(numbers(0, 3), path)
    assert list(path.parent.iterdir()) == [path]
    assert pq.read_table(path) == numbers(0, 3)


def test_reading_columns_and_rows_over_shards(tmp_path: Path) -> None:
    for path, (start, stop) in zip(shard_paths(tmp_path, 3), ((0, 4), (4, 4), (4, 9))):
        write_parquet(numbers(start, stop), path)
    assert shards.read_columns(tmp_path, ["n"])["n"].to_pylist() == list(range(9))
    assert shards.read_rows(tmp_path, [8, 3, 4, 3])["square"].to_pylist() == [9, 16, 64]
    assert shards.read_rows(tmp_path, [0, 5], ["n"]).to_pydict() == {"n": [0, 5]}


def test_a_shard_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard-00000-of-00001.parquet"
    write_parquet(pa.table({"a": [1]}), path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(pq, "read_table", refuse)
        with pytest.raises(PermissionError):
            shards.read_columns(tmp_path, ["a"])
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=f"{path} is damaged"):
        shards.read_columns(tmp_path, ["a"])


def test_waiting_ends_when_the_other_rank_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "POLL_SECONDS", 0.01)
    path = tmp_path / "shard.parquet"
    threading.Timer(0.1, path.touch).start()
    assert not path.exists()
    shards.wait_for([path])
    assert path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no folder is locked there")
def test_waiting_ends_when_the_first_rank_has_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "POLL_SECONDS", 0.01)
    first, there = shards.FirstRank(tmp_path), tmp_path / "there"
    assert not first.has_stopped()  # it has not begun
    with alone_in(tmp_path):
        threading.Timer(0.1, there.touch).start()
        shards.wait_for([there], first)
    assert first.has_stopped()
    shards.wait_for([there], first)  # it wrote all that is waited for
    with pytest.raises(UserError, match=r"first process has stopped before .*gone was written: see its own message"):
        shards.wait_for([there, tmp_path / "gone"], first)


def test_what_the_first_rank_wrote_last_is_not_missed(tmp_path: Path) -> None:
    class Stopping(shards.FirstRank):
        """Writes its last file after the other has looked for it, and stops."""

        def has_stopped(self) -> bool:
            (tmp_path / "last").touch()
            return True

    shards.wait_for([tmp_path / "last"], Stopping(tmp_path))
