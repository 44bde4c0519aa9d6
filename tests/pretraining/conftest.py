"""One thread, so that a run in this process and one in a child process round alike."""

from __future__ import annotations

import pytest
import torch

from .tiny import tiny_images


@pytest.fixture(autouse=True)
def alone(one_thread: None) -> None:
    """Every test of this folder, on one thread."""


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return tiny_images()
