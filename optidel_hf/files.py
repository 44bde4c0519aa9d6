"""Small text files: written whole or not at all, and read with a word about which one is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optidel_hf.errors import UserError


def write_text(text: str, path: Path) -> Path:
    """Write `text` beside `path` and rename: `path` is whole or as it was, also after a power cut; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return path


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
