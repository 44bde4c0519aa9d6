from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from optidel_hf.errors import UserError
from optidel_hf.pretraining.checkpoints import require_writable, resume_checkpoint, save_checkpoint


FORK = multiprocessing.get_context("fork")
TOLD = {"steps": 9, "seed": 0}


@pytest.fixture
def run(tmp_path) -> tuple[Accelerator, torch.nn.Linear, Path]:
    accelerator = Accelerator(cpu=True)
    model, optimizer = torch.nn.Linear(2, 2), None
    optimizer = torch.optim.AdamW(model.parameters())
    model, _ = accelerator.prepare(model, optimizer)
    return accelerator, model, tmp_path


def _save_at(run: tuple[Accelerator, torch.nn.Linear, Path], step: int, keep: int = 5) -> None:
    accelerator, model, folder = run
    torch.nn.init.constant_(model.weight, step)
    save_checkpoint(accelerator, folder, step, TOLD, keep)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_and_the_oldest_go(run) -> None:
    accelerator, model, folder = run
    for step in (1, 2, 3):
        _save_at(run, step, keep=2)
    assert _names(folder) == ["step-000002", "step-000003"]
    (folder / "step-000002.bak").mkdir()
    torch.nn.init.zeros_(model.weight)
    assert resume_checkpoint(accelerator, folder, TOLD) == 3
    assert (model.weight == 3).all()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "position.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_one_is_skipped_with_a_warning_for_the_one_before(run, caplog, file: str, how: str) -> None:
    accelerator, model, folder = run
    for step in (1, 2):
        _save_at(run, step)
    victim = folder / "step-000002" / file
    content = victim.read_bytes()
    damaged = {"cut": content[: len(content) // 2], "changed": content[:-9] + b"?" + content[-8:]}
    victim.unlink() if how == "gone" else victim.write_bytes(damaged[how])
    assert resume_checkpoint(accelerator, folder, TOLD) == 1
    assert (model.weight == 1).all()
    assert "step-000002 is incomplete or damaged and is skipped" in caplog.text


def test_a_damaged_one_is_no_reason_to_delete_a_good_one(run) -> None:
    accelerator, _, folder = run
    _save_at(run, 9)
    (folder / "step-000009" / "model.safetensors").write_bytes(b"")
    _save_at(run, 4, keep=1)
    assert resume_checkpoint(accelerator, folder, TOLD) == 4
    _save_at(run, 9, keep=1)
    assert _names(folder) == ["step-000009"]
    assert resume_checkpoint(accelerator, folder, TOLD) == 9


def test_what_a_killed_run_left_half_written_is_no_checkpoint(run) -> None:
    accelerator, _, folder = run
    (folder / ".unfinished-000001").mkdir()
    (folder / ".unfinished-000001" / "old.bin").write_bytes(b"left behind")
    assert resume_checkpoint(accelerator, folder, TOLD) == 0
    _save_at(run, 1)
    assert _names(folder) == ["step-000001"]
    assert "old.bin" not in json.loads((folder / "step-000001" / "position.json").read_text())["sha256"]


def test_a_run_that_was_told_something_else_is_refused_by_field(run) -> None:
    accelerator, _, folder = run
    _save_at(run, 1)
    with pytest.raises(UserError, match=r"seed was 0, now 1.*--resume never"):
        resume_checkpoint(accelerator, folder, {**TOLD, "seed": 1})


def _disk_without_room(bytes_left: int) -> None:
    """No file of this process may grow beyond that: the write that does fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, resource.RLIM_INFINITY))


def _save_without_room(run: tuple[Accelerator, torch.nn.Linear, Path], bytes_left: int, told: Any) -> None:
    _disk_without_room(bytes_left)
    with pytest.raises(UserError) as refused:
        _save_at(run, 2)
    told.send(str(refused.value))


@pytest.mark.parametrize(("file", "bytes_left"), [("model.safetensors", 10), ("optimizer.bin", 400)])
def test_a_full_disk_ends_the_run_and_spares_the_checkpoint_before(run, file: str, bytes_left: int) -> None:
    accelerator, model, folder = run
    _save_at(run, 1)
    sizes = [(folder / "step-000001" / name).stat().st_size for name in ("model.safetensors", "optimizer.bin")]
    assert sum(size > bytes_left for size in sizes) == (2 if file == "model.safetensors" else 1)
    parent, child = FORK.Pipe()
    process = FORK.Process(target=_save_without_room, args=(run, bytes_left, child))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    sentence = parent.recv()
    assert "The checkpoint of step 2 cannot be written" in sentence
    assert "step-000001 is untouched. Make room in" in sentence
    assert _names(folder) == ["step-000001"]
    assert resume_checkpoint(accelerator, folder, TOLD) == 1
    assert (model.weight == 1).all()


def test_no_space_left_is_told_as_the_system_tells_it(run, monkeypatch) -> None:
    accelerator, _, folder = run

    def full(unfinished: str) -> None:
        Path(unfinished).mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(accelerator, "save_state", full)
    with pytest.raises(
        UserError, match=r"step 1 cannot be written \(.*No space left on device\); there is no earlier"
    ):
        _save_at(run, 1)
    assert _names(folder) == []


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_dir .*/file/out cannot be written to \(Not a directory\)"):
        require_writable(tmp_path / "file" / "out")

    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    require_writable(tmp_path / "out")
    assert _names(tmp_path / "out") == []
    monkeypatch.setattr("tempfile.TemporaryFile", read_only)  # permissions do not bind root
    with pytest.raises(UserError, match=r"/out cannot be written to \(Read-only file system\)"):
        require_writable(tmp_path / "out")
