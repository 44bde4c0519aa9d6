"""Files that outlive whoever writes them: they are written whole or not at all, and a folder has one writer."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from optidel_hf.errors import UserError
from optidel_hf.layout import STAGES


if sys.platform != "win32":
    import fcntl

ATTEMPTS = 5  # at a lock, a tenth of a second apart: `is_held` takes it for a moment


def write_text(text: str, path: Path) -> Path:
    """Write `text` as [`written_whole`] does; returns `path`."""
    with written_whole(path, mark=f".{os.getpid()}") as file:
        file.write(text.encode())
    return path


@contextmanager
def written_whole(path: Path, mark: str = "") -> Iterator[BinaryIO]:
    """
    A file beside `path` that takes its name once it is written: `path` is whole or as it was, also after a power cut.

    Args:
        path (`Path`): the folders above it are made.
        mark (`str`, *optional*): what tells the file beside it from another process's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{mark}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """
    The JSON object of a file.

    Raises:
        `UserError`: if the file is missing, or was damaged since it was written.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: the stage that writes it has not finished.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run the command that wrote it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (no JSON object): delete it and run the command that wrote it again.")
    return value


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """
    Hold an exclusive lock on an existing output folder; the system releases it when the process dies.

    On a file system without such locks nobody is kept out.

    Raises:
        `UserError`: if another process has it.
    """
    if sys.platform == "win32":  # where a folder cannot be locked
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone leaves it to a child that was forked meanwhile
        os.close(descriptor)


def refuse_stage_folder(output: Path) -> None:
    """
    Refuse to write into a stage of a curation, or anywhere in its curated dataset, whose files it would replace.

    Raises:
        `UserError`: naming that curation.
    """
    output = output.absolute()
    for folder in (output, *output.parents):
        own = folder.name in STAGES if folder == output else folder.name == "curated"
        if own and (folder.parent / "inputs.parquet").exists():
            raise UserError(f"--output_dir {output} is part of the curation {folder.parent}: give another folder.")


def is_held(folder: Path) -> bool:
    """Whether a process, this one or another, has a folder by [`alone_in`]; no, where nobody can tell."""
    if sys.platform == "win32":
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, folder: Path) -> None:
    for _ in range(ATTEMPTS):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:  # no locks there, as on some network file systems
            return None
    raise UserError(f"Another process is at work in --output_dir {folder}: wait for its end, or give another folder.")
