"""
Looking at a model while it trains, without changing the training by a bit: pictures, and evaluations by others.

    OUT/reconstructions/step-000100.png   input, visible patches, reconstruction, of the first images of the run
    OUT/evaluations.jsonl                 step and scores, one line an evaluation

An evaluation gets a copy of the encoder. The random generators are put back as they were, so that it may draw what it
likes; a run with it and one without it have the same losses.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import ViTModel

from optidel_hf.pretraining.metrics import keep_lines, read_metrics
from optidel_hf.pretraining.trackers import track_picture


logger = logging.getLogger(__name__)

Evaluation = Callable[[ViTModel], dict[str, float]]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put the random generators of torch (CPU and `device`), NumPy and Python back at the end."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what an evaluation may still use
    forked = {"device_type": device.type} if device.type != "cpu" else {}
    try:
        with torch.random.fork_rng(devices=[device] if forked else [], **forked):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


class EvaluationLog:
    """
    Evaluations of a run, in `OUT/evaluations.jsonl` and at the tracker.

    Args:
        path (`Path`): the file; lines after step `start` are cut off, and all of them where a run begins.
        accelerator (`Accelerator`): has the trackers.
        start (`int`): steps that were taken before.
    """

    def __init__(self, path: Path, accelerator: Accelerator, start: int) -> None:
        self.path, self.accelerator = path, accelerator
        if accelerator.is_main_process and path.exists():
            keep_lines(path, start if start > 0 else -1)

    def lacks(self, step: int) -> bool:
        """Whether the model has not been evaluated after `step` steps, as where a run was killed meanwhile."""
        return all(line["step"] != step for line in read_metrics(self.path))

    def add(self, step: int, scores: dict[str, float]) -> None:
        """Write down the scores of the model after `step` steps."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scores}) + "\n")
        self.accelerator.log(scores, step=step)
        logger.info("step %d: %s", step, ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))


def save_picture(picture: Image.Image, folder: Path, step: int, accelerator: Accelerator) -> None:
    """Write the picture of a step into `OUT/reconstructions`, and give it to the tracker."""
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"step-{step:06d}.png")
    track_picture(accelerator, folder.name, picture, step)
