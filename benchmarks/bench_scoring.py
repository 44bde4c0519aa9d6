"""How fast key patches are scored, as a share of the same model's bare forward passes, in one run.

    python benchmarks/bench_scoring.py                              # the reference model that `curate` fits, 64 px
    python benchmarks/bench_scoring.py --size base --count 64       # vit-mae-base's configuration, random weights
    python benchmarks/bench_scoring.py --pool OUT/patches           # patches of a curation in place of generated ones
    python benchmarks/bench_scoring.py --score_dtype bfloat16       # scoring beside the bare forward of float32

Both sides pass every patch through the model under the same masks and once unmasked, in batches of the same size. The
bare side has its pixels decoded and normalised on the device and drops what comes out; scoring begins with PNG bytes
and ends with the columns. The two alternate. Prints a table in Markdown; redirect it to
`benchmarks/scoring_[hardware]_[date].md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image

from optidel_hf.curation.calibration import FITTED_HERE, Calibration, load_reference
from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.masking import mask_partition, mask_ratio
from optidel_hf.curation.nuisance import nuisances
from optidel_hf.curation.reference import ReferenceConfig, write_settings
from optidel_hf.curation.scoring import ScoreConfig, VInformationScorer, load_pixels
from optidel_hf.curation.vinfo import DifficultyFit, GaussianFamily
from optidel_hf.devices import DTYPES, resolve_device
from optidel_hf.images import encode_png
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.objectives.mae import build_mae


SIZES = {
    "small": PretrainConfig("", image_size=64, patch_size=8, hidden_size=192, num_hidden_layers=6).sizes(),
    "base": {"image_size": 224, "patch_size": 16},  # ViTMAEConfig's defaults are vit-mae-base's
}
ROWS = 256  # of a call, as `curate` makes them


def write_reference(folder: Path, size: str) -> None:
    """A reference folder with random weights: what scores are does not matter here."""
    model = build_mae(**SIZES[size], norm_pix_loss=False)
    model.save_pretrained(folder / "fold-0")
    image_processor(model.config.image_size).save_pretrained(folder / "fold-0")
    family = GaussianFamily((1.0,), (1.0,), ((0.0, 0.0, 0.0),))
    facts = {"patches": 1, "groups": 1, "partitions": 1}
    calibration = Calibration(FITTED_HERE, None, False, family, DifficultyFit(0.0, 0.0, 0.0), **facts)
    write_settings(folder, ReferenceConfig(), ScoreConfig())
    calibration.save(folder / "fold-0" / "calibration.json")


def generate_patches(count: int, side: int) -> list[bytes]:
    """Textures with grain, which PNG compresses about as well as it does photographs."""
    rng = np.random.default_rng(0)
    patches = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side, side), 3)
        grain = rng.normal(0, 3, (side, side, 3))
        patches.append(encode_png(Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))))
    return patches


def as_batch(patches: list[bytes]) -> dict[str, list[Any]]:
    """Rows of a dataset, undecoded."""
    n = len(patches)
    keys: dict[str, list[Any]] = {name: [None] * n for name in KEY_FEATURES}
    known = {"image": [{"bytes": patch, "path": None} for patch in patches], "crop": [[0, 0, 64]] * n}
    return {**keys, **known, "group": [""] * n}


@torch.inference_mode()
def bare(model: transformers.ViTMAEForPreTraining, chunks: list[torch.Tensor], config: ScoreConfig) -> None:
    """The forward passes of scoring and nothing else."""
    tokens = model.vit.embeddings.patch_embeddings.num_patches
    for chunk in chunks:
        for partition in range(config.partitions or 1):
            model.config.mask_ratio = mask_ratio(tokens, config.masks)
            for row in mask_partition(tokens, config.masks, partition).to(chunk.device):
                model(chunk, noise=row.expand(len(chunk), -1))
        model.config.mask_ratio = 0.0
        model.vit(chunk, noise=torch.arange(tokens, device=chunk.device).float().expand(len(chunk), -1))


def seconds(work: Callable[[], Any]) -> float:
    """Wall time, the device's queue emptied before and after."""
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, patches: list[bytes], folder: Path, device: str) -> dict[str, list[float]]:
    """Seconds of both sides and of scoring's own parts, a value a repeat."""
    dtype = arguments.score_dtype
    config = ScoreConfig(partitions=arguments.partitions, patches_per_batch=arguments.batch, score_dtype=dtype)
    scorer, reference = (
        VInformationScorer(str(folder), config, arguments.device),
        load_reference(str(folder), 0, device),
    )
    calls = [as_batch(patches[start : start + ROWS]) for start in range(0, len(patches), ROWS)]
    pixels = [load_pixels(call["image"], reference) for call in calls]
    chunks = [chunk for part in pixels for chunk in part.split(arguments.batch)]
    stored = [(127 + 50 * chunk.permute(0, 2, 3, 1)).clamp(0, 255).byte() for chunk in chunks]
    sides: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare(reference.model, chunks, config),
        "scoring": lambda: [scorer(call) for call in calls],
        "decoding and normalising alone": lambda: [load_pixels(call["image"], reference) for call in calls],
        "nuisances alone": lambda: [nuisances(chunk) for chunk in stored],
    }
    for work in sides.values():
        work()  # warm
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, work in sides.items():
            times[name].append(seconds(work))
    return times


def spread(values: list[float], unit: str = "") -> str:
    """Median (lowest to highest)."""
    return f"{np.median(values):.3g}{unit} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--pool", type=Path, help="a curation's patches folder")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--partitions", type=int, default=1, help="what `curate` settles on with real frames")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--score_dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device, load = str(resolve_device(arguments.device)), os.getloadavg()[0]
    if arguments.pool:
        tables = [pq.read_table(path, columns=["image"]) for path in sorted(arguments.pool.glob("shard-*.parquet"))]
        patches = [row["bytes"] for table in tables for row in table["image"].to_pylist()][: arguments.count]
    else:
        patches = generate_patches(arguments.count, SIZES[arguments.size]["image_size"])
    with tempfile.TemporaryDirectory() as folder:
        write_reference(Path(folder), arguments.size)
        times = measure(arguments, patches, Path(folder), device)
    print(report(arguments, len(patches), times, device, load))


def report(arguments: argparse.Namespace, count: int, times: dict[str, list[float]], device: str, load: float) -> str:
    """The figures as a section of a page."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    ratio = [b / s for b, s in zip(times["bare"], times["scoring"])]
    lines = [
        f"## {arguments.size}, {count} patches x {arguments.repeats} repeats",
        "",
        f"{where}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, load {load:.1f} at the start. torch "
        f"{torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}.",
        f"{arguments.partitions} partition(s) of 4 masks and one unmasked pass, batches of {arguments.batch}, "
        f"the bare forward in float32, scoring in {arguments.score_dtype}. Median (lowest to highest).",
        "",
        "| | seconds | patches/s |",
        "|---|---|---|",
        *(f"| {name} | {spread(t)} | {spread([count / s for s in t])} |" for name, t in times.items()),
        "",
        f"Scoring's rate as a share of the bare forward's: {spread([100 * r for r in ratio], ' %')}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
