"""Which device is taken, and what a tensor's way there waits for."""

from __future__ import annotations

import pytest
import torch

from optidel_hf.devices import resolve_device, send


@pytest.mark.parametrize(("told", "device"), [("true", "cpu"), ("1", "cpu"), ("false", "cuda"), (None, "cuda")])
def test_auto_is_the_cpu_where_accelerate_is_told_so(
    told: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    if told is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    assert resolve_device("auto") == torch.device(device)
    assert resolve_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize(("kind", "ahead"), [("cuda", True), ("mps", False), ("xpu", False)])
def test_copies_to_cuda_alone_are_not_waited_for(kind: str, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **options: told.append((device, options)))
    send(torch.ones(2), torch.device(kind))
    assert told == [(torch.device(kind), {"non_blocking": ahead})]
