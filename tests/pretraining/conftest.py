"""One thread, so that a run in this process and one in a child process round alike."""

from __future__ import annotations

import pytest
import torch

from .tiny import tiny_images


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return tiny_images()
