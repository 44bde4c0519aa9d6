"""
Trials: every reading of a validation part, by any of the grids that lie side by side, so that tuning can be counted.

    OUT/../trials.jsonl    one line a cell that was judged: when, by which configuration, on which part, and its mIoU

A grid's folder holds one configuration, so the count of configurations has to lie outside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def list_of_trials(output: Path) -> Path:
    """Where a grid's readings are listed: beside its output, or in it where nothing can be written beside it."""
    beside = output.resolve().parent
    return (beside if os.access(beside, os.W_OK) else output) / "trials.jsonl"


def note_trial(path: Path, part: str, config_hash: str, facts: Mapping[str, Any]) -> None:
    """
    Write down a reading.

    Args:
        path (`Path`): the list.
        part (`str`): what pool and validation images are told by.
        config_hash (`str`): the configuration's.
        facts (`Mapping[str, Any]`): the cell, and what came out.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    cut_short = path.exists() and not path.read_bytes().endswith(b"\n")  # by a disk that was full
    with path.open("a", encoding="utf-8") as file:
        if cut_short:
            file.write("\n")
        file.write(json.dumps({"date": when, "part": part, "config_hash": config_hash, **facts}) + "\n")


def count_trials(path: Path, part: str) -> dict[str, int]:
    """By arm, the configurations of which this part was read."""
    if not path.exists():
        return {}
    read: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        trial = json.loads(line) if line.endswith("}") else {}  # else it was cut short
        if trial.get("part") == part:
            read.setdefault(trial["arm"], set()).add(trial["config_hash"])
    return {arm: len(hashes) for arm, hashes in read.items()}
