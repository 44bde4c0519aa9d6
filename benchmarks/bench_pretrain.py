"""
Pre-training here against the usual path: transformers' Trainer, a DataLoader, and Pillow's transforms.

    python benchmarks/bench_pretrain.py                    # the small model at 64 px, under ten minutes on two cores
    python benchmarks/bench_pretrain.py --model base       # ViT-B/16 at 224 px, for a GPU
    python benchmarks/bench_pretrain.py --ours compile=true    # with further fields of PretrainConfig

Every figure is measured in a process of its own, on the same parquet file of generated images, with the same model,
batch and crops. A rate is the median over windows of five steps after the first two; the extremes are its spread. The
usual path is taken as Trainer's defaults have it (float32, images decoded and cut in the training process), and tuned
(as many workers as cores, once in float32 and once in bfloat16: the faster counts). Writes
`benchmarks/pretrain_[cpu|gpu]_[date].md`, anew after each figure.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import io
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as PILImage
from transformers import Trainer, TrainerCallback, TrainingArguments

from optidel_hf.devices import resolve_device
from optidel_hf.pretraining import batches
from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.objectives import OBJECTIVES
from optidel_hf.pretraining.objectives.mae import build_mae
from optidel_hf.pretraining.rates import flops_per_image, matmul_rate, synchronize
from optidel_hf.pretraining.stored import open_images
from optidel_hf.pretraining.trainer import Pretrainer
from optidel_hf.processes import share_cores


Figure = tuple[str, int, int]  # an arm, its batch and its processes

WINDOW, SKIPPED = 5, 2  # steps in a window, windows before the rates count
MODELS: dict[str, dict[str, Any]] = {
    "small": {},  # PretrainConfig's defaults: width 192, 6 layers, 64 px
    "base": {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 8,
        "decoder_num_attention_heads": 16,
    },
}
ARMS = {
    "usual, defaults": {"arm": "usual"},
    "usual, tuned, float32": {"arm": "usual", "workers": os.cpu_count()},
    "usual, tuned, bfloat16": {"arm": "usual", "workers": os.cpu_count(), "precision": "bf16"},
    "ours, float32": {"arm": "ours"},
    "ours, bfloat16": {"arm": "ours", "precision": "bf16"},
    "ours, float32, streamed": {"arm": "ours", "residency": "stream"},
}


def generate(path: Path, count: int, size: int) -> None:
    """Smooth colour noise as lossless PNG, at the size that a curated set is stored in."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    values = []
    for image in cells:
        buffer = io.BytesIO()
        PILImage.fromarray(image).resize((size, size), PILImage.Resampling.BICUBIC).save(buffer, format="PNG")
        values.append({"bytes": buffer.getvalue(), "path": None})
    Dataset.from_dict({"image": values}, features=Features({"image": Image()})).to_parquet(str(path))


class PillowTransform:
    """Random resized crop, flip and normalisation of one image after the other, as torchvision does it with Pillow."""

    def __init__(self, size: int, min_scale: float = 0.2) -> None:
        self.size, self.min_scale = size, min_scale
        self.mean = np.array(batches.MEAN, dtype=np.float32)
        self.std = np.array(batches.STD, dtype=np.float32)

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[torch.Tensor]]:
        return {"pixel_values": [self.view(image.convert("RGB")) for image in rows["image"]]}

    def view(self, image: PILImage.Image) -> torch.Tensor:
        image = image.resize((self.size, self.size), PILImage.Resampling.BICUBIC, box=self.box(*image.size))
        if random.random() < 0.5:
            image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        for _ in range(10):
            area = width * height * random.uniform(self.min_scale, 1)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                x, y = random.randint(0, width - w), random.randint(0, height - h)
                return x, y, x + w, y + h
        return 0, 0, width, height


class Stopwatch(TrainerCallback):
    """When each window of steps ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, [time.perf_counter()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % WINDOW == 0:
            synchronize(self.device)
            self.times.append(time.perf_counter())


class Waiting:
    """The share of the time that is spent inside what fetches data, once the first windows are over."""

    def __init__(self) -> None:
        self.fetched, self.seconds, self.since = 0, 0.0, time.perf_counter()

    @property
    def share(self) -> float:
        return self.seconds / (time.perf_counter() - self.since)

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(items)
        fetch = self.timed(lambda: next(iterator, None))
        while (item := fetch()) is not None:
            self.fetched += 1
            if self.fetched == SKIPPED * WINDOW:
                self.seconds, self.since = 0.0, time.perf_counter()
            yield item

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def measure_usual(options: argparse.Namespace, config: PretrainConfig) -> dict[str, Any]:
    """Images a second of Trainer's loop, and the share of its time in which it waits for the DataLoader."""
    model = build_mae(attn_implementation="sdpa", **config.sizes())
    dataset = load_dataset(
        "parquet", data_files=options.images, split="train", cache_dir=str(Path(options.images).parent)
    )
    device, waiting = resolve_device(), Waiting()
    watch = Stopwatch(device)
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        per_device_train_batch_size=config.batch_size,
        max_steps=options.steps,
        learning_rate=config.peak_learning_rate,
        weight_decay=config.weight_decay,
        bf16=options.precision == "bf16",
        dataloader_num_workers=options.workers,
        dataloader_persistent_workers=options.workers > 0,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        remove_unused_columns=False,
        label_names=[],
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )

    plain = DataLoaderShard.__iter__  # what Trainer's loader is once Accelerate has prepared it
    DataLoaderShard.__iter__ = lambda loader: waiting.iterate(plain(loader))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset.with_transform(PillowTransform(config.image_size)),
        data_collator=lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])},
        callbacks=[watch],
    )
    trainer.train()
    share = waiting.share
    rates = [WINDOW * config.batch_size / (b - a) for a, b in zip(watch.times, watch.times[1:])]
    return {"rates": rates[SKIPPED:], "waiting": share, "prepare": 0.0}


