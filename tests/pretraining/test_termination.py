"""What a scheduler does to a run: SIGTERM, and what the run does then."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from children import CHILDREN
from tiny_sizes import TINY_SIZES

from optidel_hf import cli
from optidel_hf.errors import Preempted
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import free_port, run_child, run_launched, tiny_config, torchrun


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts a function in a process of its own, which a test that fails does not leave behind."""
    processes = []

    def started(function: Callable[..., None], *arguments: Any, **named: Any) -> Any:
        processes.append(CHILDREN.Process(target=function, args=arguments, kwargs=named))
        processes[-1].start()
        return processes[-1]

    yield started
    for process in processes:
        process.kill()


def _wait_for(step: int, out: Path, process: Any) -> None:
    while len(read_metrics(out / "metrics.jsonl")) < step:
        assert process.is_alive(), "the run ended before it was told to"
        time.sleep(0.005)


def _command(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.exit(cli.main(arguments))


def test_the_command_leaves_with_a_checkpoint_and_a_code_of_its_own_and_goes_on(image_folder, tmp_path, start) -> None:
    out = tmp_path / "vit"
    sizes = [f"--{name}={value}" for name, value in TINY_SIZES.items()]
    steps = ["--steps=40", "--batch_size=8", "--log_every=1", "--checkpoint_every=1000", "--device=cpu"]
    command = ["pretrain", "--dataset", str(image_folder), "--output_dir", str(out), *sizes, *steps]
    process = start(_command, command)
    _wait_for(5, out, process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == cli.PREEMPTED == 75
    reached = len(read_metrics(out / "metrics.jsonl"))
    assert 5 <= reached < 40
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{reached:06d}"]
    assert cli.main(command) == 0
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == list(range(1, 41))


def _rank(*arguments: Any, **changes: Any) -> None:
    try:
        run_child(*arguments, **changes)
    except Preempted:
        sys.exit(cli.PREEMPTED)


def test_all_processes_leave_together_though_one_alone_was_told_to(images, tmp_path, start) -> None:
    port, changes = free_port(), {"steps": 4000, "checkpoint_every": 4000, "log_every": 3}
    ranks = [start(_rank, tmp_path, images, rank, 2, port, **changes) for rank in (0, 1)]
    _wait_for(3, tmp_path, ranks[0])
    os.kill(ranks[1].pid, signal.SIGTERM)
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [cli.PREEMPTED] * 2
    reached = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert reached % 3 == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{reached:06d}"]


def _launcher(out: Path, images: torch.Tensor, changes: dict[str, Any]) -> None:
    torchrun(2, run_launched, out, images, changes)


def test_a_launcher_that_is_told_to_end_leaves_a_checkpoint(images, tmp_path, start) -> None:
    changes = {"steps": 4000, "checkpoint_every": 4000, "log_every": 2}
    launcher = start(_launcher, tmp_path, images, changes)
    _wait_for(2, tmp_path, launcher)
    os.kill(launcher.pid, signal.SIGTERM)
    launcher.join(120)
    assert launcher.exitcode == 1  # torchrun's own
    reached = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{reached:06d}"]


def test_a_disk_that_fills_up_under_the_log_is_one_sentence(image_folder, tmp_path, monkeypatch, capsys) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    monkeypatch.setattr("optidel_hf.pretraining.metrics.StepLog._write", full)
    sizes = [f"--{name}={value}" for name, value in TINY_SIZES.items()]
    command = ["pretrain", "--dataset", str(image_folder), "--output_dir", str(tmp_path), *sizes, "--device=cpu"]
    assert cli.main([*command, "--steps=2", "--batch_size=4"]) == 2
    assert "No space left on device: 'metrics.jsonl'; make room there" in capsys.readouterr().err


def test_what_was_done_on_sigterm_before_is_done_again_afterwards(images, tmp_path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Pretrainer(tiny_config(tmp_path, steps=1), images).train()
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_signal_of_a_step_is_answered_at_its_end(images, tmp_path, monkeypatch) -> None:
    trainer, seen = Pretrainer(tiny_config(tmp_path, steps=6), images), []
    step = trainer.step

    def interrupted(*arguments: Any) -> Any:
        seen.append(None)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(trainer, "step", interrupted)
    with pytest.raises(Preempted, match="stopped by SIGTERM after step 3"):
        trainer.train()
