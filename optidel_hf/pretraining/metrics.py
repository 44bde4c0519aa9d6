"""
What a run tells while it goes: one JSON line a step in `metrics.jsonl`, a progress bar with rates, and a tracker.

Losses stay on the device until they are looked at, every `log_every` steps, so that a GPU need not wait for each one.
A loss or a gradient that is not finite ends the run there, with the images of its step in `nonfinite.json`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from optidel_hf.errors import Diverged
from optidel_hf.files import write_text
from optidel_hf.pretraining.trackers import track


# A short run needs no yardstick, and the first seconds of a long one are warm-up.
SETTLED_SECONDS = 10.0


class StepLog:
    """
    The log of a run, a context manager; every process has one, the main process writes.

    Args:
        path (`Path`): `OUT/metrics.jsonl`; lines after step `start` are cut off, those before it stay.
        accelerator (`Accelerator`): averages the loss over the processes, and has the trackers.
        batch_size (`int`): images in a step.
        start (`int`), steps (`int`): where the run begins and ends.
        description (`str`): what the bar is headed with.
        images_of (`Callable`): the images of a step, as `nonfinite.json` lists them.
        peak (`Callable`): images a second if all went at the rate of matrix products; asked once, in a long run.
    """

    def __init__(
        self,
        path: Path,
        accelerator: Accelerator,
        *,
        batch_size: int,
        start: int,
        steps: int,
        description: str,
        images_of: Callable[[int], Sequence[int | str]],
        peak: Callable[[], float],
    ) -> None:
        self.path, self.accelerator, self.batch_size = path, accelerator, batch_size
        self.images_of, self.peak = images_of, peak
        self.peak_images_per_second: float | None = None
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
        self.began = self.looked = time.perf_counter()

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
            `Diverged`: if a loss or a gradient is not finite, naming its step.
        """
        if not self.pending:
            return
        steps, rates, losses, norms = zip(*self.pending)
        loss_values = self.accelerator.reduce(torch.stack(losses), "mean").tolist()
        norm_values = torch.stack(norms).tolist()
        now = time.perf_counter()
        speed = float(f"{self.batch_size * len(steps) / (now - self.looked):.4g}")  # never 0, however long it slept
        self.pending, self.looked = [], now
        lines = [
            {"step": step, "loss": loss, "lr": lr, "grad_norm": norm, "images_per_second": speed}
            for step, loss, lr, norm in zip(steps, loss_values, rates, norm_values)
        ]
        bad = next((line for line in lines if not _is_finite(line)), None)
        if self.accelerator.is_main_process:
            self._write(lines if bad is None else lines[: lines.index(bad)])
        if bad is not None:
            self._refuse(bad)

    def skip_time(self) -> None:
        """Leave what was done since the last look out of the rates: an evaluation, a picture."""
        self.looked = time.perf_counter()
        self.bar.unpause()

    def _write(self, lines: list[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        for line in lines:
            track(self.accelerator, {name: line[name] for name in line if name != "step"}, line["step"])
        if lines:
            self.bar.set_postfix_str(self._postfix(**lines[-1]))

    def _postfix(self, loss: float, lr: float, images_per_second: float, **rest: float) -> str:
        if self.peak_images_per_second is None and time.perf_counter() - self.began > SETTLED_SECONDS:
            self.peak_images_per_second = self.peak()
            self.skip_time()
        peak = self.peak_images_per_second
        fraction = f", {images_per_second / peak:.0%} of peak" if peak else ""
        return f"loss {loss:.4f}, lr {lr:.2e}, {images_per_second:.0f} images/s{fraction}"

    def _refuse(self, line: dict[str, Any]) -> NoReturn:
        name = "loss" if not math.isfinite(line["loss"]) else "grad_norm"
        record = self.path.with_name("nonfinite.json")
        if self.accelerator.is_main_process:
            values = {key: line[key] if math.isfinite(line[key]) else str(line[key]) for key in line}
            record.write_text(
                json.dumps({**values, "images": list(self.images_of(line["step"]))}, indent=2) + "\n", encoding="utf-8"
            )
        raise Diverged(
            f"The {name} is {line[name]} at step {line['step']} (learning rate {line['lr']:.2e}); {record} lists the "
            "images of that step. Look at them, or lower --base_learning_rate, lengthen --warmup_steps or compute "
            "with --mixed_precision no, in another --output_dir: the same run would come to the same step."
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last one that was cut short; empty if there is no such file."""
    if not path.exists():
        return []
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")
    ]


def keep_lines(path: Path, last_step: int) -> None:
    """Cut off what was written after step `last_step`, so that a resumed run has each step once."""
    lines = [line for line in read_metrics(path) if line["step"] <= last_step]
    write_text("".join(json.dumps(line) + "\n" for line in lines), path)


def _is_finite(line: dict[str, Any]) -> bool:
    return math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])
