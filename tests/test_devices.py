"""What a tensor's way to a device waits for."""

from __future__ import annotations

import pytest
import torch

from optidel_hf.devices import send


@pytest.mark.parametrize(("kind", "ahead"), [("cuda", True), ("mps", False), ("xpu", False)])
def test_copies_to_cuda_alone_are_not_waited_for(kind: str, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **options: told.append((device, options)))
    send(torch.ones(2), torch.device(kind))
    assert told == [(torch.device(kind), {"non_blocking": ahead})]
