"""How Accelerate is set up for a training: device, precision, and what sharded models compute in."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch.distributed.fsdp import MixedPrecisionPolicy

from optidel_hf.devices import resolve_device, resolve_precision
from optidel_hf.pretraining.config import PretrainConfig


def make_accelerator(config: PretrainConfig) -> Accelerator:
    """Accelerate for one training: the device and the precision that were asked for, whatever a run before had."""
    device = resolve_device(config.device)
    if device.type == "cuda" and device.index is not None:  # Accelerate takes the current one
        torch.cuda.set_device(device)
    # Accelerate keeps one precision for the whole process and refuses another: a second run may want its own.
    AcceleratorState._reset_state()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=resolve_precision(config.mixed_precision, device),
        # As a plugin: an argument gives way to an ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
        # Steps here are the global batch's; by default Accelerate would advance the schedule once for every process.
        step_scheduler_with_optimizer=False,
        # A probe or a large checkpoint may take the first process longer than the ten minutes that NCCL waits for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
        log_with=None if config.report_to == "none" else config.report_to,
        project_dir=config.output_dir,
    )


def shard_in_float32_but_for_weights(accelerator: Accelerator) -> None:
    """
    Have FSDP in bf16 compute what DDP computes: inputs, the target, the loss and sums of gradients in float32.

    Accelerate's own policy would cast all of them; with this one autocast casts what may be cast.
    """
    plugin = accelerator.state.fsdp_plugin
    if accelerator.mixed_precision == "bf16" and plugin.fsdp_version == 2:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
