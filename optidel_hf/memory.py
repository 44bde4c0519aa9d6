"""How much memory this process may still take: what is free, within the limits of the control groups it is in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil


class _Files(NamedTuple):
    """Where Linux tells of a group's memory; what it caches of files goes as soon as it is needed."""

    folder: str
    limit: str
    used: str
    cached: str


# By the controllers that a line of /proc/self/cgroup names: of version 2 none.
FILES = {
    "": _Files("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Files("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_memory(told: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int:
    """
    Bytes that this process may still take without swapping or being killed.

    Args:
        told (`Path`, *optional*): where the system tells of this process's control groups; elsewhere than on Linux
            there is no such file, and what the machine has free is the answer.
        mounted (`Path`, *optional*): where their files are.
    """
    rooms = [psutil.virtual_memory().available]
    for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else []:
        _, controllers, place = line.split(":", 2)
        if files := FILES.get(controllers):
            root = mounted / files.folder
            own = root / place.strip("/")
            for group in (own, *own.parents[: len(own.relative_to(root).parts)]):
                rooms += _room(group, files)
    return max(0, min(rooms))


def _room(group: Path, files: _Files) -> Iterator[int]:
    """What a group's limit leaves, if it has one. In a container its own group may lie at the root instead."""
    try:
        limit = (group / files.limit).read_text(encoding="utf-8").strip()
        if limit != "max":
            cached = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
            yield int(limit) - int((group / files.used).read_text(encoding="utf-8")) + int(cached[files.cached])
    except OSError:  # no such group here
        return
