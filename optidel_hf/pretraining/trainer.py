"""
Pre-training in steps: AdamW under a linear warm-up and a cosine, as in He et al. 2022 (appendix A.1), with Accelerate.

    OUT/metrics.jsonl         step, loss, lr, grad_norm, images_per_second: one line a step
    OUT/evaluations.jsonl     step and the scores of the probes, where some were given
    OUT/reconstructions/      step-000100.png, ...: input, visible patches and reconstruction, where asked for
    OUT/nonfinite.json        where a loss was not finite: its step and images
    OUT/checkpoints/          step-000100, ...: everything from which a killed run goes on
    OUT/backbone/             the trained encoder, loaded by `ViTModel.from_pretrained(OUT/backbone)`
    OUT/                      mae: the whole model, loaded by `ViTMAEForPreTraining.from_pretrained(OUT)`;
                              simclr: projection_head.safetensors
    OUT/pretrain_config.json  every field of the configuration, and the facts of the run

One step takes `batch_size` images over all processes. What is random about it depends on (seed, step) alone
([`~optidel_hf.pretraining.draws.draw`]), so a resumed run repeats the uninterrupted one bit for bit on a CPU,
and the number of processes and of accumulated parts changes the result through rounding only.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate.utils import DistributedType
from datasets import Dataset
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel, get_cosine_schedule_with_warmup
from transformers.modeling_layers import GradientCheckpointingLayer

from optidel_hf.checkpoints import checkpoint_fingerprint
from optidel_hf.errors import Preempted, UserError
from optidel_hf.files import alone_in, write_text
from optidel_hf.pretraining.accelerator import make_accelerator, shard_in_float32_but_for_weights
from optidel_hf.pretraining.batches import Batches, BatchesInTurn, Views, image_processor
from optidel_hf.pretraining.checkpoints import (
    refuse_to_replace,
    require_writable,
    resume_checkpoint,
    save_checkpoint,
    start_over,
)
from optidel_hf.pretraining.config import PretrainConfig, at_checkpoint_sizes
from optidel_hf.pretraining.draws import Augmentation
from optidel_hf.pretraining.metrics import StepLog, read_metrics
from optidel_hf.pretraining.monitoring import PICTURES, Evaluation, Monitor
from optidel_hf.pretraining.objectives import OBJECTIVES, Objective
from optidel_hf.pretraining.rates import flops_per_image, matmul_rate
from optidel_hf.pretraining.residency import place
from optidel_hf.pretraining.stored import StoredImages, StreamedImages
from optidel_hf.pretraining.termination import Termination
from optidel_hf.pretraining.trackers import resolve_tracker, tracking
from optidel_hf.sources import find_image_column


__all__ = ["PretrainConfig", "Pretrainer"]

logger = logging.getLogger(__name__)

BETAS = (0.9, 0.95)  # He et al. 2022, table 8
FINAL_STEPS = 20
Images = torch.Tensor | StoredImages | StreamedImages
BLOCK = GradientCheckpointingLayer  # what every transformer block of transformers is


class Pretrainer:
    """
    Train a model on a pool of images.

    Args:
        config ([`PretrainConfig`]):
            What to train, for how long, and where it goes.
        images (`torch.Tensor` of shape `(N, 3, S, S)`, `datasets.Dataset`, [`StoredImages`] or [`StreamedImages`]):
            RGB images, uint8, or where they are stored; see [`~optidel_hf.pretraining.stored.open_images`]. A dataset
            has one image column.
        description (`str`, *optional*, defaults to `"pretrain"`):
            What the progress bar is headed with.
        last (as `images`, *optional*):
            What the last `config.last_share` of the steps are taken on instead; its images are read whole.
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
        images: Images | Dataset,
        description: str = "pretrain",
        evaluation: Evaluation | None = None,
        last: Images | Dataset | None = None,
    ) -> None:
        refuse_to_replace(Path(config.output_dir), config.model)
        config = at_checkpoint_sizes(config)
        images, last = (_stored(given, config.image_size) for given in (images, last))
        config = replace(_with_tiles(config, images), report_to=resolve_tracker(config.report_to))
        self.config, self.description, self.out = config, description, Path(config.output_dir)
        self.evaluation = evaluation
        self.streamed = isinstance(images, StreamedImages)
        self.accelerator = make_accelerator(config)
        if self.sharded:
            shard_in_float32_but_for_weights(self.accelerator)
        _check_batch(config.batch_size, self.accelerator.num_processes, config.gradient_accumulation_steps)
        check_last(config.last_share, last)
        objective = self._build()
        self._flops = flops_per_image(objective) if self.sharded else None  # in a long run only, else
        augmentation, model = config.augmentation(), objective.model.config
        first = self._batches(images, augmentation, model)
        self.batches: Batches | BatchesInTurn = first
        self.told = {**config.determining(), **_start(config), "images": first.pool.fingerprint}
        if last is not None:
            final = self._batches(last, replace(augmentation, tiles=1), model)
            self.batches = BatchesInTurn(first, final, config.steps - config.last_steps)
            self.told["last_images"] = final.pool.fingerprint
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, config.weight_decay),
            lr=config.peak_learning_rate,
            betas=BETAS,
            fused=True,  # one pass over each parameter, which a small model on CPUs feels most
        )
        schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup, config.steps)
        self.objective, self.optimizer, self.schedule = self.accelerator.prepare(objective, optimizer, schedule)
        logger.info("learning rate: base %g, peak %g", config.base_learning_rate, config.peak_learning_rate)

    @property
    def sharded(self) -> bool:
        """Whether no process has all of the weights (FSDP)."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def model(self) -> PreTrainedModel:
        """The model that is trained, without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.objective).model

    def train(self) -> None:
        """
        Train, or go on training, up to `config.steps`.

        Raises:
            `UserError`: if a checkpoint in `output_dir` was made by a run that was told something else, if it cannot
                be written to or another process is at work in it, or if the loss or a gradient is no longer finite.
            `Preempted`: after SIGTERM, once a checkpoint is written.
        """
        require_writable(self.out)
        with alone_in(self.out) if self.accelerator.is_main_process else nullcontext():
            self._train()

    def _train(self) -> None:
        config, start = self.config, self._begin()
        batches = self.batches.after(start)
        tracker = tracking(self.accelerator, config.report_to, self.out, asdict(config), resumed=start > 0)
        with tracker, Termination(self.accelerator) as termination, self._log(start) as log:
            monitor = Monitor(config, self.accelerator, self.evaluation, lambda: self._first_views, start)
            self._look(monitor, start, log)
            for step in range(start + 1, config.steps + 1):
                lr = self.schedule.get_last_lr()[0]
                log.add(step, lr, *self.step(batches))
                leaving = termination.reached(together=step % config.log_every == 0)
                if step % config.log_every == 0:
                    log.flush()
                if not leaving:  # else what is due now is done when the run goes on
                    self._look(monitor, step, log)
                if leaving or step % config.checkpoint_every == 0 or step == config.steps:
                    self._save_checkpoint(step, log)
                if leaving:
                    raise Preempted(f"stopped by SIGTERM after step {step}: the same command goes on from there")

    def save(self) -> None:
        """Write the model, its backbone and `pretrain_config.json` into `output_dir`; every process calls this."""
        objective = self.whole()
        if not self.accelerator.is_main_process:
            return
        require_writable(self.out)
        with alone_in(self.out):
            try:
                objective.save(self.out, image_processor(self.model.config.image_size))
            except SafetensorError as error:  # which wraps what the system says, such as of a full disk
                raise UserError(
                    f"The model cannot be written to {self.out} ({error}): make room there, and the same command goes "
                    "on from its last checkpoint."
                ) from error
            record = {**asdict(self.config), **self._facts()}  # the device that was used replaces the one asked for
            write_text(json.dumps(record, indent=2) + "\n", self.out / "pretrain_config.json")

    @property
    def _checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def _begin(self) -> int:
        """The number of steps that are already taken."""
        if self.config.resume == "never" and self.accelerator.is_main_process:
            start_over(self.out)
        self.accelerator.wait_for_everyone()
        require_writable(self._checkpoints)
        start = resume_checkpoint(self.accelerator, self._checkpoints, self.told)
        if not start and (self.out / "pretrain_config.json").exists():
            raise UserError(
                f"{self.out} holds a finished model, and no checkpoint to go on from: give another --output_dir, or "
                "start over with --resume never."
            )
        self.objective.train()
        return start

    def _batches(self, images: Images, augmentation: Augmentation, model: PretrainedConfig) -> Batches:
        """This process's share of the batches of a pool."""
        config, device = self.config, self.accelerator.device
        return Batches(
            place(images, config.residency, device, config.seed, config.workers, augmentation.tiles),
            augmentation,
            model,
            seed=config.seed,
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            names=images.names if isinstance(images, StoredImages) else None,
        )

    def _build(self) -> Objective:
        """The objective as the configuration has it, before anything is wrapped around it."""
        # On CPUs in bfloat16 eager attention is faster by far; in float32 there is no difference.
        attention = "eager" if self.accelerator.device.type == "cpu" else "sdpa"
        objective = OBJECTIVES[self.config.objective].from_config(self.config, attention)
        if self.config.gradient_checkpointing:
            objective.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if self.config.compile:
            objective.compile()
        # Which layers FSDP shards one by one: the blocks, whatever a model calls them.
        blocks = {type(module).__name__ for module in objective.modules() if isinstance(module, BLOCK)}
        setattr(objective, "_no_split_modules", sorted(blocks))  # noqa: B010 - no module, which is what types say
        return objective

    def whole(self) -> Objective:
        """The objective with all its weights: itself, or on the main process a copy; every process calls this."""
        if not self.sharded:
            return self.accelerator.unwrap_model(self.objective)
        weights = self.accelerator.get_state_dict(self.objective)
        whole = self._build()
        if self.accelerator.is_main_process:
            whole.load_state_dict(weights)
        return whole

    def _log(self, start: int) -> StepLog:
        return StepLog(
            self.out / "metrics.jsonl",
            self.accelerator,
            batch_size=self.config.batch_size,
            start=start,
            steps=self.config.steps,
            description=self.description,
            images_of=self._images_of,
            peak=self.peak_images_per_second,
        )

    def _images_of(self, step: int) -> list[int] | list[str]:
        """The images of step number `step`, counted from 1: sources or rows of a table, or places in a stream."""
        return self.batches.images_of(step - 1)

    @functools.cached_property
    def _first_views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For the pictures; kept, as a stream would be read from its start for each."""
        views, noise = next(self.batches.after(0))
        return views[0][:PICTURES].cpu(), noise[:PICTURES].cpu()

    def _look(self, monitor: Monitor, step: int, log: StepLog) -> None:
        if monitor.is_due(step):
            log.flush()
            objective = self.whole()
            if self.accelerator.is_main_process:
                monitor.look(objective, step)
            self.accelerator.wait_for_everyone()
            log.skip_time()

    def _save_checkpoint(self, step: int, log: StepLog) -> None:
        log.flush()  # which refuses a model that is no longer finite
        save_checkpoint(self.accelerator, self._checkpoints, step, self.told, self.config.keep_checkpoints)

    def peak_images_per_second(self) -> float:
        """Images a second if every process did nothing but its matrix products, at the rate measured for them."""
        dtype = torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else torch.float32
        flops = self._flops or flops_per_image(self.accelerator.unwrap_model(self.objective))
        return self.accelerator.num_processes * matmul_rate(self.accelerator.device, dtype) / flops

    def step(self, batches: Views) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimisation step: this process's mean loss, and the gradient's norm before it was clipped."""
        accelerator, losses = self.accelerator, []
        for views, noise in itertools.islice(batches, self.config.gradient_accumulation_steps):
            with accelerator.accumulate(self.objective):
                with accelerator.autocast() if self.sharded else nullcontext():  # else Accelerate has wrapped forward
                    loss = self.objective(*views, noise=noise)
                accelerator.backward(loss)
            losses.append(loss.detach())
        grad_norm = accelerator.clip_grad_norm_(self.objective.parameters(), self.config.max_grad_norm)
        if isinstance(grad_norm, DTensor):  # of a sharded model
            grad_norm = grad_norm.full_tensor()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).mean(), grad_norm

    def _facts(self) -> dict[str, Any]:
        metrics = read_metrics(self.out / "metrics.jsonl")
        final = [line["loss"] for line in metrics[-FINAL_STEPS:]]
        rates = [line["images_per_second"] for line in metrics]
        device = self.accelerator.device
        return {
            "n_images": self.batches.n_shown(self.config.steps),
            "images_sha256": self.told["images"],
            **self._last_facts(),
            "augmentation": asdict(self.config.augmentation()),
            "peak_learning_rate": self.config.peak_learning_rate,
            "parameters": self.model.num_parameters(),
            "seconds": round(sum(self.config.batch_size / rate for rate in rates if rate), 1),
            "final_loss": sum(final) / len(final) if final else None,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "versions": {package.__name__: package.__version__ for package in (torch, transformers, accelerate)},
        }

    def _last_facts(self) -> dict[str, Any]:
        """The images of the last steps, where these are others."""
        if "last_images" not in self.told:
            return {}
        shown = self.batches.parts[-1].n_shown(self.config.last_steps)
        return {"last_images": shown, "last_images_sha256": self.told["last_images"]}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups: what has at least two dimensions decays; biases and norms do not. Frozen tables are out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _start(config: PretrainConfig) -> dict[str, Any]:
    """The weights that training starts from, whichever revision names them."""
    if config.model is None:
        return {}
    return {"model_revision": None, "weights": checkpoint_fingerprint(config.model, config.model_revision)}


