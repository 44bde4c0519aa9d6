"""Which device and which number format a run uses."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env

from optidel_hf.errors import UserError


PRECISIONS = ("no", "bf16", "auto")
DTYPES = ("float32", "bfloat16", "auto")
ACCELERATORS = ("cuda", "mps", "xpu")


def resolve_device(name: str = "auto", rank: int | None = None) -> torch.device:
    """
    Turn `--device` into a torch device.

    Args:
        name (`str`, *optional*, defaults to `"auto"`):
            `auto` takes cuda, mps, xpu, then cpu; cpu at once where Accelerate is told so (`accelerate launch --cpu`).
        rank (`int`, *optional*): rank of the calling process; CUDA and XPU devices are dealt out by it.

    Raises:
        `UserError`: if it is no such device, or torch does not see it.
    """
    if name == "auto":
        kinds = () if parse_flag_from_env("ACCELERATE_USE_CPU") else ACCELERATORS
        name = next((kind for kind in kinds if _available(kind)), "cpu")
    kind = name.split(":")[0]
    try:
        torch.device(name)
    except RuntimeError:
        raise UserError(
            f"--device {name}: give auto, cpu, {', '.join(ACCELERATORS)}, or one of these with :N."
        ) from None
    if kind != "cpu" and not _available(kind):
        raise UserError(f"--device {name}: torch {torch.__version__} sees no such device here; use --device cpu.")
    if rank is not None and kind in ("cuda", "xpu") and ":" not in name:
        return torch.device(kind, rank % getattr(torch, kind).device_count())
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`"auto"` is bfloat16 on a GPU that multiplies it natively and float32 elsewhere; else the named dtype."""
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def resolve_precision(name: str, device: torch.device) -> str:
    """Accelerate's `"no"` or `"bf16"`; `"auto"` is what [`resolve_dtype`] says of the device."""
    if name == "auto":
        return "bf16" if resolve_dtype("auto", device) == torch.bfloat16 else "no"
    return name


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """
    The tensor on a device, without waiting for what the device is at where that is safe.

    CUDA has read memory that is not pinned before it returns. MPS may read it when it is no longer there
    (https://github.com/pytorch/pytorch/issues/189690), and the others promise nothing.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def hardware(device: torch.device) -> str:
    """What a card says of the machine: the GPU's name, or the processor's kind and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"


def _available(kind: str) -> bool:
    module = getattr(torch.backends, "mps", None) if kind == "mps" else getattr(torch, kind, None)
    return module is not None and module.is_available()


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Put torch's generators of the CPU and of `device` back at the end; no other device is touched."""
    on_device = {"devices": [device], "device_type": device.type} if device.type != "cpu" else {"devices": []}
    with torch.random.fork_rng(**on_device):
        yield
