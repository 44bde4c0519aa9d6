"""
Trials: every reading of a validation part, by any of the grids that lie side by side, so that tuning can be counted.

    OUT/../trials.jsonl    one line a cell that was judged: when, by which configuration, on which part, and its mIoU

A grid's folder holds one configuration, so the count of configurations has to lie outside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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
    with path.open("a") as file:
        file.write(json.dumps({"date": when, "part": part, "config_hash": config_hash, **facts}) + "\n")


def count_trials(path: Path, part: str) -> dict[str, int]:
    """By arm, the configurations of which this part was read."""
    if not path.exists():
        return {}
    read: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        trial = json.loads(line)
        if trial["part"] == part:
            read.setdefault(trial["arm"], set()).add(trial["config_hash"])
    return {arm: len(hashes) for arm, hashes in read.items()}
