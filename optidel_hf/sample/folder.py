"""A sample on disk: a pool of unlabelled frames and a labelled downstream set, split by sequence.

    OUT/pool/images/seq-0003_frame-0007.jpg
    OUT/downstream/images/train_seq-1002_frame-0001.png      and masks/ of the same names, 0 or 255
    OUT/sample.json, OUT/README.md                           what was asked for, and what it is

A sequence is a scene with a camera drifting through it (`colonoscopy`) or the fields of a slide (`cells`).
Everything is written beside `OUT` and renamed into place at the end, so `OUT` is whole or empty.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from optidel_hf.errors import UserError, changes
from optidel_hf.files import alone_in, read_json
from optidel_hf.sample.cells import generate_slide
from optidel_hf.sample.frames import FrameConfig, generate_sequence


# The first sequence of each part: a part may grow without changing another, and no sequence is in two.
FIRST_SEQUENCE = {"pool": 0, "train": 1000, "validation": 2000, "test": 3000}
POOL_FRAMES = FrameConfig(frames_per_sequence=20)
# Labels are costly: few frames a sequence, far apart, and most with a polyp.
LABELLED_FRAMES = FrameConfig(frames_per_sequence=4, stride=5, polyp_rate=0.9)
Frame = tuple[int, int, np.ndarray, np.ndarray]
"""Number of the sequence and of the frame, image (S, S, 3) uint8, mask (S, S) bool."""

DOMAINS = {
    "colonoscopy": (
        "Generated colonoscopy-like frames; the masks mark polyps. They look like colonoscopy at thumbnail size and "
        "are no medical data. Consecutive frames of a sequence are near-duplicates."
    ),
    "cells": (
        "Generated cells under a fluorescence microscope; the masks mark the elongated cells in focus. A sequence is "
        "one slide. The generator is frozen: it is there to judge what was chosen on other images, and nothing may be "
        "tuned on it."
    ),
}


def write_sample(
    output_dir: str | Path,
    frames: int = 600,
    train: int = 100,
    validation: int = 40,
    test: int = 100,
    image_size: int = 128,
    seed: int = 0,
    domain: str = "colonoscopy",
) -> Path:
    """Write a sample, or reuse it where it is already there.

    Args:
        output_dir (`str` or `Path`): the folder, new or empty or holding this very sample.
        frames (`int`, *optional*, defaults to 600): images in the pool, 20 a sequence.
        train (`int`, *optional*, defaults to 100): labelled images to train on, 4 a sequence.
        validation (`int`, *optional*, defaults to 40): labelled images to validate on.
        test (`int`, *optional*, defaults to 100): labelled images to test on.
        image_size (`int`, *optional*, defaults to 128): side in pixels.
        seed (`int`, *optional*, defaults to 0): another seed is another sample.
        domain (`str`, *optional*, defaults to `"colonoscopy"`): what the images show, one of [`DOMAINS`].

    Returns:
        `Path`: `output_dir`, with `pool/images`, `downstream/images`, `downstream/masks`, `sample.json` and
            `README.md`.

    Raises:
        `UserError`: the folder holds a sample of another configuration, or something else, a part is too large, or
            there is no such domain.
    """
    if domain not in DOMAINS:
        raise UserError(f"domain is '{domain}': it is one of {', '.join(DOMAINS)}.")
    counts = {"pool": frames, "train": train, "validation": validation, "test": test}
    asked = {"domain": domain, "counts": counts, "image_size": image_size, "seed": seed}
    for part, count in counts.items():
        _refuse_too_many(part, count)
    output_dir = Path(output_dir)
    if is_written(output_dir, asked):
        return output_dir
    if output_dir.resolve() == Path.cwd():
        raise UserError(f"--output_dir {output_dir} is the folder that you are in: give one inside of it.")
    output_dir.mkdir(parents=True, exist_ok=True)
    with alone_in(output_dir):
        if not is_written(output_dir, asked):
            _generate(output_dir, asked)
    return output_dir


def _generate(output_dir: Path, asked: dict[str, Any]) -> None:
    unfinished = output_dir.absolute().with_name(f".{output_dir.absolute().name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for folder in ("pool/images", "downstream/images", "downstream/masks"):
        (unfinished / folder).mkdir(parents=True)
    domain, counts = asked["domain"], asked["counts"]
    with tqdm(total=sum(counts.values()), desc="sample", unit="frame") as progress:
        for part, count in counts.items():
            write_part(unfinished, part, walk(domain, part, count, asked["image_size"], asked["seed"]), progress)
    (unfinished / "README.md").write_text(
        f"# Synthetic images\n\n**Synthetic.** {DOMAINS[domain]}\n", encoding="utf-8"
    )
    (unfinished / "sample.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(output_dir)


def is_written(output_dir: Path, asked: dict[str, Any]) -> bool:
    """Whether `output_dir` holds the sample asked for; a `UserError` where it holds another or something else."""
    if not output_dir.exists() or not any(output_dir.iterdir()):
        return False
    if not (output_dir / "sample.json").exists():
        raise UserError(f"{output_dir} holds files that are not a sample; give a new or an empty folder.")
    # Samples that were written when there was one domain do not name it.
    found = {"domain": "colonoscopy", **read_json(output_dir / "sample.json")}
    if changed := changes(found, asked):
        raise UserError(f"{output_dir} holds another sample ({changed}); give another folder or delete this one.")
    pool, *labelled = asked["counts"].values()
    for kind, wanted in (("images", pool + sum(labelled)), ("masks", sum(labelled))):
        if (there := sum(1 for _ in output_dir.glob(f"*/{kind}/*"))) < wanted:
            raise UserError(
                f"{output_dir} has {there} of the {wanted} {kind} of its sample: delete it, to make it anew."
            )
    return True


def _refuse_too_many(part: str, count: int) -> None:
    frames = (POOL_FRAMES if part == "pool" else LABELLED_FRAMES).frames_per_sequence
    if count > 1000 * frames:
        raise UserError(f"{part} has {count} frames; at most {1000 * frames} can be generated.")


def write_part(folder: Path, part: str, frames: Iterable[Frame], progress: tqdm) -> None:
    """Write the images of one part, and their masks except for the pool."""
    for sequence, frame, image, mask in frames:
        name = f"seq-{sequence:04d}_frame-{frame:04d}"
        if part == "pool":
            Image.fromarray(image).save(folder / "pool" / "images" / f"{name}.jpg", quality=95)
        else:
            Image.fromarray(image).save(folder / "downstream" / "images" / f"{part}_{name}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "downstream" / "masks" / f"{part}_{name}.png")
        progress.update()


def walk(domain: str, part: str, count: int, image_size: int, seed: int) -> Iterator[Frame]:
    """The first `count` frames of a part."""
    style = POOL_FRAMES if part == "pool" else LABELLED_FRAMES
    config = FrameConfig(image_size, style.frames_per_sequence, style.stride, style.polyp_rate)
    for index in range(-(-count // config.frames_per_sequence)):
        sequence = FIRST_SEQUENCE[part] + index
        if domain == "cells":
            images, masks = generate_slide(seed, sequence, config.frames_per_sequence, image_size)
        else:
            images, masks = generate_sequence(seed, sequence, config)
        for frame, (image, mask) in enumerate(zip(images, masks)):
            if index * config.frames_per_sequence + frame < count:
                yield sequence, frame, image, mask
