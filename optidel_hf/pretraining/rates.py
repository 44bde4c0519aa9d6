"""
The yardstick of speed: the rate of matrix products that the device really reaches, and what a step costs in them.

A fraction of that measured peak, not of the vendor's figure, says how much a faster program could still gain here.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from optidel_hf.pretraining.objectives import Objective


SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough for the device, quick to multiply
REPETITIONS = 5


@functools.lru_cache(maxsize=4)
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """
    Floating-point operations a second in the best of a few square matrix products.

    Args:
        device (`torch.device`): where it is measured.
        dtype (`torch.dtype`): of the matrices.
    """
    side = SIDES.get(device.type, 2048)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = min(_seconds(lambda: left @ right, device) for _ in range(REPETITIONS))
    return 2 * side**3 / seconds


def flops_per_image(objective: Objective) -> int:
    """
    Floating-point operations of the model's matrix products in one image's forward and backward pass.

    They are counted on tensors without memory: nothing is computed, no weight and no gradient changes. What an
    objective does besides (a projection head, the comparison within a batch) is left out: it is under a hundredth.
    """
    model, size = objective.model, objective.model.config.image_size
    inputs = {"pixel_values": torch.empty(1, 3, size, size, device="meta")}
    if "noise" in inspect.signature(type(model).forward).parameters:
        inputs["noise"] = torch.empty(1, (size // model.config.patch_size) ** 2, device="meta")
    weights = {
        name: torch.empty_like(weight, device="meta").requires_grad_(weight.requires_grad)
        for name, weight in model.named_parameters()
    }
    counter = FlopCounterMode(display=False)
    with counter, torch.compiler.set_stance("force_eager"):
        output = functional_call(model, weights, (), inputs)
        (output.logits if "logits" in output else output.last_hidden_state).sum().backward()
    return objective.augmentation.views * counter.get_total_flops()


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it; a CPU has."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