def measure_ours(options: argparse.Namespace, config: PretrainConfig) -> dict[str, Any]:
    """The same of the training here; drawing random numbers counts as waiting, cutting views as the device's work."""
    share_cores()
    started = time.perf_counter()
    pretrainer = Pretrainer(
        config, open_images(options.images, size=config.image_size, stream=config.residency == "stream")
    )
    prepare, waiting = time.perf_counter() - started, Waiting()
    pool = pretrainer.batches.pool
    fetch = pool.batches
    pool.batches = lambda places: waiting.iterate(fetch(places))  # type: ignore[method-assign]
    batches.draw = waiting.timed(batches.draw)
    pretrainer.train()
    share = waiting.share
    lines = read_metrics(Path(config.output_dir) / "metrics.jsonl")
    rates = [line["images_per_second"] for line in lines[SKIPPED * WINDOW :: WINDOW]]
    return {"rates": rates, "waiting": share, "prepare": prepare}


def measure(options: argparse.Namespace) -> None:
    """One figure, as a line of JSON; of several processes the first prints it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = {
            "output_dir": options.output_dir or folder,
            "steps": options.steps,
            "batch_size": options.batch_size,
            "mixed_precision": "no" if options.precision == "float32" else options.precision,
            "residency": options.residency,
            "log_every": WINDOW,
            "checkpoint_every": options.steps,
            "resume": "never",
            "report_to": "none",
        }
        given = dict(entry.split("=", 1) for entry in options.ours) if options.arm == "ours" else {}
        fields |= {name: json.loads(value) for name, value in given.items()} | MODELS[options.model]
        result = {"usual": measure_usual, "ours": measure_ours}[options.arm](options, PretrainConfig(**fields))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))


def run(options: argparse.Namespace, images: Path, batch_size: int, processes: int = 1, **arm: Any) -> dict[str, Any]:
    """A figure from a process, or several, of its own."""
    settings = {"precision": "float32", "residency": "auto", "workers": 0, **arm, "batch_size": batch_size}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        flags.append(f"--output_dir={images.parent / f'run-{processes}-{batch_size}'}")
    flags += [f"--images={images}", f"--model={options.model}", f"--steps={options.steps}", "--measure"]
    command = [*launch, __file__, *flags, "--ours", *options.ours]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.strip().splitlines()[-1])
    rates = result["rates"]
    print(f"{settings['arm']}, {settings}: {statistics.median(rates):.0f} images/s", flush=True)
    return {**result, "rate": statistics.median(rates), "low": min(rates), "high": max(rates)}


def plan(options: argparse.Namespace, found: dict[Figure, dict[str, Any]]) -> Iterator[Figure]:
    """What is to be measured, in order; which arms get curves is told by what was found before."""
    yield from ((name, options.batch_size, 1) for name in ARMS)
    fastest = _fastest(options, found)
    yield from ((name, size, 1) for size in options.batch_sizes for name in fastest.values())
    yield from ((fastest["best"], options.batch_size, count) for count in options.processes)


def _fastest(options: argparse.Namespace, found: dict[Figure, dict[str, Any]]) -> dict[str, str]:
    """The names of the fastest tuned arm and of our fastest, of those that are measured."""
    names = {
        "tuned": ("usual, tuned, float32", "usual, tuned, bfloat16"),
        "best": ("ours, float32", "ours, bfloat16"),
    }
    rates = {
        name: figure["rate"]
        for (name, size, count), figure in found.items()
        if (size, count) == (options.batch_size, 1)
    }
    measured = {which: [name for name in of if name in rates] for which, of in names.items()}
    return {which: max(of, key=lambda name: rates[name]) for which, of in measured.items() if of}


def measure_all(options: argparse.Namespace, output: Path) -> None:
    """Every measurement, as markdown that is written anew after each: what cuts the run off loses the rest alone."""
    device = resolve_device()
    config = PretrainConfig(**MODELS[options.model])
    flops = flops_per_image(OBJECTIVES[config.objective].from_config(config, "eager"))
    peak = {
        name: matmul_rate(device, dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    found: dict[Figure, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.parquet"
        generate(images, options.count, config.image_size)
        for name, size, count in plan(options, found):
            if (name, size, count) not in found:
                found[name, size, count] = run(options, images, size, count, **ARMS[name])
                unfinished = "The run is not finished, or was cut off here."
                output.write_text(
                    "\n".join([*_report(options, device, flops, peak, found), unfinished, ""]), encoding="utf-8"
                )
    output.write_text("\n".join(_report(options, device, flops, peak, found)), encoding="utf-8")


def _report(
    options: argparse.Namespace,
    device: torch.device,
    flops: int,
    peak: dict[str, float],
    found: dict[Figure, dict[str, Any]],
) -> list[str]:
    batch, fastest = options.batch_size, _fastest(options, found)
    arms = {name: found[name, batch, 1] for name in ARMS if (name, batch, 1) in found}
    lines = [*_head(options, device, flops, peak), *_arms(arms, flops, peak, fastest), ""]
    if len(arms) < len(ARMS):
        return lines
    tuned, best = fastest["tuned"], fastest["best"]
    sizes = {size: [found.get((name, size, 1)) for name in (tuned, best)] for size in options.batch_sizes}
    scaling = {count: [found.get((best, batch, count))] for count in options.processes}
    return [*lines, *_curve("batch", sizes, (tuned, best)), "", *_curve("processes", scaling, (best,)), ""]


def _head(options: argparse.Namespace, device: torch.device, flops: int, peak: dict[str, float]) -> list[str]:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "accelerate")
    )
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    )
    rates = ", ".join(f"{dtype} {rate / 1e12:.2f} TFLOP/s" for dtype, rate in peak.items())
    load = f"{os.getloadavg()[0]:.1f}"
    return [
        f"# Pre-training against the usual path, {datetime.date.today()}",
        "",
        f"`{' '.join(['python benchmarks/bench_pretrain.py', *sys.argv[1:]])}`: {name}; {versions};",
        f"load at the end {load}.",
        f"Measured matrix products: {rates}. MAE, model `{options.model}`, batch {options.batch_size};",
        f"forward and backward of an image take {flops / 1e9:.2f} GFLOP.",
        "",
    ]


def _arms(arms: dict[str, dict[str, Any]], flops: int, peak: dict[str, float], fastest: dict[str, str]) -> list[str]:
    lines = [
        "| | images/s | spread | of the matmul rate | waits for data | against defaults | against tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    others = [arms.get(name, {}).get("rate", math.nan) for name in ("usual, defaults", fastest.get("tuned", ""))]
    for name, found in arms.items():
        rate = found["rate"]
        share = rate * flops / peak["bfloat16" if "bfloat16" in name else "float32"]
        spread = f"{found['low']:.0f} to {found['high']:.0f}"
        ratios = " | ".join(f"{rate / other:.2f}x" for other in others)
        lines.append(f"| {name} | {rate:.0f} | {spread} | {share:.0%} | {found['waiting']:.1%} | {ratios} |")
    if "best" in fastest:
        best = fastest["best"]
        prepare = f"Loading, decoding and building before the first step: {arms[best]['prepare']:.1f} s, once."
        lines += ["", f"Best of ours: {best}; of the tuned: {fastest['tuned']}. {prepare}"]
    return lines


def _curve(what: str, rows: dict[int, list[dict[str, Any] | None]], names: tuple[str, ...]) -> list[str]:
    lines = [f"| {what} | {' | '.join(f'{name}, images/s' for name in names)} |", f"|---{'|---' * len(names)}|"]
    for key, figures in rows.items():
        cells = (f"{f['rate']:.0f} ({f['low']:.0f} to {f['high']:.0f})" if f else "" for f in figures)
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--count", type=int, default=2048, help="Images that are generated.")
    parser.add_argument("--steps", type=int, default=40, help="Steps of each measurement.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[16, 64, 256])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--ours", nargs="*", default=[], help="Further fields of PretrainConfig, as name=json.")
    parser.add_argument("--output", help="Markdown file, by default in benchmarks/.")
    one = parser.add_argument_group("one figure, in a process of its own")
    one.add_argument("--measure", action="store_true")
    one.add_argument("--arm", choices=["usual", "ours"])
    one.add_argument("--images")
    one.add_argument("--workers", type=int, default=0)
    one.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    one.add_argument("--residency", default="auto")
    one.add_argument("--output_dir")
    options = parser.parse_args()
    if options.measure:
        return measure(options)
    kind = "gpu" if resolve_device().type == "cuda" else "cpu"
    default = Path(__file__).parent / f"pretrain_{kind}_{datetime.date.today()}.md"
    measure_all(options, Path(options.output or default))


if __name__ == "__main__":
    main()
