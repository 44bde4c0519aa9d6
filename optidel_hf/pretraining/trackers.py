"""
Experiment trackers, through Accelerate: where curves and pictures go beside `metrics.jsonl`.

`trackio` keeps them in a local database and needs neither account nor network (`trackio show`), `tensorboard` writes
into `OUT/tensorboard`, `wandb` sends them to its server unless WANDB_MODE says offline.

A tracker that fails is given up with a warning: no run ends for the sake of its curves, which `metrics.jsonl` has too.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from optidel_hf.errors import UserError


logger = logging.getLogger(__name__)

PROJECT = "optidel"


@functools.cache  # a process that trains several models says it once
def resolve_tracker(name: str) -> str:
    """
    The tracker that `--report_to` stands for: `auto` is trackio where it is installed, else none.

    Raises:
        `UserError`: if its package is not installed.
    """
    if name == "auto":
        if importlib.util.find_spec("trackio") is not None:
            return "trackio"
        logger.info("no tracker: with `pip install trackio`, `trackio show` draws what metrics.jsonl has")
        return "none"
    if name != "none" and importlib.util.find_spec(name) is None:
        raise UserError(f"--report_to {name}: that package is not installed: `pip install {name}`, or give none.")
    return name


@contextmanager
def _spared(accelerator: Accelerator) -> Iterator[None]:
    """Give up the trackers at whatever error a tracker's package raises: a full disk, a locked file, no network."""
    try:
        yield
    except Exception as error:
        logger.warning("the tracker is given up, the training goes on: %s: %s", type(error).__name__, error)
        accelerator.trackers.clear()


@contextmanager
def tracking(
    accelerator: Accelerator, name: str, folder: Path, settings: dict[str, Any], resumed: bool
) -> Iterator[None]:
    """
    Open the tracker that the accelerator was made with, if there is one, and always close it.

    Args:
        accelerator (`Accelerator`): made with `log_with` and the output folder as its project's.
        name (`str`): the tracker, or `"none"`.
        folder (`Path`): output folder; its name is the run's.
        settings (`dict`): what the run was told.
        resumed (`bool`): whether it goes on from a checkpoint; trackio then goes on with its curves.
    """
    if name == "none":
        yield
        return
    # TensorBoard names a run by its folder, and takes neither a name here nor a setting that is None.
    run = {"name": folder.name}
    named = {"trackio": {**run, "resume": "allow" if resumed else "never"}, "wandb": run}
    project = name if name == "tensorboard" else PROJECT
    told = {key: str(value) if value is None else value for key, value in settings.items()}
    with _spared(accelerator):
        accelerator.init_trackers(project, config=told, init_kwargs=named)
    try:
        yield
    finally:
        with _spared(accelerator):
            for tracker in accelerator.trackers:
                tracker.finish()
        accelerator.trackers.clear()


def track(accelerator: Accelerator, values: dict[str, float], step: int) -> None:
    """Give figures to the tracker, if any; the main process does."""
    with _spared(accelerator):
        accelerator.log(values, step=step)


def track_picture(accelerator: Accelerator, title: str, picture: Image.Image, step: int) -> None:
    """Give a picture to the tracker, if any; the main process does."""
    with _spared(accelerator):
        for tracker in accelerator.trackers:
            if tracker.name == "trackio":  # Accelerate's wrapper of it has no `log_images`
                import trackio  # type: ignore[import-not-found]

                tracker.log({title: trackio.Image(picture)}, step=step)
            elif tracker.name == "tensorboard":
                tracker.log_images({title: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({title: [picture]}, step=step)
