"""A small finished curation on disk, as the stages write it, and the trainings and results that follow one."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from optidel_hf.layout import NO_PATCH
from optidel_hf.publishing.panels.evidence import Evidence, Row


SIDE, TILE, TILES_PER_MOSAIC = 32, 16, 4
FEWEST_SEEDS = 5
CONFIG = {
    "images_per_shard": 4,
    "inputs": {"dataset": "frames"},
    "versions": {"optidel_hf": "0.1.0", "pillow": "12.3.0"},
    "hardware": "cpu, x86_64, 2 cores",
    "command": "optidel curate --dataset=frames --budget=0.5",
}
FIELDS = {
    "patches": {"unit": "patch", "sam": "embedded", "sam_revision": None, "sam_weights": "5a3"},
    "reference": {"reference": None, "reference_revision": None},
}
SCALARS = ["cond_entropy", "null_entropy", "pvi", "pvi_std", "recon_error", "contrast", "difficulty"]
HOSTILE = '"><img src=x onerror=alert(1)>/<script>alert(2)</script>.png'


def png(image: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_shards(folder: Path, rows: list[dict[str, Any]], per_shard: int) -> None:
    folder.mkdir(parents=True)
    parts = [rows[start : start + per_shard] for start in range(0, len(rows), per_shard)]
    for number, part in enumerate(parts):
        name = f"shard-{number:05d}-of-{len(parts):05d}.parquet"
        # Several row groups a file, as large shards have.
        pq.write_table(pa.Table.from_pylist(part), folder / name, row_group_size=5)
    write_stage(folder)


def write_stage(folder: Path) -> None:
    facts = {
        "fields": FIELDS.get(folder.name, {}),
        "upstream": f"before-{folder.name}",
        "hash": f"after-{folder.name}",
    }
    (folder / "config.json").write_text(json.dumps(facts))


def make_patches(images: dict[str, np.ndarray], each: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Random squares of the images, with made-up scores."""
    patches = []
    for source, image in images.items():
        for _ in range(each):
            side = int(rng.integers(min(image.shape[:2]) // 4, min(image.shape[:2])))
            y, x = (int(rng.integers(0, size - side + 1)) for size in image.shape[:2])
            cut = np.asarray(Image.fromarray(image[y : y + side, x : x + side]).resize((SIDE, SIDE)))
            # Golden-ratio sequences: spread like normal draws, and the same under every version of NumPy.
            hard, difficulty = (NormalDist().inv_cdf((len(patches) + 1) * step % 1) for step in (0.618034, 0.754878))
            patches.append(
                {
                    "image": png(cut),
                    "source": source,
                    "group": source,
                    "bbox": [float(x), float(y), float(side), float(side)],
                    "crop": [x, y, side],
                    "upscale": SIDE / side,
                    "area": float(side**2 / image[..., 0].size * rng.uniform(0.3, 0.8)),
                    "cond_entropy": 0.4 * hard - 1,
                    "null_entropy": 0.2 * hard,
                    "pvi": 1 - 0.2 * hard,
                    "pvi_std": 0.01,
                    "recon_error": 0.01 * 2**hard,
                    "contrast": float(cut.std() / 255),
                    "difficulty": difficulty,
                    "text": 0.0,
                    "fold": len(patches) % 2,
                }
            )
    return patches


def select(patches: list[dict[str, Any]], mosaics: int) -> list[dict[str, Any]]:
    ranked = sorted(patches, key=lambda patch: -patch["difficulty"])[2:]
    keys = ["source", "crop", "bbox", *SCALARS]
    return [
        {key: patch[key] for key in keys}
        | {"source_sha256": "0", "rank": rank, "mosaic": rank % mosaics, "slot": rank // mosaics, "cluster": 0}
        for rank, patch in enumerate(ranked[: mosaics * TILES_PER_MOSAIC])
    ]


def assemble(chosen: list[dict[str, Any]], images: dict[str, np.ndarray], mosaics: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(mosaics):
        tiles = [row for row in chosen if row["mosaic"] == number]
        cuts = []
        for x, y, side in (tile["crop"] for tile in tiles):
            cut = Image.fromarray(images[tiles[len(cuts)]["source"]][y : y + side, x : x + side])
            cuts.append(np.asarray(cut.resize((TILE, TILE))))
        image = np.vstack([np.hstack(cuts[:2]), np.hstack(cuts[2:])])
        keys = ["source", "crop", "pvi", "cond_entropy", "cluster"]
        rows.append({"image": png(image), "tiles": [{key: tile[key] for key in keys} for tile in tiles]})
    return rows


def write_curation(folder: Path, images: dict[str, np.ndarray], each: int, mosaics: int, per_shard: int) -> Path:
    """Writes every file of a finished curation; three more sources are listed and rejected."""
    patches = make_patches(images, each, np.random.default_rng(0))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    sources = [*images, "blank.png", "broken.png", "huge.png"]
    inputs = {"source": sources, "group": sources, "size": pa.array([4096] * len(sources), pa.int64())}
    pq.write_table(pa.table(inputs), folder / "inputs.parquet")
    scored = ["area", "crop", "source", "group", "bbox", "upscale", "fold", "text", *SCALARS]
    cut = ["image", "source", "group", "bbox", "crop", "upscale", "area"]
    write_shards(folder / "patches", [{key: patch[key] for key in cut} for patch in patches], per_shard)
    write_shards(folder / "scores", [{key: patch[key] for key in scored} for patch in patches], per_shard)
    reasons = {"blank.png": NO_PATCH, "broken.png": "broken image", "huge.png": "too many pixels"}
    rejected = [{"source": source, "reason": reason} for source, reason in reasons.items()]
    write_shards(folder / "rejected", rejected, 8)
    for fold in range(2):
        (folder / f"reference/fold-{fold}").mkdir(parents=True)
        calibration = {
            "model": ".",
            "patches": 8,
            "v_information_held_out": 0.8 + 0.05 * fold,
            "conditional_entropy_held_out": -1.0,
            "partitions": 2 + fold,
            "mask_correlation": 0.85 - 0.05 * fold,
            "reliability": 0.92,
        }
        (folder / f"reference/fold-{fold}/calibration.json").write_text(json.dumps(calibration))
    agreement = {"score": "difficulty", "patches": 16, "between_folds": 0.7, "second_reference": None}
    (folder / "reference/reliability.json").write_text(json.dumps({**agreement, "between_models": None}))
    chosen = select(patches, mosaics)
    hardest = sorted(patches, key=lambda patch: -patch["difficulty"])[:2]
    write_stage(folder / "reference")
    facts = {
        "strategy": "optidel",
        "score": "difficulty",
        "seed": 0,
        "budget": 0.5,
        "tiles_per_mosaic": TILES_PER_MOSAIC,
        "tile_size": TILE,
        "image_size": 2 * TILE,
        "images_per_shard": 8,
        "hash": "after-curated",
        "counts": {
            "inputs": len(images) + 3,
            "pool": len(patches),
            "eligible": len(patches) - 2,
            "chosen": len(chosen),
        },
        "dropped": [{"source": row["source"], "crop": row["crop"], "reason": "saturated"} for row in hardest],
        "versions": {"renderer": "1"},
    }
    table = pa.Table.from_pylist(chosen).replace_schema_metadata({b"optidel": json.dumps(facts)})
    pq.write_table(table, folder / "selection.parquet")
    write_shards(folder / "curated", assemble(chosen, images, mosaics), 8)
    return folder


def write_training(folder: Path, objective: str, decay: float, steps: int = 300) -> Path:
    folder.mkdir(parents=True)
    noise = np.random.default_rng(int(decay * 1000)).normal(scale=0.02, size=steps)
    losses = 0.4 + 0.6 * np.exp(-decay * np.arange(steps) / steps) + noise
    lines = [json.dumps({"step": step + 1, "loss": float(loss), "lr": 1e-4}) for step, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "pretrain_config.json").write_text(json.dumps({"objective": objective}))
    return folder


def write_results(path: Path, arms: dict[str, float]) -> Path:
    summary = [
        {
            "arm": arm,
            "mode": mode,
            "seeds": 3,
            "miou_mean": mean - 0.1 * (mode == "probe"),
            "miou_low": mean - 0.1 * (mode == "probe") - 0.02,
            "miou_high": mean - 0.1 * (mode == "probe") + 0.02,
        }
        for mode in ("finetune", "probe")
        for arm, mean in arms.items()
    ]
    config = {"dataset": "kvasir-seg", "test_split": "test"}
    path.write_text(json.dumps({"config": config, "rows": [], "summary": summary}))
    return path


def make_evidence(arms: dict[str, tuple[float, list[float]]], seeds: int = 3, passed: bool = True) -> Evidence:
    """A grid of arms (mean IoU, budgets) in both modes, a hundredth more a seed; `full` and `none` have no budget."""

    def spread(low: float, high: float) -> SimpleNamespace:
        ends = (low, high) if seeds > 1 else (math.nan, math.nan)
        return SimpleNamespace(difference=(low + high) / 2, low=ends[0], high=ends[1], seeds=seeds)

    def minus(arm: str, other: str, mode: str) -> SimpleNamespace | None:
        if arm == other or other not in arms:
            return None
        found = spread(*[arms[arm][0] - arms[other][0]] * 2)
        return SimpleNamespace(
            a=arm, b=other, mode=mode, interval=found, detectable=0.05, supports_claims=seeds >= FEWEST_SEEDS
        )

    rows = [
        Row(
            arm=arm,
            budget=budget,
            labels=100,
            mode=mode,
            split="validation",
            budgeted=arm not in ("none", "full"),
            own=spread(low := level - 0.1 * (mode == "probe"), low + 0.01 * (seeds - 1)),
            minus={other: minus(arm, other, mode) for other in ("random_images", "full")},
            facts={"source images": 100 * budget, "curation, s": 30.0 if arm == "optidel" else None},
            seconds=90.0 if arm == "optidel" else 60.0 if arm != "none" else None,
        )
        for arm, (level, budgets) in arms.items()
        for budget, mode in itertools.product(budgets, ("finetune", "probe"))
    ]
    primary = [minus("optidel", other, mode) for other in ("random_images", "full") for mode in ("finetune", "probe")]
    return Evidence(
        rows, [one for one in primary if one], "validation", 0.05, ["They agree."], passed, "full leads none."
    )


def complete(curation: Path, folder: Path) -> dict[str, Any]:
    """Arguments of `build_report` for a run that has every part; the curation is changed in a copy."""
    out = shutil.copytree(curation, folder / "out")
    table = pq.read_table(out / "selection.parquet")
    facts = json.loads(table.schema.metadata[b"optidel"])
    bits = {"easiest": [0.1, 0.2, 0.3], "medium": [0.1, 0.3, 0.5], "optidel": [0.1, 0.15, 0.2]}
    lead = {"arm": "medium", "over": "easiest", "gain": 0.2, "low": 0.1, "high": 0.3}
    facts["pilot"] = {**lead, "bits": bits, "counts": [4, 8, 16], "repeats": 3}
    pq.write_table(table.replace_schema_metadata({b"optidel": json.dumps(facts)}), out / "selection.parquet")
    vit = write_training(folder / "vit", "mae", 4)
    (vit / "reconstructions").mkdir()
    for step in (50, 100):
        Image.new("RGB", (96, 64), (step, 90, 60)).save(vit / f"reconstructions/step-{step:06d}.png")
    rule = {"sources": 8, "groups": 7, "hardness": 0.61, "distance": 0.2}
    refused = np.array([True] + [False] * 15)
    rules = [("optidel", False), ("random", False), ("hardness alone", True)]
    compared = [
        SimpleNamespace(name=name, term=term, rows=np.arange(16), refused=refused, **rule) for name, term in rules
    ]
    arms = {
        "none": (0.5, [0.0]),
        "full": (0.7, [1.0]),
        "random_images": (0.6, [0.05, 0.1]),
        "optidel": (0.65, [0.05, 0.1]),
    }
    return {
        "curation_dir": out,
        "output": folder / "report.html",
        "pretrain_dirs": {"optidel": vit},
        "results": write_results(folder / "results.json", {"optidel": 0.61, "random": 0.58}),
        "evidence": make_evidence(arms),
        "compared": compared,
        "theory": lambda strategy, ratio, fractions, angle: 0.5 / (1 + ratio * fractions),
    }


@pytest.fixture(scope="module")
def curation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 64 px sources, three patches each, one named as an attacker would; four mosaics."""
    rng = np.random.default_rng(1)
    names = [f"video_{number}/frame.png" for number in range(7)] + [HOSTILE]
    images = {name: rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for name in names}
    return write_curation(tmp_path_factory.mktemp("run") / "out", images, each=3, mosaics=4, per_shard=8)


@pytest.fixture
def training() -> Callable[..., Path]:
    return write_training


@pytest.fixture
def results() -> Callable[..., Path]:
    return write_results


@pytest.fixture
def grid() -> Callable[..., Evidence]:
    return make_evidence


@pytest.fixture(scope="module")
def every_part(curation: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return complete(curation, tmp_path_factory.mktemp("complete"))
