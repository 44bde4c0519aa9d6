"""
Arms: what each is pre-trained on, for any budget and seed, and which question it answers.

All arms of one budget b over n usable images store the same pixels, those of round(b n) images at the training
resolution, in mosaics of M tiles or whole. Two are not cut to a budget: `full` stores all n images, `full_mosaics`
shows each of them once, four to a mosaic, and so stores a quarter of that. All are trained for the same steps,
whatever they store.

A seed redraws what is drawn, the folds and reference models, and whatever a strategy draws; key patches and whole
images are cut once. Nothing here opens a mask.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from optidel_hf.curation.curated import curated_shards, draft_selection
from optidel_hf.curation.inputs import open_sources
from optidel_hf.curation.selection import STRATEGIES, mosaics_in_budget, select
from optidel_hf.curation.shards import write_text
from optidel_hf.errors import UserError
from optidel_hf.evidence.accounting import CONTENTS, count_contents, measure_tiles
from optidel_hf.evidence.oracle import embed_images, nearest_frames
from optidel_hf.evidence.pool import IMAGES_PER_SHARD, Pool, Stock, cut, lock, read_seconds, score, stopwatch
from optidel_hf.processes import single_process


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArmData:
    """
    What an arm is pre-trained on.

    Args:
        dataset (`str`, *optional*): folder that [`~optidel_hf.pretraining.stored.open_images`] opens; none for the arm
            without pre-training.
        facts (`dict[str, float]`): see `accounting.py`.
    """

    dataset: str | None
    facts: dict[str, float]


@dataclass(frozen=True)
class Arm:
    """
    How an arm is chosen.

    Args:
        question (`str`): what it answers, in a line.
        unit (`str`, *optional*): `"patch"`, `"image"`, or `None` where there is no pre-training.
        strategy (`str`): of [`select`], on the unit's table.
        tiles (`int`): in an image, 1 where it is not tiled.
        rank_by (`str`, *optional*): score to rank by, the strategy's own by default.
        budgeted (`bool`): whether it is cut to the budget; else everything is taken.
        shrink (`int`): shrink^2 as many images are stored, of a side that is so many times shorter.
        candidates (`Callable`, *optional*): what the strategy chooses from, in place of the unit's table.
        oracle (`bool`): whether it is shown the label pool's images, and so is no product.
        core (`bool`): whether it is in the core grid.
    """

    question: str
    unit: str | None = "patch"
    strategy: str = "random"
    tiles: int = 4
    rank_by: str | None = None
    budgeted: bool = True
    shrink: int = 1
    candidates: Callable[[Draw], pa.Table] | None = None
    oracle: bool = False
    core: bool = False

    @property
    def needs_scores(self) -> bool:
        """Whether reference models have to be fitted for it."""
        return self.oracle or STRATEGIES[self.strategy].scored


@dataclass(frozen=True)
class Draw:
    """One arm for one budget and seed, on the way from the pool to its tiles."""

    arm: Arm
    budget: float
    seed: int
    pool: Pool
    label_images: torch.Tensor | None = None

    @cached_property
    def stock(self) -> Stock:
        """The arm's unit, cut or scored as it needs."""
        assert self.arm.unit is not None
        return score(self.pool, self.arm.unit, self.seed) if self.arm.needs_scores else cut(self.pool, self.arm.unit)

    @cached_property
    def usable(self) -> int:
        """Images of the pool that could be opened and are not held out."""
        return cut(self.pool, "image").table().num_rows

    @property
    def images(self) -> int:
        """Images that the arm stores."""
        if not self.arm.budgeted:
            return self.usable // self.arm.tiles
        return self.arm.shrink**2 * mosaics_in_budget(self.budget, self.usable)

    def choose(self) -> pa.Table:
        """The arm's tiles, in order of rank, with the image and the slot that each goes to."""
        arm = self.arm
        table = arm.candidates(self) if arm.candidates else self.stock.table()
        of = self.arm.shrink**2 * self.usable
        selected = select(
            table,
            budget=self.images / of,
            images=of,
            strategy=arm.strategy,
            seed=self.seed,
            score=arm.rank_by,
            tiles_per_mosaic=arm.tiles,
            max_upscale=2.0 if arm.budgeted else np.inf,
        )
        return draft_selection(table, selected)


def _nearest_to_labels(draw: Draw) -> pa.Table:
    """Whole images nearest to the label images, as many as the budget holds."""
    assert draw.label_images is not None
    table, reference = draw.stock.table(), draw.stock.folder / "reference"
    embedding = np.stack(table["embedding"].to_numpy()).astype(np.float32)
    wanted = embed_images(reference, draw.label_images, draw.pool.device)
    return table.take(nearest_frames(embedding, wanted, draw.images))


