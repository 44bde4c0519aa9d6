"""
An arm's data for one budget and seed: its tiles chosen, rendered and accounted for.

A seed redraws what is drawn, the folds and reference models, and whatever a strategy draws; key patches and whole
images are cut once. Nothing here opens a mask.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from optidel_hf.curation.curated import check_grid, curated_shards, draft_selection
from optidel_hf.curation.inputs import open_sources
from optidel_hf.curation.selection import mosaics_in_budget, select
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.stages import determining
from optidel_hf.errors import UserError
from optidel_hf.evidence.accounting import CONTENTS, count_contents, measure_tiles
from optidel_hf.evidence.arms import ARMS, Arm
from optidel_hf.evidence.pool import IMAGES_PER_SHARD, Pool, Stock, cut, lock, read_seconds, score, stopwatch
from optidel_hf.evidence.rules import RULES
from optidel_hf.files import read_json, write_text
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
        last (`int`): how many of the dataset's images, its last ones, are for the last steps alone.
        start (`str`, *optional*): folder of the autoencoder that pre-training starts from.
    """

    dataset: str | None
    facts: dict[str, float]
    last: int = 0
    start: str | None = None


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

    @cached_property
    def images(self) -> int:
        """Images that the arm stores."""
        if self.arm.bytes_of:
            return self._images_in_bytes_of(self.arm.bytes_of)
        if not self.arm.budgeted:
            return self.usable // self.arm.tiles
        return self.arm.shrink**2 * mosaics_in_budget(self.budget, self.usable)

    @property
    def start(self) -> str | None:
        """The model that pre-training starts from, if it is not a new one."""
        if not self.arm.from_scorer:
            return None
        return str(score(self.pool, "patch", self.seed).folder / "reference" / "fold-0")

    def of(self, arm: str) -> Draw:
        """The same draw of another arm."""
        return replace(self, arm=ARMS[arm])

    @property
    def whole_images(self) -> int:
        """How many of them are random whole images in place of mosaics: at least one, where there are to be any."""
        return max(int(self.arm.whole * self.images), self.arm.whole > 0)

    def choose(self) -> pa.Table:
        """The arm's tiles, in order of rank, with the image and the slot that each goes to."""
        return RULES[self.arm.rule](self) if self.arm.rule else self.select()

    def select(self, table: pa.Table | None = None, images: int | None = None) -> pa.Table:
        """What the arm's strategy chooses for `images` images, by default for all, from its unit or from `table`."""
        of = self.arm.shrink**2 * self.usable
        as_curate = table is None and self.arm.budgeted  # else no candidate is too enlarged to be taken
        table = self.stock.table() if table is None else table
        selected = select(
            table,
            budget=(images or self.images) / of,
            images=of,
            strategy=self.arm.strategy,
            seed=self.seed,
            score=self.arm.score,
            hardness_weight=self.arm.hardness_weight,
            tiles_per_mosaic=self.arm.tiles,
            max_upscale=SelectionConfig.max_upscale if as_curate else np.inf,
        )
        return draft_selection(table, selected)

    def _images_in_bytes_of(self, arm: str) -> int:
        """Whole images that, at the mean of the pool's, take the bytes of another arm."""
        own = build_arm(arm, self.budget, self.seed, self.pool).facts
        every = build_arm("full", 1.0, self.seed, self.pool).facts
        return min(self.usable, round(own["stored_bytes"] * every["images"] / every["stored_bytes"]))


def build_arm(name: str, budget: float, seed: int, pool: Pool, *, label_images: torch.Tensor | None = None) -> ArmData:
    """
    Make an arm's dataset, or find it made; a killed build goes on from the shards that are whole.

    Several processes may build arms of one pool: each builds whole arms, whatever launched it.

    Args:
        name (`str`): one of [`ARMS`].
        budget (`float`): fraction of the usable images; without meaning for an arm that is not cut to one.
        seed (`int`): redraws the subset, the folds and the selection.
        pool ([`Pool`]).
        label_images (`torch.Tensor` of shape `(m, 3, S, S)`, uint8, *optional*): of the label pool; only oracles
            look at them.

    Raises:
        `UserError`: if the arm is not known, the budget cannot be met, or the folder was made from another pool.
    """
    if name not in ARMS:
        raise UserError(f"Arm '{name}' is not known: choose one of {', '.join(ARMS)}.")
    arm = ARMS[name]
    if arm.oracle and label_images is None:
        raise UserError(f"Arm '{name}' needs label_images: those of the downstream set's label pool.")
    draw = Draw(arm, budget if arm.budgeted else 1.0, seed, pool, label_images if arm.oracle else None)
    if arm.unit is None:
        return ArmData(None, dict.fromkeys((*CONTENTS, "curation_seconds"), 0.0))
    check_grid(arm.tiles * arm.shrink**2, pool.mosaic.image_size)
    folder = pool.output / "arms" / f"{name}_{draw.budget:g}_{seed:04d}"
    with lock(folder), single_process():
        _claim(folder, draw)
        path = folder / "facts.json"
        if not path.exists():
            write_text(json.dumps(_make(draw, folder), indent=2) + "\n", path)
    last = draw.whole_images if arm.whole_last else 0
    return ArmData(str(folder / "curated"), read_json(path), last, draw.start)


def _make(draw: Draw, folder: Path) -> dict[str, float]:
    """Choose, render and account."""
    find_source, size = _source_finder(draw.pool), draw.pool.mosaic.image_size // draw.arm.shrink
    # What arms share has seconds of its own: it is made before the watch starts.
    needed, images = draw.stock.seconds, draw.images
    logger.info("arm %s: %d of %d usable images", folder.name, images, draw.usable)
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
        "rule": {name: value for name, value in vars(draw.arm).items() if name not in ("question", "core")},
        "budget": draw.budget,
        "seed": draw.seed,
        "patches": determining(draw.pool.patches),
        "score": determining(draw.pool.score),
    }
    for how in ("output", "device"):
        del recipe[how]
    path, text = folder / "config.json", json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    if path.exists() and _without_place(read_json(path)) != _without_place(json.loads(text)):
        raise UserError(f"{folder} was made from another pool or configuration: give another output, or delete it.")
    write_text(text, path)


def _without_place(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe but for how the pool's place is spelled: the grid and the list of inputs tell its images."""
    return recipe | {"inputs": recipe["inputs"] | {"dataset": None}}


def _source_finder(pool: Pool) -> Callable[[str], Any]:
    sources = open_sources(pool.inputs)
    row_of = {source: row for row, source in enumerate(sources["source"])}
    return lambda source: sources[row_of[source]]["image"]
