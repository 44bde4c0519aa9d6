"""
Pre-training in steps: AdamW under a linear warm-up and a cosine, as in He et al. 2022 (appendix A.1), with Accelerate.

    OUT/metrics.jsonl         step, loss, lr, grad_norm, images_per_second: one line a step
    OUT/evaluations.jsonl     step and the scores of the probes, where some were given
    OUT/reconstructions/      step-000100.png, ...: input, visible patches and reconstruction, where asked for
    OUT/checkpoints/          step-000100, ...: everything from which a killed run goes on
    OUT/                      the trained model, loaded by `ViTMAEForPreTraining.from_pretrained(OUT)`
    OUT/backbone/             its encoder, loaded by `ViTModel.from_pretrained(OUT/backbone)`
    OUT/pretrain_config.json  every field of the configuration, and the facts of the run

One step takes `batch_size` images over all processes. What is random about it depends on (seed, step) alone
([`~optidel_hf.pretraining.batches.draw_batch`]), so a resumed run repeats the uninterrupted one bit for bit on a CPU,
and the number of processes and of accumulated parts changes the result through rounding only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call
from transformers import PreTrainedModel, ViTMAEForPreTraining, get_cosine_schedule_with_warmup

from optidel_hf.devices import resolve_device, resolve_dtype
from optidel_hf.errors import Preempted, UserError
from optidel_hf.pretraining.batches import Draws, ResidentImages, draw_batch, image_processor
from optidel_hf.pretraining.checkpoints import require_writable, resume_checkpoint, save_checkpoint
from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.metrics import StepLog, read_metrics
from optidel_hf.pretraining.monitoring import Evaluation, EvaluationLog, save_picture, undisturbed
from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding, backbone, build_mae
from optidel_hf.pretraining.rates import count_flops, matmul_rate
from optidel_hf.pretraining.reconstructions import draw_grid, reconstruct
from optidel_hf.pretraining.termination import Termination
from optidel_hf.pretraining.trackers import require_tracker, tracking


__all__ = ["PretrainConfig", "Pretrainer"]

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.95)  # He et al. 2022, table 8
FINAL_STEPS = 20
PICTURES = 8  # images in the grid of reconstructions


class Pretrainer:
    """
    Train a model on a pool of images.

    Args:
        config ([`PretrainConfig`]):
            What to train, for how long, and where it goes.
        images (`torch.Tensor` of shape `(N, 3, S, S)`):
            RGB images, uint8; see [`~optidel_hf.pretraining.batches.load_resident`].
        description (`str`, *optional*, defaults to `"pretrain"`):
            What the progress bar is headed with.
        evaluation (`Callable[[ViTModel], dict[str, float]]`, *optional*):
            Scores a copy of the encoder, before the first step and every `config.evaluate_every` steps, on the main
            process while the others wait. It does not change the training.

    Raises:
        `UserError`: if the images have another shape, the batch cannot be shared out, or the device is missing.

    Example:

    ```python
    >>> pretrainer = Pretrainer(PretrainConfig(output_dir="vit", steps=400), images)
    >>> pretrainer.train()
    >>> pretrainer.save()
    ```
    """

    def __init__(
        self,
        config: PretrainConfig,
        images: torch.Tensor,
        description: str = "pretrain",
        evaluation: Evaluation | None = None,
    ) -> None:
        _check_images(images)
        require_tracker(config.report_to)
        self.config, self.description, self.out = config, description, Path(config.output_dir)
        self.evaluation = evaluation
        self.accelerator = _accelerator(config)
        self.parts = self.accelerator.num_processes * config.gradient_accumulation_steps
        _check_batch(config.batch_size, self.accelerator.num_processes, config.gradient_accumulation_steps)
        self.told = {**config.determining(), "images": _fingerprint(images)}
        self.images = ResidentImages(images, self.accelerator.device)
        model = _build_model(config, self.accelerator.device)
        objective = MaskedAutoencoding(model)
        if config.compile:
            objective.compile()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), lr=config.peak_learning_rate, betas=BETAS
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup, config.steps)
        self.objective, self.optimizer, self.schedule = self.accelerator.prepare(objective, optimizer, schedule)
        logger.info("learning rate: base %g, peak %g", config.base_learning_rate, config.peak_learning_rate)

    @property
    def model(self) -> ViTMAEForPreTraining:
        """The model that is trained, without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.objective).model

    def train(self) -> None:
        """
        Train, or go on training, up to `config.steps`.

        Raises:
            `UserError`: if a checkpoint in `output_dir` was made by a run that was told something else, if it cannot
                be written to, or if the loss or a gradient is no longer finite.
            `Preempted`: after SIGTERM, once a checkpoint is written.
        """
        config, start = self.config, self._begin()
        tracker = tracking(self.accelerator, config.report_to, self.out, asdict(config), resumed=start > 0)
        with tracker, Termination(self.accelerator) as termination, self._log(start) as log:
            evaluations = EvaluationLog(self.out / "evaluations.jsonl", self.accelerator, start)
            self.objective.train()
            self._look(start, log, evaluations)
            for step in range(start + 1, config.steps + 1):
                lr = self.schedule.get_last_lr()[0]
                log.add(step, lr, *self._step(self._draw(step - 1)))
                leaving = termination.reached(together=step % config.log_every == 0)
                if step % config.log_every == 0:
                    log.flush()
                if not leaving:  # else what is due now is done when the run goes on
                    self._look(step, log, evaluations)
                if leaving or step % config.checkpoint_every == 0 or step == config.steps:
                    self._save_checkpoint(step, log)
                if leaving:
                    raise Preempted(f"stopped by SIGTERM after step {step}: the same command goes on from there")

    def save(self) -> None:
        """Write the model, its backbone and `pretrain_config.json` into `output_dir`; only the main process does."""
        if not self.accelerator.is_main_process:
            return
        processor = image_processor(self.model.config.image_size)
        _save_model(backbone(self.model), processor, self.out / "backbone")
        _save_model(self.model, processor, self.out)
        record = {**asdict(self.config), **self._facts()}  # the device that was used replaces the one asked for
        unfinished = self.out / ".pretrain_config.json"
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, self.out / "pretrain_config.json")

    @property
    def _checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def _begin(self) -> int:
        """The number of steps that are already taken."""
        if self.config.resume == "never" and self.accelerator.is_main_process:
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        require_writable(self._checkpoints)
        return resume_checkpoint(self.accelerator, self._checkpoints, self.told)

    def _save_checkpoint(self, step: int, log: StepLog) -> None:
        log.flush()  # which refuses a model that is no longer finite
        save_checkpoint(self.accelerator, self._checkpoints, step, self.told, self.config.keep_checkpoints)

    def _log(self, start: int) -> StepLog:
        return StepLog(
            self.out / "metrics.jsonl",
            self.accelerator,
            batch_size=self.config.batch_size,
            start=start,
            steps=self.config.steps,
            description=self.description,
            images_of=lambda step: self._draw(step - 1).index.tolist(),
            peak=self.peak_images_per_second,
        )

    def _look(self, step: int, log: StepLog, evaluations: EvaluationLog) -> None:
        """Draw and evaluate the model after `step` steps where that is due; every process calls this."""
        pictures = _is_due(step, self.config.reconstruct_every)
        evaluating = self.evaluation is not None and _is_due(step, self.config.evaluate_every)
        if not (pictures or evaluating):
            return
        log.flush()
        with undisturbed(self.accelerator.device):
            if pictures and self.accelerator.is_main_process:
                save_picture(self.reconstructions(), self.out / "reconstructions", step, self.accelerator)
            if evaluating and self.accelerator.is_main_process and evaluations.lacks(step):
                evaluations.add(step, self.evaluation(backbone(self.model)))
        self.accelerator.wait_for_everyone()
        log.skip_time()

    def reconstructions(self) -> Image.Image:
        """Input, visible patches and reconstruction of the run's first images, as one picture."""
        draws = self._draw(0)
        first = draws.part(0, max(1, len(draws.index) // PICTURES), self.accelerator.device)
        views = self.images.views(first, self.model.config.image_size)
        return draw_grid(reconstruct(self.model, views, first.noise), self.images.mean, self.images.std)

    def flops_per_image(self) -> int:
        """Floating-point operations of the matrix products in one image's forward and backward pass."""
        objective = self.accelerator.unwrap_model(self.objective)
        size, tokens = self.model.config.image_size, self.model.vit.embeddings.patch_embeddings.num_patches
        inputs = torch.empty(1, 3, size, size, device="meta"), torch.empty(1, tokens, device="meta")
        weights = {
            name: torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)
            for name, weight in objective.named_parameters()
        }
        return count_flops(lambda: functional_call(objective, weights, inputs))

    def peak_images_per_second(self) -> float:
        """Images a second if every process did nothing but its matrix products, at the rate measured for them."""
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        return self.accelerator.num_processes * matmul_rate(self.accelerator.device, dtype) / self.flops_per_image()

    def _draw(self, step: int) -> Draws:
        return draw_batch(
            self.config.seed,
            step,
            batch_size=self.config.batch_size,
            n_images=len(self.images),
            n_tokens=self.model.vit.embeddings.patch_embeddings.num_patches,
            min_crop_scale=self.config.min_crop_scale,
            flip=self.config.flip,
        )

    def _step(self, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimisation step: this process's mean loss, and the gradient's norm before it was clipped."""
        accelerator, losses = self.accelerator, []
        for number in range(self.config.gradient_accumulation_steps):
            part = draws.part(
                number * accelerator.num_processes + accelerator.process_index, self.parts, accelerator.device
            )
            views = self.images.views(part, self.model.config.image_size)
            with accelerator.accumulate(self.objective):
                loss = self.objective(views, part.noise)
                accelerator.backward(loss)
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(self.objective.parameters(), self.config.max_grad_norm)
        if isinstance(grad_norm, DTensor):  # sharded models have it in parts
            grad_norm = grad_norm.full_tensor()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).mean(), grad_norm

    def _facts(self) -> dict[str, Any]:
        metrics = read_metrics(self.out / "metrics.jsonl")
        final = [line["loss"] for line in metrics[-FINAL_STEPS:]]
        device = self.accelerator.device
        return {
            "n_images": len(self.images),
            "peak_learning_rate": self.config.peak_learning_rate,
            "parameters": self.model.num_parameters(),
            "seconds": round(sum(self.config.batch_size / line["images_per_second"] for line in metrics), 1),
            "final_loss": sum(final) / len(final) if final else None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")},
        }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: what has at least two dimensions decays; biases and norms do not. Frozen tables are out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _accelerator(config: PretrainConfig) -> Accelerator:
    device = resolve_device(config.device)
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if resolve_dtype("auto", device) == torch.bfloat16 else "no"
    # Accelerate keeps one precision for the whole process and refuses another: a second run may want its own.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
        # Steps here are the global batch's; by default Accelerate would advance the schedule once for every process.
        step_scheduler_with_optimizer=False,
    )


def _build_model(config: PretrainConfig, device: torch.device) -> ViTMAEForPreTraining:
    # On CPUs in bfloat16 eager attention is faster by far; in float32 there is no difference.
    model = build_mae(
        config.model,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
        attn_implementation="eager" if device.type == "cpu" else "sdpa",
        seed=config.seed,
        **config.sizes(),
    )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _save_model(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    """Save beside the folder's files and move them in, so that no file is ever half-written."""
    unfinished = folder / ".unfinished"
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    for path in sorted(unfinished.iterdir()):
        os.replace(path, folder / path.name)
    unfinished.rmdir()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_images(images: torch.Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise UserError(f"Images must be a uint8 tensor (N, 3, S, S), not {images.dtype} {tuple(images.shape)}.")
    if len(images) == 0:
        raise UserError("There are no images to train on.")


def _check_batch(batch_size: int, processes: int, accumulation: int) -> None:
    if batch_size % (processes * accumulation):
        raise UserError(
            f"--batch_size {batch_size} is the global batch: it must be a multiple of {processes} processes x "
            f"--gradient_accumulation_steps {accumulation} = {processes * accumulation}."
        )


def _fingerprint(images: torch.Tensor) -> str:
    """A hash of the pool's pixels: a run goes on only on the images that it began with."""
    return hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()[:16]