ARMS = {
    "none": Arm("Does pre-training help at all?", unit=None, core=True),
    "full": Arm("What does the whole pool give?", "image", tiles=1, budgeted=False, core=True),
    "full_mosaics": Arm("Do mosaics help the whole pool too?", "image", budgeted=False, core=True),
    "random_images": Arm("What does a budget give without any choice?", "image", tiles=1, core=True),
    "image_mosaics": Arm("Is it that mosaics show more sources?", "image", core=True),
    "random_patch_mosaics": Arm("Is it key patches and mosaics, without selection?", core=True),
    "hardest": Arm("Does the published rule help?", strategy="hardest", core=True),
    "optidel": Arm("Does ours, hard and diverse?", strategy="optidel", core=True),
    "oracle": Arm(
        "Is there room for any selection: frames nearest to the label pool?",
        "image",
        tiles=1,
        candidates=_nearest_to_labels,
        oracle=True,
    ),
}


def build_arm(name: str, budget: float, seed: int, pool: Pool, *, label_images: torch.Tensor | None = None) -> ArmData:
    """
    Make an arm's dataset, or find it made; a killed build goes on from the shards that are whole.

    Args:
        name (`str`): one of [`ARMS`].
        budget (`float`): fraction of the usable images; without meaning for `none`, `full` and `full_mosaics`.
        seed (`int`): redraws the subset, the folds and the selection.
        pool ([`Pool`]).
        label_images (`torch.Tensor` of shape `(m, 3, S, S)`, uint8, *optional*): of the label pool; only `oracle`
            looks at them.

    Raises:
        `UserError`: if the arm is not known, the budget cannot be met, or the folder was made from another pool.

    Where several processes build arms of one pool, each builds whole arms: a launcher's ranks share nothing here.
    """
    if name not in ARMS:
        raise UserError(f"Arm '{name}' is not known: choose one of {', '.join(ARMS)}.")
    arm = ARMS[name]
    if arm.oracle and label_images is None:
        raise UserError(f"Arm '{name}' needs label_images: those of the downstream set's label pool.")
    draw = Draw(arm, budget if arm.budgeted else 1.0, seed, pool, label_images if arm.oracle else None)
    if arm.unit is None:
        return ArmData(None, dict.fromkeys((*CONTENTS, "curation_seconds"), 0.0))
    folder = pool.output / "arms" / f"{name}_{draw.budget:g}_{seed:04d}"
    with lock(folder), single_process():
        _claim(folder, draw)
        path = folder / "facts.json"
        if not path.exists():
            write_text(json.dumps(_make(draw, folder), indent=2) + "\n", path)
    return ArmData(str(folder / "curated"), json.loads(path.read_text()))


def arms_table() -> str:
    """Every arm and its question as a Markdown table; those of the core grid first, in bold."""
    rows = sorted(ARMS.items(), key=lambda item: not item[1].core)
    lines = [f"| {f'**`{name}`**' if arm.core else f'`{name}`'} | {arm.question} |" for name, arm in rows]
    return "\n".join(["| Arm | Question |", "|---|---|", *lines]) + "\n"


def _make(draw: Draw, folder: Path) -> dict[str, float]:
    """Choose, render and account."""
    find_source, size = _source_finder(draw.pool), draw.pool.mosaic.image_size // draw.arm.shrink
    logger.info("arm %s: %d of %d images", folder.name, draw.images, draw.usable)
    needed = draw.stock.seconds  # before the watch starts: what is shared has seconds of its own
    with stopwatch(folder / "seconds.json"):
        chosen = draw.choose()
        curated_shards(chosen, find_source, size, folder / "curated", IMAGES_PER_SHARD)
    facts = count_contents(chosen, folder / "curated", size)
    facts["curation_seconds"] = needed + read_seconds(folder)
    if draw.pool.measured:
        scored, config = score(draw.pool, "patch", draw.seed).folder, draw.pool.score
        facts |= measure_tiles(chosen, find_source, scored, config, draw.pool.patches.patch_size, draw.pool.device)
    return facts


def _claim(folder: Path, draw: Draw) -> None:
    """Write what the arm is made from, or refuse a folder that was made from something else."""
    labels = draw.label_images
    recipe = asdict(draw.pool) | {
        "label_images": None if labels is None else hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
        "rule": {
            name: value for name, value in vars(draw.arm).items() if name not in ("question", "candidates", "core")
        },
        "budget": draw.budget,
        "seed": draw.seed,
    }
    for how in ("output", "device"):
        del recipe[how]
    path, text = folder / "config.json", json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    if path.exists() and path.read_text() != text:
        raise UserError(f"{folder} was made from another pool or configuration: give another output, or delete it.")
    write_text(text, path)


def _source_finder(pool: Pool) -> Callable[[str], Any]:
    sources = open_sources(pool.inputs)
    row_of = {source: row for row, source in enumerate(sources["source"])}
    return lambda source: sources[row_of[source]]["image"]
