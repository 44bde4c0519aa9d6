"""A final reading needs a committed configuration, and the list of readings tells a second from a first."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_grid import tiny_experiment

from optidel_hf.cli import main
from optidel_hf.errors import UserError
from optidel_hf.evidence.reads import (
    HEADER,
    current_commit,
    is_read,
    note_opening,
    note_result,
    repository,
    require_committed,
    require_declared,
)


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A configuration file in a repository of its own."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    file = tmp_path / "repository" / "grid.yaml"
    file.parent.mkdir()
    file.write_text("seeds: 2\n")
    git(file.parent, "init", "-q")
    git(file.parent, "add", file.name)
    git(file.parent, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return file


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def test_only_a_committed_file_passes(committed: Path, tmp_path: Path) -> None:
    require_committed(committed)
    committed.write_text("seeds: 3\n")
    with pytest.raises(UserError, match=r"grid.yaml is not committed as it is: commit it first"):
        require_committed(committed)
    git(committed.parent, "add", committed.name)  # staged is not committed
    with pytest.raises(UserError, match="not committed"):
        require_committed(committed)
    untracked = committed.with_name("other.yaml")
    untracked.write_text("seeds: 3\n")
    outside = tmp_path / "grid.yaml"
    outside.write_text("seeds: 3\n")
    for file in (untracked, outside):
        with pytest.raises(UserError, match="not committed"):
            require_committed(file)


def test_the_commit_is_dirty_where_what_git_knows_has_changed(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optidel_hf.__file__", str(committed))
    head = (committed.parent / ".git" / "refs" / "heads").glob("*")
    clean = next(head).read_text()[:12]
    committed.with_name("notes.txt").write_text("untracked")
    assert current_commit() == clean
    committed.write_text("seeds: 3\n")
    assert current_commit() == f"{clean}-dirty"
    monkeypatch.setattr("optidel_hf.__file__", str(tmp_path / "installed.py"))
    assert current_commit() == "unknown"


def test_without_git_no_commit_is_known_and_no_file_passes(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit() == "unknown"
    assert repository(committed) is None
    with pytest.raises(UserError, match="not committed"):
        require_committed(committed)


def test_a_repository_is_its_top_folder(committed: Path, tmp_path: Path) -> None:
    (committed.parent / "configs").mkdir()
    assert repository(committed.parent / "configs" / "grid.yaml") == committed.parent.resolve()
    assert repository(tmp_path / "grid.yaml") is None


def test_the_list_of_readings_is_one_from_whichever_folder(
    committed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr("optidel_hf.evidence.grid.Grid.__init__", lambda self, told: seen.append(told.grid.test_reads))
    monkeypatch.setattr("optidel_hf.evidence.grid.Grid.run", lambda self: None)
    flags = ["reproduce", "--config", str(committed), "--pool", "pool", "--downstream", "labels"]
    for folder in (tmp_path, committed.parent):
        monkeypatch.chdir(folder)
        assert main(flags) == 0
    assert seen == [str(committed.parent.resolve() / "benchmarks" / "test_reads.md")] * 2


def test_flags_may_say_where_things_lie_and_nothing_else(committed: Path, tmp_path: Path) -> None:
    def experiment(name: str, **changes: object):
        places = (tmp_path / name, tmp_path / f"{name}-set", tmp_path / f"{name}-out")
        return tiny_experiment(*places, **{"test_reads": "reads.md", **changes})

    require_declared(experiment("here", seeds=5), experiment("there"), committed)
    with pytest.raises(UserError, match=r"flags changed batch_size, probe_steps: write it there"):
        require_declared(experiment("here", probe_steps=9, training={"batch_size": 4}), experiment("there"), committed)
    with pytest.raises(UserError, match=r"flags changed downstream_groups: write it there"):
        require_declared(experiment("here", downstream_groups="_0"), experiment("there"), committed)
    with pytest.raises(UserError, match=r"flags changed test_reads: write it there"):
        require_declared(experiment("here", test_reads="hidden.md"), experiment("there"), committed)


def test_a_second_reading_says_that_it_is_one(tmp_path: Path) -> None:
    path, first, other = tmp_path / "benchmarks" / "test_reads.md", "a" * 64, "b" * 64
    note_opening(path, first)
    note_opening(path, first)
    assert not is_read(path, first)
    note_result(path, first, "optidel: 0.5")
    note_result(path, first, "optidel: 0.5")
    assert is_read(path, first)
    note_opening(path, other)
    note_opening(path, first)
    assert not is_read(path, first)
    written = path.read_text()
    assert written.startswith(HEADER)
    cells = [line.split(" | ") for line in written.removeprefix(HEADER).splitlines()]
    assert [(config, said.removesuffix(" |")) for _, config, _, said in cells] == [
        ("a" * 16, "opened, first reading"),
        ("a" * 16, "opened, resumed"),
        ("a" * 16, "optidel: 0.5"),
        ("b" * 16, "opened, first reading"),
        ("a" * 16, "opened, READING 2 OF THIS CONFIGURATION"),
    ]
    note_result(path, first, "optidel: 0.5")  # the same again is a result, too
    assert is_read(path, first)
    note_opening(path, first)
    assert "opened, READING 3 OF THIS CONFIGURATION" in path.read_text()


def test_final_without_a_committed_file_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--final"]) == 2
    assert "--final needs --config FILE" in capsys.readouterr().err
    (tmp_path / "grid.yaml").write_text("seeds: 2\n")
    assert main(["reproduce", "--config", "grid.yaml", "--final"]) == 2
    assert "commit it first" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]
