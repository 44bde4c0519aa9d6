"""
What a run tells while it goes: one JSON line a step in `metrics.jsonl`, and a progress bar with rates.

Losses stay on the device until they are looked at, every `log_every` steps, so that a GPU need not wait for each one.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from optidel_hf.errors import UserError


class StepLog:
    """
    The log of a run, a context manager; every process has one, the main process writes.

    Args:
        path (`Path`): `OUT/metrics.jsonl`; lines after step `start` are cut off, those before it stay.
        accelerator (`Accelerator`): averages the loss over the processes.
        batch_size (`int`): images in a step.
        start (`int`), steps (`int`): where the run begins and ends.
        description (`str`): what the bar is headed with.
    """

    def __init__(
        self, path: Path, accelerator: Accelerator, *, batch_size: int, start: int, steps: int, description: str
    ) -> None:
        self.path, self.accelerator, self.batch_size = path, accelerator, batch_size
        self.pending: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
        if accelerator.is_main_process:
            keep_lines(path, start)
        self.bar = tqdm(
            total=steps,
            initial=start,
            desc=description,
            unit="step",
            disable=not accelerator.is_main_process,
        )
        self.looked = time.perf_counter()

    def __enter__(self) -> StepLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def add(self, step: int, lr: float, loss: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Note step number `step`, counted from 1; `loss` is this process's mean, `grad_norm` is the same for all."""
        self.pending.append((step, lr, loss, grad_norm))
        self.bar.update()

    def flush(self) -> None:
        """
        Look at what was noted since the last time and write it down; every process calls this.

        Raises:
            `UserError`: if a loss is not finite, naming its step.
        """
        if not self.pending:
            return
        steps, rates, losses, norms = zip(*self.pending)
        loss_values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        norm_values = torch.stack(norms).tolist()
        now = time.perf_counter()
        speed = round(self.batch_size * len(steps) / (now - self.looked), 1)
        self.pending, self.looked = [], now
        lines = [
            {"step": step, "loss": loss, "lr": lr, "grad_norm": norm, "images_per_second": speed}
            for step, loss, lr, norm in zip(steps, loss_values, rates, norm_values)
        ]
        if self.accelerator.is_main_process:
            self._write(lines)
        _refuse_infinite(lines)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        finite = [line for line in lines if math.isfinite(line["loss"])]
        with self.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in finite)
        last = lines[-1]
        self.bar.set_postfix_str(
            f"loss {last['loss']:.4f}, lr {last['lr']:.2e}, {last['images_per_second']:.0f} images/s"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last one that was cut short; empty if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]


def keep_lines(path: Path, last_step: int) -> None:
    """Cut off what was written after step `last_step`, so that a resumed run has each step once."""
    lines = [line for line in read_metrics(path) if line["step"] <= last_step]
    rewritten = path.with_name(f".{path.name}")
    rewritten.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(rewritten, path)


def _refuse_infinite(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        if not math.isfinite(line["loss"]):
            raise UserError(
                f"The loss is {line['loss']} at step {line['step']} (learning rate {line['lr']:.2e}): lower "
                "--base_learning_rate, lengthen --warmup_steps, or compute with --mixed_precision no."
            )
