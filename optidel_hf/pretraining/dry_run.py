"""
What a training would need, from a few of its own steps: nothing is written, and the time is measured, not guessed.

AdamW keeps a weight, its gradient and two moments, 16 bytes a parameter in float32; what a step keeps for its backward
pass is counted as autograd saves it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from optidel_hf.pretraining.rates import synchronize
from optidel_hf.pretraining.residency import Pool, ResidentPool
from optidel_hf.pretraining.trainer import Pretrainer


TIMED_STEPS = 3


@dataclass(frozen=True)
class Rehearsal:
    """
    What a few steps of a training took.

    Args:
        parameters (`int`), encoder_parameters (`int`): of all that is trained, and of what is kept of it.
        state_bytes (`int`): weights, gradients and AdamW's moments, in one process.
        activation_bytes (`int`): what a step keeps for its backward pass, in one process.
        image_bytes (`int`): the pool, where it lies on the device.
        checkpoint_bytes (`int`): one checkpoint on disk.
        seconds_a_step (`float`): mean over the timed steps.
        images_per_second (`float`), fraction_of_peak (`float`): over all processes.
    """

    parameters: int
    encoder_parameters: int
    state_bytes: int
    activation_bytes: int
    image_bytes: int
    checkpoint_bytes: int
    seconds_a_step: float
    images_per_second: float
    fraction_of_peak: float


def rehearse(pretrainer: Pretrainer) -> Rehearsal:
    """
    Take a step to warm up and count, and a few to time; every process calls this. The model is trained by them.

    Args:
        pretrainer ([`Pretrainer`]): fresh, and to be thrown away.
    """
    parameters = sum(weight.numel() for weight in pretrainer.objective.parameters())
    trained = sum(weight.numel() for weight in pretrainer.objective.parameters() if weight.requires_grad)
    encoder = pretrainer.whole().backbone().num_parameters()
    pretrainer.objective.train()
    batches = pretrainer.batches.after(0)
    activations = _saved_bytes(lambda: pretrainer.step(batches))
    seconds = _timed(lambda: pretrainer.step(batches), pretrainer.accelerator.device) / TIMED_STEPS
    speed = pretrainer.config.batch_size / seconds
    sharing = pretrainer.accelerator.num_processes if pretrainer.sharded else 1
    return Rehearsal(
        parameters=parameters,
        encoder_parameters=encoder,
        state_bytes=(4 * parameters + 12 * trained) // sharing,
        activation_bytes=activations,
        image_bytes=sum(_bytes_on_device(part.pool) for part in pretrainer.batches.parts),
        checkpoint_bytes=4 * parameters + 8 * trained,
        seconds_a_step=seconds,
        images_per_second=speed,
        fraction_of_peak=speed / pretrainer.peak_images_per_second(),
    )


def _bytes_on_device(pool: Pool) -> int:
    if isinstance(pool, ResidentPool) and pool.images.device.type == pool.device.type:
        return pool.images.numel()
    return 0


def describe(pretrainer: Pretrainer, rehearsal: Rehearsal) -> str:
    """The rehearsal as lines for the user."""
    config, accelerator = pretrainer.config, pretrainer.accelerator
    state, kept, images = rehearsal.state_bytes, rehearsal.activation_bytes, rehearsal.image_bytes
    count, processes = pretrainer.batches.n_images, accelerator.num_processes
    epochs = f"{count:,}, seen {config.steps * config.batch_size / count:,.1f} times each"
    parts = config.gradient_accumulation_steps
    lines = {
        "parameters": f"{_number(rehearsal.parameters)}, of which {_number(rehearsal.encoder_parameters)} are kept as "
        "the backbone",
        "images": "a stream" if pretrainer.streamed else epochs,
        "batch": f"{config.batch_size} = {processes} process(es) x {parts} part(s) x "
        f"{config.batch_size // (processes * parts)} images",
        "steps": f"{config.steps:,}, {config.warmup:,} of them warm-up to a learning rate of "
        f"{config.peak_learning_rate:.3g}",
        "memory": f"about {_bytes(state + kept + images)} a process: weights, gradients and AdamW {_bytes(state)}, "
        f"activations {_bytes(kept)}, images {_bytes(images)}",
        "disk": f"{config.keep_checkpoints} checkpoints of {_bytes(rehearsal.checkpoint_bytes)}",
        "speed": f"{rehearsal.images_per_second:,.0f} images/s, {rehearsal.fraction_of_peak:.0%} of peak, on "
        f"{processes} x {accelerator.device.type} in {'bf16' if accelerator.mixed_precision == 'bf16' else 'float32'}",
        "time": f"about {_duration(rehearsal.seconds_a_step * config.steps)}, from {TIMED_STEPS} steps of "
        f"{rehearsal.seconds_a_step:.3f} s",
    }
    if accelerator.device.type == "cuda":
        lines["memory"] += f"; at most {_bytes(torch.cuda.max_memory_allocated())} were allocated"
    return "\n".join(f"{name:11} {text}" for name, text in lines.items())


def _saved_bytes(run: Callable[[], object]) -> int:
    """Bytes of what autograd saves for the backward pass while `run` runs, each storage once."""
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(sizes.values())


def _timed(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        run()
    synchronize(device)
    return time.perf_counter() - started


def _number(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {round(seconds) % 60} s"
