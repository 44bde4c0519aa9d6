"""
The frames that pre-trained models are judged on: those that a curation holds out of its pool, or a downstream set's.

A share of the images, in whole near-duplicate groups, is held out before any patch is cut, so that neither the
reference models nor any strategy sees them. The choice depends on the groups' names alone, so all arms of one pool
hold out the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from optidel_hf.curation.folds import take_share
from optidel_hf.curation.inputs import InputConfig, group_images, open_sources
from optidel_hf.errors import UserError, named_by
from optidel_hf.files import read_json
from optidel_hf.images import decode_reason
from optidel_hf.parquet import read_table


class Frames(NamedTuple):
    """Readable images to judge models on."""

    images: list[Any]  # undecoded
    sources: list[str]
    groups: list[str]


def hold_out(groups: Sequence[str], share: float, seed: int = 0) -> set[str]:
    """
    Whole groups, in the order of their names' hashes, until they hold `share` of the images; never the largest.

    Args:
        groups (`Sequence[str]`): group of each image.
        share (`float`): 0 holds out nothing.
        seed (`int`, *optional*, defaults to 0): of the hashes; 0 for what all arms of a pool hold out.

    Raises:
        `UserError`: if a share is asked for and all images are of one group.
    """
    images = Counter(groups)
    if share and len(images) < 2:
        raise UserError("--held_out needs at least two groups of images, and these are all of one.")
    return take_share(images, share, key=lambda name: hashlib.sha256(f"held out {seed}:{name}".encode()).hexdigest())


def held_out_frames(folder: Path) -> Frames:
    """The readable frames that a curation held out."""
    path = folder / "held_out.parquet"
    if not path.exists():
        raise UserError(
            f"{folder} held no image out: curate into another folder with --held_out 0.1, or give --images."
        )
    held = dict(zip(*(read_table(path)[name].to_pylist() for name in ("source", "group"))))
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} has no config.json: its curation is to be finished first.")
    config = InputConfig(**read_json(folder / "config.json")["inputs"])
    try:
        sources = open_sources(config)
    except UserError as error:
        raise UserError(
            f"{error} {folder} was made from it: run this where its images are found by that name."
        ) from None
    rows = [row for row, source in enumerate(sources["source"]) if source in held]
    if len(rows) < len(held):
        gone = min(held.keys() - set(sources["source"]))
        raise UserError(
            f"{path} lists {len(held)} images and {config.dataset} has {len(rows)} of them: '{gone}' is gone."
        )
    frames = sources.select(rows)
    return readable_frames(frames, [held[source] for source in frames["source"]], f"that {path} lists")


def downstream_frames(images: str, split: str | None = None, image_column: str | None = None) -> Frames:
    """The readable images of a downstream set, in near-duplicate groups; a folder that holds masks is refused."""
    with named_by(dataset="images"):
        frames = open_sources(InputConfig(images, split, image_column=image_column))
    return readable_frames(frames, group_images(frames), f"of {images}")


def readable_frames(frames: Dataset, groups: list[str], which: str) -> Frames:
    """
    The images of a table that can be opened, in its order; `which` they are is for the message where none can.

    Raises:
        `UserError`: if none can.
    """
    rows = zip(frames["image"], frames["source"], groups)
    readable = [row for row in rows if decode_reason(row[0])[0] is not None]
    if not readable:
        raise UserError(f"None of the {len(frames)} images {which} can be read.")
    return Frames(*map(list, zip(*readable)))
