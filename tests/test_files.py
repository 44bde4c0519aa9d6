"""Small text files are whole or as they were, one that is damaged is named, and a folder has one writer."""

from __future__ import annotations

import errno
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from children import CHILDREN

from optidel_hf.errors import UserError
from optidel_hf.files import alone_in, is_held, read_json, write_text


locked = pytest.mark.skipif(sys.platform == "win32", reason="no folder is locked there")


def test_a_text_is_written_into_folders_that_are_made(tmp_path: Path) -> None:
    path = write_text("µ\n", tmp_path / "a" / "b" / "text.md")
    assert path.read_text(encoding="utf-8") == "µ\n"
    write_text("again", path)
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("text.md", "again")]


def test_what_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"report\.html"):
        write_text("page", tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("content", [b'{"miou": 0.', b"\xff\xfe{}", b"[1, 2]", b""])
def test_a_damaged_object_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged \(.+\): delete it and run the command"):
        read_json(tmp_path / "run.json")


def test_a_missing_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json does not exist"):
        read_json(tmp_path / "run.json")


def _hold(folder: Path, told: Connection) -> None:
    with alone_in(folder):
        told.send("held")
        time.sleep(600)


@locked
def test_a_folder_is_one_process_alone_until_that_ends_or_dies(tmp_path: Path) -> None:
    heard, told = CHILDREN.Pipe(duplex=False)
    child = CHILDREN.Process(target=_hold, args=(tmp_path, told), daemon=True)
    child.start()
    assert heard.recv() == "held"
    assert is_held(tmp_path)
    with (
        pytest.raises(UserError, match=f"at work in --output_dir {tmp_path}: wait for its end, or give"),
        alone_in(tmp_path),
    ):
        pass
    child.kill()
    child.join()
    assert not is_held(tmp_path)
    for _ in range(2):
        with alone_in(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


@locked
def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("optidel_hf.files.fcntl.flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        assert not is_held(tmp_path)


@locked
def test_a_child_that_was_forked_meanwhile_does_not_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, shared = os.open, []

    def fork(*arguments: Any) -> int:
        descriptor = opened(*arguments)
        shared.append(os.dup(descriptor))  # what a child has of it
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fork)
        with alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass
    os.close(*shared)
