"""
What all arms of a grid share: the pool, its key patches cut once, and each seed's reference models and scores.

    OUTPUT/inputs/                          the list of source images and their near-duplicate groups
    OUTPUT/{patch,image}/                   key patches cut by SAM, and whole images: the same for every seed
    OUTPUT/seed-0003/{patch,image}/         folds, reference models and scores of seed 3
    OUTPUT/arms/...                         one folder an arm, budget and seed (`arm_data.py`)

Each is an output of `curate`, run as far as it is needed and taken over by the next; a folder has its lock, so that
several processes may build arms of one pool: who comes second finds it finished. A launcher's processes cut the pool
together (`cut_together`). `seconds.json` says what it took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from filelock import FileLock

from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.inputs import InputConfig, list_inputs, open_sources
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import curate
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import ScoreConfig
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns, wait_for
from optidel_hf.files import read_json, write_text
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_schema, read_table, write_parquet
from optidel_hf.processes import process_rank, single_process


IMAGES_PER_SHARD = 256


@dataclass(frozen=True)
class Pool:
    """
    What every arm is cut from, and how.

    Args:
        inputs ([`InputConfig`]): the source images; what it holds out no arm, scorer or selection sees.
        output (`Path`): everything that is made lies under it and is found again after a kill.
        patches ([`PatchConfig`], *optional*): how key patches are cut; its `unit` is each arm's own.
        reference ([`ReferenceConfig`], *optional*): the reference models; their seed is each arm's own.
        score ([`ScoreConfig`], *optional*), mosaic ([`MosaicConfig`], *optional*).
        device (`str`, *optional*, defaults to `"auto"`).
        measured (`bool`, *optional*, defaults to `True`): whether every arm's tiles are measured under its seed's
            reference model of key patches, which are then cut and scored for arms that need neither.
    """

    inputs: InputConfig
    output: Path
    patches: PatchConfig = field(default_factory=PatchConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    device: str = "auto"
    measured: bool = True


class Stock(NamedTuple):
    """Candidates on disk: an output of `curate`, and the seconds that it and what it was made from took."""

    folder: Path
    seconds: float

    def table(self) -> pa.Table:
        """The candidates' columns without images: scores and embeddings where there are any."""
        stage = self.folder / ("scores" if existing_shards(self.folder / "scores") else "patches")
        names = read_schema(existing_shards(stage)[0]).names
        return read_columns(stage, [name for name in names if name != "image"])


@cache
def cut(pool: Pool, unit: str) -> Stock:
    """The key patches (`unit="patch"`) or whole images (`unit="image"`) of the pool."""
    folder, inputs = pool.output / unit, list_pool(pool)
    with lock(folder), single_process():
        _curate(pool, folder, inputs.folder, until="patches", unit=unit)
    return Stock(folder, inputs.seconds + read_seconds(folder))


def cut_together(pool: Pool, unit: str) -> None:
    """Have a launcher's processes, each of which calls this, cut what `cut` then finds: each takes its own shards."""
    folder, inputs = pool.output / unit, list_pool(pool)
    with lock(folder) if process_rank()[0] == 0 else nullcontext():
        _curate(pool, folder, inputs.folder, until="patches", unit=unit)


@cache
def score(pool: Pool, unit: str, seed: int) -> Stock:
    """The same with the scores of reference models whose folds, weights and batches the seed draws."""
    base = cut(pool, unit)
    folder = pool.output / f"seed-{seed:04d}" / unit
    with lock(folder), single_process():
        _curate(pool, folder, base.folder, until="scores", unit=unit, seed=seed, reuse=str(base.folder))
    return Stock(folder, base.seconds + read_seconds(folder))


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Have `folder` alone among processes; the operating system frees it when its holder dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        yield


@contextmanager
def stopwatch(path: Path, processes: int = 1) -> Iterator[None]:
    """
    Write to `path` the seconds of a block that ends well; what ended otherwise is added to the next try's.

    Those of several processes that are at the block together count for each.
    A finished block's seconds stay as they are, and those of a killed process, which could not write, are lost.
    """
    before = read_json(path) if path.exists() else {"seconds": 0.0, "finished": False}
    start, finished = time.perf_counter(), False
    try:
        yield
        finished = True
    finally:
        if not before["finished"]:
            seconds = before["seconds"] + processes * (time.perf_counter() - start)
            write_text(json.dumps({"seconds": round(seconds, 3), "finished": finished}) + "\n", path)


def read_seconds(folder: Path) -> float:
    """What `stopwatch` wrote into a folder."""
    return float(read_json(folder / "seconds.json")["seconds"])


def list_pool(pool: Pool) -> Stock:
    """The list of the pool's images, with their near-duplicate groups."""
    folder = pool.output / "inputs"
    with lock(folder), single_process(), stopwatch(folder / "seconds.json"):
        list_inputs(open_sources(pool.inputs), folder, IMAGES_PER_SHARD, pool.patches.max_image_pixels)
    return Stock(folder, read_seconds(folder))


def _curate(
    pool: Pool, folder: Path, inputs: Path, until: str, unit: str, seed: int = 0, reuse: str | None = None
) -> None:
    """Run `curate` in a folder as far as it is not finished, by all processes that are not hidden from it."""
    config = CurationConfig(
        inputs=pool.inputs,
        output_dir=str(folder),
        patches=replace(pool.patches, unit=unit),
        reference=replace(pool.reference, reference_seed=seed),
        score=pool.score,
        selection=SelectionConfig(budget=1.0),  # an arm's own selection comes after
        mosaic=pool.mosaic,
        images_per_shard=IMAGES_PER_SHARD,
        reuse=reuse,
        device=pool.device,
    )
    rank, world = process_rank()
    listed = folder / "inputs.parquet"
    if rank == 0 and not listed.exists():  # else every output would hash all images again
        folder.mkdir(exist_ok=True)
        write_parquet(read_table(inputs / "inputs.parquet"), listed)
    wait_for([listed])
    with stopwatch(folder / "seconds.json", world) if rank == 0 else nullcontext():
        curate(config, until)
