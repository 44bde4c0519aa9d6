"""A pool is cut by several processes as by one, each taking its share."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import CHILDREN

from optidel_hf.curation import pipeline
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.evidence import pool as evidence_pool
from optidel_hf.evidence.pool import Pool, cut, cut_together
from optidel_hf.files import read_json


SHARD = 7
LOOSE = {"max_area": 0.9, "min_area": 0.001, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pool(image_folder: Path, tiny_sam: str, tmp_path: Path) -> Pool:
    patches = PatchConfig(sam=tiny_sam, patch_size=32, min_image_side=16, **LOOSE)
    return Pool(InputConfig(str(image_folder), held_out=0.0), tmp_path / "one", patches, device="cpu")


def shards(pool: Pool, unit: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((pool.output / unit / "patches").glob("*.parquet"))}


def _cut_as_rank(pool: Pool, unit: str, rank: int) -> None:
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2"})
    torch.set_num_threads(1)
    evidence_pool.IMAGES_PER_SHARD = SHARD
    plain = pipeline._Run._write_patches

    def noted(run: pipeline._Run, rows: pipeline.Dataset, path: Path, reasons: Path) -> None:
        (pool.output / f"{path.name} by {rank}").touch()
        plain(run, rows, path, reasons)

    pipeline._Run._write_patches = noted
    cut_together(pool, unit)
    cut(pool, unit)


@pytest.mark.parametrize("unit", ["patch", "image"])
def test_two_processes_cut_what_one_does(pool: Pool, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_pool, "IMAGES_PER_SHARD", SHARD)
    cut(pool, unit)
    two = replace(pool, output=pool.output.with_name("two"))
    ranks = [CHILDREN.Process(target=_cut_as_rank, args=(two, unit, rank)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert shards(two, unit) == shards(pool, unit)
    names = list(shards(pool, unit))
    assert len(names) > 2
    took = sorted(path.name for path in two.output.glob("* by *"))
    assert took == [f"{name} by {number % 2}" for number, name in enumerate(names)]
    assert read_json(two.output / unit / "seconds.json")["finished"]
