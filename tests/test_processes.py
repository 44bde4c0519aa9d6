"""A process under a launcher takes its share of the cores, leaves alone what the user has set, and repeats nothing."""

from __future__ import annotations

import logging

import pytest
import torch

from optidel_hf import processes
from optidel_hf.processes import share_cores, speak_once


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(processes, "cpu_count", lambda: 6)
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, 6),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}, 3),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "8"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 1),  # no launcher: the user's wish
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "4"}, 1),  # set by the user: torch has read it
    ],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], threads: int) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("rank", "said"), [(None, ["same", "own"]), ("0", ["same", "own"]), ("3", ["own"])])
def test_what_all_would_say_is_said_by_the_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: str | None, said: list[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    caplog.set_level(logging.INFO, "optidel_hf")
    speak_once()
    logger = logging.getLogger("optidel_hf.pretraining.trainer")
    logger.info("same")
    logger.warning("own")
    assert caplog.messages == said
