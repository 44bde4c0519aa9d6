"""
Readings of the test labels: a list that only grows, so that nobody has to be believed.

A configuration that is to read the test stands in a committed file, and the list says when which configuration read
it, at which commit, and what came out. A second reading says that it is one.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import optidel_hf
from optidel_hf.errors import UserError
from optidel_hf.evidence.config import Experiment


HEADER = """# Readings of the test labels

Written by `optidel reproduce --final`, which alone opens them. A line that says *opened* is followed by one with the
result, unless the run was stopped. Only the first reading of a configuration is a test of it.

| date (UTC) | configuration | commit | |
|---|---|---|---|
"""
OPENED, RESUMED = "opened, ", "resumed"


def current_commit() -> str:
    """The commit of this code, with `-dirty` where tracked files differ from it; `unknown` outside a repository."""
    folder = Path(optidel_hf.__file__).parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit[:12]}{'-dirty' if _git(folder, 'status', '--porcelain', '--untracked-files=no') else ''}"


def repository(file: Path) -> Path | None:
    """The top folder of the repository that a file lies in."""
    top = _git(file.resolve().parent, "rev-parse", "--show-toplevel")
    return Path(top) if top else None


def require_committed(file: Path) -> None:
    """
    Refuse a configuration file that is not committed as it is.

    Raises:
        `UserError`: if it is in no repository, not tracked by it, or changed since.
    """
    folder, name = file.resolve().parent, file.resolve().name
    tracked = _git(folder, "ls-files", "--error-unmatch", "--", name)
    if tracked is None or _git(folder, "status", "--porcelain", "--", name):
        raise UserError(
            f"--final reads the test labels, and {file} is not committed as it is: commit it first, so that the "
            "configuration stands before its result."
        )


def require_declared(experiment: Experiment, declared: Experiment, file: Path) -> None:
    """
    Refuse what is not what the committed file says, but for where things lie and which cells there are.

    Raises:
        `UserError`: naming the fields.
    """
    require_committed(file)
    told, said = (
        one.determining() | {f"grid.{name}": getattr(one.grid, name) for name in ("downstream_groups", "test_reads")}
        for one in (experiment, declared)
    )
    if changed := [name.split(".")[1] for name in told if told[name] != said[name]]:
        raise UserError(f"--final runs what {file} says, and flags changed {', '.join(changed)}: write it there.")


def note_opening(path: Path, config_hash: str) -> None:
    """
    Write down that the test labels are about to be opened.

    To go on after a kill is no second reading. To open them again once there is a result is one, even for more seeds.
    """
    lines = _lines(path, config_hash)
    if lines and OPENED in lines[-1]:
        how = RESUMED
    else:
        number = 1 + sum(OPENED in line and RESUMED not in line for line in lines)
        how = "first reading" if number == 1 else f"READING {number} OF THIS CONFIGURATION"
    _append(path, config_hash, f"{OPENED}{how}")


def note_result(path: Path, config_hash: str, result: str) -> None:
    """Write down what a reading gave, once."""
    if not any(line.endswith(f"| {result} |") for line in _lines(path, config_hash)[-1:]):
        _append(path, config_hash, result)


def is_read(path: Path, config_hash: str) -> bool:
    """Whether the configuration's last reading has its result on the list."""
    lines = _lines(path, config_hash)
    return bool(lines) and OPENED not in lines[-1]


def _append(path: Path, config_hash: str, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = "" if path.exists() else HEADER
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{before}| {date} | {config_hash[:16]} | {current_commit()} | {text} |\n")


def _lines(path: Path, config_hash: str) -> list[str]:
    """The list's lines of one configuration."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if f"| {config_hash[:16]} |" in line]


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in a folder; none where it refuses or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
