"""A pool and a model so small that a step takes milliseconds, and a run of it for child processes."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from accelerate.state import AcceleratorState
from children import CHILDREN
from tiny_sizes import TINY_SIZES
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.trainer import Pretrainer


def tiny_config(output_dir: object, **changes: Any) -> PretrainConfig:
    fields = {**TINY_SIZES, "steps": 12, "batch_size": 16, "base_learning_rate": 2e-2, "checkpoint_every": 4}
    return PretrainConfig(
        output_dir=str(output_dir), **{**fields, "log_every": 1, "report_to": "none", "device": "cpu", **changes}
    )


def tiny_images(count: int = 40, side: int = 40) -> torch.Tensor:
    """Colour gradients of random directions, `(count, 3, side, side)` uint8: what hides is told by what shows."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, side)
    angle = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    ramp = angle.cos() * axis[None, None, :] + angle.sin() * axis[None, :, None]  # (count, side, side)
    colour = 60 * torch.randn(count, 3, 1, 1, generator=generator)
    return (127 + colour * ramp[:, None]).clamp(0, 255).to(torch.uint8)


HANGING = 120  # seconds after which a child says where it is and ends; no run here takes as long


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def torchrun(processes: int, function: Callable[..., None], *arguments: Any) -> None:
    """`torchrun --nproc_per_node`, but with a function."""
    options = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "max_restarts": 0, "monitor_interval": 0.05}
    config = LaunchConfig(1, 1, processes, run_id="test", start_method=CHILDREN.get_start_method(), **options)
    elastic_launch(config, function)(*arguments)


def run_launched(output_dir: object, images: torch.Tensor, changes: dict[str, Any]) -> None:
    """[`run_child`] where a launcher has set the environment."""
    run_child(output_dir, images, **changes)


def run_child(
    output_dir: object, images: torch.Tensor, rank: int = 0, processes: int = 1, port: int = 0, **changes: Any
) -> None:
    """
    A whole run in a process of its own, as one rank of several where `processes` is above 1.

    As in a launched run, gloo's group stays until the process ends: freeing it after `end_training` hangs one run in
    some hundreds, since torch then waits, with Python's lock, for a thread that wants it
    (https://github.com/pytorch/pytorch/issues/56297).
    """
    faulthandler.dump_traceback_later(HANGING, exit=True)
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)  # the parent's knows one process
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        os.environ.update({name: str(value) for name, value in {**place, **address}.items()})
    pretrainer = Pretrainer(tiny_config(output_dir, **changes), images)
    pretrainer.train()
    pretrainer.save()
