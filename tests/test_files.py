"""Small text files are whole or as they were, and one that is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from optidel_hf.errors import UserError
from optidel_hf.files import read_json, write_text


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
