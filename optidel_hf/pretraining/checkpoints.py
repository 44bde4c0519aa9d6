"""
Checkpoints that survive being killed: a folder is written under a temporary name and renamed when it is whole.

    OUT/checkpoints/step-000100/   Accelerate's state (model, optimizer, scheduler, random states) and position.json

`position.json` is written last. It holds the step, what the run was told, and the SHA-256 of every other file, so that
a folder which was damaged later is recognised before any of it is loaded. A disk that is full ends the run with what
was half-written removed and the checkpoints before it untouched.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from optidel_hf.errors import UserError, changes
from optidel_hf.files import refuse_stage_folder


logger = logging.getLogger(__name__)

POSITION = "position.json"
RUN_FILES = ("checkpoints", "reconstructions", "metrics.jsonl", "evaluations.jsonl", "nonfinite.json")
MODEL_FILES = (
    "backbone",
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "held_out.json",
    "downstream.json",
    "provenance.json",
    "README.md",
    "pretrain_config.json",  # last: a kill before it leaves the rest to the next try
)


def refuse_to_replace(out: Path, model: str | None) -> None:
    """
    Refuse an output folder in which something would be written over that no run of ours has put there.

    Args:
        out (`Path`): where the run writes.
        model (`str`, *optional*): the checkpoint that training starts from.

    Raises:
        `UserError`: naming the curation, the model or the file.
    """
    refuse_stage_folder(out)
    if (out / "inputs.parquet").exists():
        raise UserError(f"--output_dir {out} is a curation's: give the model another folder, such as {out / 'vit'}.")
    given, here = Path(model or "").resolve(), out.resolve()
    if model and (given == here or any(given.is_relative_to(here / part) for part in ("backbone", "checkpoints"))):
        raise UserError(f"--model {model} lies in --output_dir {out}, which is written over: give another one.")
    if not any((out / own).exists() for own in ("checkpoints", "pretrain_config.json")):
        for name in ("README.md", "config.json", "model.safetensors", "backbone"):
            if (out / name).exists():
                raise UserError(f"{out / name} is of something else and would be replaced: give another --output_dir.")


def require_writable(folder: Path) -> None:
    """
    Make a folder, and a file in it, to learn before the work rather than after it whether results can lie there.

    Raises:
        `UserError`: if that cannot be done, with the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): give a folder that can."
        ) from None


def start_over(folder: Path) -> None:
    """
    Remove what an earlier run left in its output, which would else pass for the next one's.

    A model goes only where `pretrain_config.json` says that it is a run's, with what was found out about it since.
    """
    patterns = [*RUN_FILES, *(MODEL_FILES if (folder / "pretrain_config.json").exists() else ())]
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, told: dict[str, Any], keep: int) -> None:
    """
    Write the state after `step` steps; every process calls this.

    Args:
        accelerator (`Accelerator`): has prepared what is to be saved.
        folder (`Path`): `OUT/checkpoints`.
        step (`int`): steps taken so far.
        told (`dict`): what determines the result; compared on resuming.
        keep (`int`): how many checkpoints stay, this one and those before it.

    Raises:
        `UserError`: if it cannot be written, naming the reason and the checkpoint that a resumed run goes on from.
    """
    unfinished = folder / f".unfinished-{step:06d}"
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left
    accelerator.wait_for_everyone()
    with _whole_or_not_at_all(unfinished, step):
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            position = {"step": step, "told": told, "sha256": _digests(unfinished)}
            (unfinished / POSITION).write_text(json.dumps(position, indent=2), encoding="utf-8")
            finished = folder / f"step-{step:06d}"
            shutil.rmtree(finished, ignore_errors=True)  # there only if it was damaged and skipped
            os.replace(unfinished, finished)
    if accelerator.is_main_process:
        for old in _checkpoints(folder, last=step)[:-keep]:
            shutil.rmtree(old)


def resume_checkpoint(accelerator: Accelerator, folder: Path, told: dict[str, Any]) -> int:
    """
    Load the newest checkpoint that is whole; every process calls this.

    Returns:
        `int`: the step it was made at, 0 if there is none.

    Raises:
        `UserError`: if it was made by a run that was told something else; the fields are named.
    """
    for checkpoint in reversed(_checkpoints(folder)):
        position = _read_position(checkpoint)
        if position is None:
            logger.warning("checkpoint %s is incomplete or damaged and is skipped", checkpoint)
            continue
        _refuse_changes(checkpoint, position["told"], told)
        accelerator.load_state(str(checkpoint))
        logger.info("resuming from %s", checkpoint)
        return position["step"]
    return 0


@contextmanager
def _whole_or_not_at_all(unfinished: Path, step: int) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the system says
        shutil.rmtree(unfinished, ignore_errors=True)
        earlier = _checkpoints(unfinished.parent)
        rest = f"{earlier[-1]} is untouched" if earlier else "there is no earlier one"
        raise UserError(
            f"The checkpoint of step {step} cannot be written ({error}); {rest}. "
            f"Make room in {unfinished.parent}: the same command goes on from the newest checkpoint."
        ) from error


def _checkpoints(folder: Path, last: int | None = None) -> list[Path]:
    """Finished checkpoints in the order of their steps, up to step `last`."""
    named = {path.name.removeprefix("step-"): path for path in folder.glob("step-*")}
    found = {int(step): path for step, path in named.items() if step.isdecimal()}  # a copy of one has another name
    return [found[step] for step in sorted(found) if last is None or step <= last]


def _read_position(checkpoint: Path) -> dict[str, Any] | None:
    """The position, or None if it cannot be read or any file differs from what was written."""
    try:
        position = json.loads((checkpoint / POSITION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return position if position["sha256"] == _digests(checkpoint) else None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and the folders in it, which sharded models have."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != POSITION:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _refuse_changes(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if changed := changes(before, now):
        raise UserError(
            f"{checkpoint} was made by another run: {changed}. "
            "Set them back, give another --output_dir, or start over with --resume never."
        )