def _with_tiles(config: PretrainConfig, images: torch.Tensor | StoredImages | StreamedImages) -> PretrainConfig:
    """The configuration with the number of tiles that a curated dataset tells, where it needs one and has none."""
    if not config.tile_augmentation:
        return config
    if isinstance(images, StreamedImages):
        raise UserError("--tile_augmentation pairs tiles of any images: give a table, no stream.")
    if config.tiles_per_mosaic is not None:
        return config
    if isinstance(images, torch.Tensor):
        raise UserError("--tile_augmentation: a tensor does not tell how many tiles it has; give --tiles_per_mosaic.")
    return replace(config, tiles_per_mosaic=images.tiles_per_mosaic)


def _stored(images: Any, size: int) -> Any:
    """A dataset's images where they are stored; all else as it is."""
    return StoredImages(images, find_image_column(images), size) if isinstance(images, Dataset) else images


def check_last(share: float, last: Images | str | None) -> None:
    """Refuse last steps without images for them, and images without steps, with a `UserError`."""
    if share and last is None:
        raise UserError(f"--last_share {share:g} of the steps are for other images: give --last_dataset as well.")
    if last is not None and not share:
        raise UserError("--last_dataset is for the last steps: say for which share of them with --last_share.")


def _check_batch(batch_size: int, processes: int, accumulation: int) -> None:
    if batch_size % (processes * accumulation):
        raise UserError(
            f"--batch_size {batch_size} is the global batch: it must be a multiple of {processes} processes x "
            f"--gradient_accumulation_steps {accumulation} = {processes * accumulation}."
        )
