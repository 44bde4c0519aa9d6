"""Several processes at one task: who this one is, and what the first does alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState
from joblib import cpu_count
from multiprocess import parent_process

from optidel_hf.devices import resolve_device


LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def process_rank() -> tuple[int, int]:
    """Rank and number of processes, as `torchrun` and `accelerate launch` announce them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def share_cores() -> None:
    """
    Take this process's share of the cores where a launcher has left it one thread.

    `accelerate launch` gives a process on a CPU one thread, and so does `torchrun` where there are several, however
    many cores there are. Any other number is the user's (`--num_cpu_threads_per_process`, `OMP_NUM_THREADS`).
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def speak_once() -> None:
    """Leave what processes at one task would all say to the first; warnings are each one's own."""
    if process_rank()[0] > 0:
        logging.getLogger("optidel_hf").setLevel(logging.WARNING)


def take_one_thread_in_a_pool(device: str) -> None:
    """
    Have a pool's process (`map(num_proc=...)`) compute on one thread where it computes on a CPU.

    Its siblings take the other cores; and torch's threads do not survive a fork: with more than one it would wait for
    those of its parent for ever.
    """
    if parent_process() is not None and resolve_device(device).type == "cpu":
        torch.set_num_threads(1)


@contextmanager
def single_process() -> Iterator[None]:
    """
    Hide the launcher from Accelerate, which would else wait for ranks that are not coming.

    What was set up alone is forgotten at the end, so that a later run may take all ranks.
    """
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
        if hidden:
            AcceleratorState._reset_state(reset_partial_state=True)
