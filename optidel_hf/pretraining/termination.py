"""
Leaving in good order when the scheduler takes the machine away (SIGTERM): finish the step, write a checkpoint, go.

Slurm sends SIGTERM before the time limit and before a pre-emption, Kubernetes before it removes a pod. `torchrun`
passes it on to its processes and exits with 1 whatever they do; `accelerate launch` of one process dies of it alone.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator


class Termination:
    """
    Notes SIGTERM instead of dying of it, while it is entered; every process has one.

    Args:
        accelerator (`Accelerator`): tells the processes of one another's signals.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.noted = accelerator, False
        self.before: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)

    def reached(self, together: bool) -> bool:
        """
        Whether to leave now.

        Args:
            together (`bool`):
                Whether every process is at a step where they look at one another. Several processes leave only there,
                all of them as soon as one was told to; asking at each step would hold up a GPU.
        """
        if self.accelerator.num_processes == 1:
            return self.noted
        if not together:
            return False
        told = torch.tensor(float(self.noted), device=self.accelerator.device)
        return self.accelerator.reduce(told, "sum").item() > 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
