"""Time and peak memory of a run, by part, and a file in which they survive a run that is cut off."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


class Clock:
    """Seconds by part, of the run under way; processor time serves where others keep the machine busy."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.now = time.perf_counter

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] += self.now() - began


CLOCK = Clock()


def processor() -> str:
    """The processor's name where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def reset_peak(device: torch.device) -> None:
    """Forget the highest memory so far: allocated on a GPU, else resident (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: torch.device) -> float:
    """Highest memory since then, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) / 1024


def timed(run: Callable[[Image.Image], object], image: Image.Image, device: torch.device) -> dict[str, float]:
    """Seconds of one image (encoder, decoder, rest, total) and its peak memory in MiB."""
    reset_peak(device)
    CLOCK.seconds.clear()
    began = CLOCK.now()
    run(image)
    total = CLOCK.now() - began
    parts = {name: CLOCK.seconds[name] for name in ("encoder", "decoder")}
    return {**parts, "rest": total - sum(parts.values()), "total": total, "peak": peak_memory(device)}


class Timings:
    """
    The timings of a case by side, repeat and image; in a file, if one is named, as soon as they are taken.

    Args:
        path (`Path`, *optional*): one JSON object a line, the case first.
        case (`dict`): what the timings depend on; a file of another case is refused.
    """

    def __init__(self, path: Path | None, case: dict[str, Any]) -> None:
        self.path, self.rows = path, {}
        if path is None:
            return
        if not path.exists():
            path.write_text(json.dumps(case) + "\n", encoding="utf-8")
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != case:
            raise SystemExit(f"{path} holds timings of another case: {first}")
        for line in lines:
            *key, row = json.loads(line)
            self.rows[tuple(key)] = row

    def add(self, key: tuple[str, int, int], row: dict[str, float]) -> None:
        """Keep a timing."""
        self.rows[key] = row
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*key, row]) + "\n")


def spread(values: list[float], digits: int = 2) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
