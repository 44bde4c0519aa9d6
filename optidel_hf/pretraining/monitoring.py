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
from transformers import ViTModel

from optidel_hf.devices import forked_rng
from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.metrics import keep_lines, read_metrics
from optidel_hf.pretraining.objectives import Objective
from optidel_hf.pretraining.reconstructions import draw_grid, reconstruct
from optidel_hf.pretraining.trackers import track, track_picture


logger = logging.getLogger(__name__)

PICTURES = 8  # images in the grid of reconstructions

Evaluation = Callable[[ViTModel], dict[str, float]]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put the random generators of torch (CPU and `device`), NumPy and Python back at the end."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what an evaluation may still use
    try:
        with forked_rng(device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


class Monitor:
    """
    Draws and evaluates the model every so often.

    Args:
        config ([`PretrainConfig`]): says how often.
        accelerator (`Accelerator`): has the trackers.
        evaluation (`Callable`, *optional*): scores a copy of the encoder; the main process calls it.
        first (`Callable`): the run's first `PICTURES` views `(B, 3, T, T)` and their mask noise `(B, L)`.
        start (`int`): steps that were taken before; evaluations of later ones are cut off.
    """

    def __init__(
        self,
        config: PretrainConfig,
        accelerator: Accelerator,
        evaluation: Evaluation | None,
        first: Callable[[], tuple[torch.Tensor, torch.Tensor]],
        start: int,
    ) -> None:
        self.config, self.accelerator, self.evaluation, self.first = config, accelerator, evaluation, first
        self.out = Path(config.output_dir)
        self.scores = self.out / "evaluations.jsonl"
        if accelerator.is_main_process and self.scores.exists():
            keep_lines(self.scores, start if start > 0 else -1)  # a run that begins evaluates step 0 itself

    def is_due(self, step: int) -> bool:
        """Whether there is something to look at after `step` steps."""
        return self._draws(step) or self._evaluates(step)

    def look(self, objective: Objective, step: int) -> None:
        """Draw and evaluate the objective's model, whole, as it is after `step` steps; the main process calls this."""
        with undisturbed(self.accelerator.device):
            if self._draws(step):
                self._draw(objective, step)
            if self._evaluates(step):
                self._evaluate(objective, step)

    def _draws(self, step: int) -> bool:
        every = self.config.reconstruct_every
        return every > 0 and step % every == 0

    def _evaluates(self, step: int) -> bool:
        every = self.config.evaluate_every
        return self.evaluation is not None and every > 0 and step % every == 0

    def _draw(self, objective: Objective, step: int) -> None:
        views, noise = (part.to(objective.model.device) for part in self.first())
        picture = draw_grid(reconstruct(objective.model, views, noise))
        folder = self.out / "reconstructions"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"step-{step:06d}.png")
        track_picture(self.accelerator, folder.name, picture, step)

    def _evaluate(self, objective: Objective, step: int) -> None:
        assert self.evaluation is not None
        if any(line["step"] == step for line in read_metrics(self.scores)):
            return  # evaluated before the run was stopped at this very step
        scores = self.evaluation(objective.backbone())
        with self.scores.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **scores}) + "\n")
        track(self.accelerator, scores, step)
        logger.info("step %d: %s", step, ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
