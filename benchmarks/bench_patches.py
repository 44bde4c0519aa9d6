"""How fast key patches are found: `MaskGenerator` against the steps of transformers' mask generation, in one run.

    python benchmarks/bench_patches.py --images FOLDER --dtypes float32 bfloat16   # the embedded SAM, 16 x 16 points
    python benchmarks/bench_patches.py --size base --points 32 --count 3 --repeats 1 --kept t.jsonl   # random weights
    python benchmarks/bench_patches.py --size base --points 32 --device cuda --dtypes float32 bfloat16

The stock side calls `SamModel` for 64 points at a time and then the image processor's own `post_process_masks` and
`filter_masks` (boxes and run lengths included), as `MaskGenerationPipeline` does; its NMS needs torchvision, so ours
stands in for it. Both sides are warmed and then alternate, image by image. Ours also cuts and encodes the patches.
With `--kept` every timing is in that file as soon as it is taken, and the same command, given again, takes only those
that are missing. Prints a table in Markdown; redirect it to `benchmarks/patches_[hardware]_[date].md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image
from stock_generation import Stock, accepted
from timings import CLOCK, Timings, spread, timed
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from optidel_hf.curation import amg, masks
from optidel_hf.curation.decoder import Decoded, PointDecoder
from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import cut_patches
from optidel_hf.images import Opened
from optidel_hf.sample import FrameConfig, generate_sequence


SIZES = [(352, 352), (352, 288), (512, 384), (301, 257), (640, 480), (352, 198)]


class TimedDecoder(PointDecoder):
    """The decoder with its time taken."""

    def __init__(self, model: SamModel, embedding: Tensor, compiled: bool = False) -> None:
        with CLOCK.part("decoder"):
            super().__init__(model, embedding, compiled)

    def __call__(self, points: Tensor, least_iou: float = float("-inf")) -> Decoded:
        with CLOCK.part("decoder"):
            return super().__call__(points, least_iou)


def base_model() -> SamModel:
    """The configuration of facebook/sam-vit-base, which is `SamConfig`'s default, with random weights."""
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config={"initializer_range": 0.02}))
    for module in [*model.mask_decoder.modules(), *model.prompt_encoder.modules()]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for features in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        torch.nn.init.normal_(features.positional_embedding)
    return model.eval()


def time_encoder(model: SamModel) -> None:
    """Have `CLOCK` take the encoder's time on both sides."""
    forward = model.vision_encoder.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        with CLOCK.part("encoder"):
            return forward(*arguments, **options)

    model.vision_encoder.forward = timed


def agreement(reference: Stock, generator: MaskGenerator, images: list[Image.Image]) -> list[str]:
    """How many boxes of either side, before suppression, have one of the other's with IoU 0.9."""
    unsuppressed = generator.thresholds._replace(box_nms_thresh=1.0)
    generator.thresholds, usual = unsuppressed, generator.thresholds
    counts = np.zeros((2, 3), int)  # side; found, clear, near a threshold
    for image in images:
        stock, stock_clear = reference.boxes(image)
        found = generator([Opened.whole(image)])[0]
        measures = found.predicted_iou, found.stability, found.areas
        clear = accepted(*measures, generator.thresholds, generator.config)[1]
        overlap = amg.box_iou(stock.cpu(), found.boxes)
        for side, (best, far) in enumerate(((overlap.amax(1), stock_clear.cpu()), (overlap.amax(0), clear))):
            counts[side] += [int((best[far] >= 0.9).sum()), int(far.sum()), int((~far).sum())]
    generator.thresholds = usual
    names = ("stock boxes that one of ours matches", "our boxes that a stock one matches")
    return [
        f"- {name}: {found} of {total} ({100 * found / total:.1f} %); {near} more lie near a threshold"
        for name, (found, total, near) in zip(names, counts)
    ]


def frames(folder: str | None, count: int) -> list[Image.Image]:
    """Images of a folder, evenly spaced by name, or generated frames; of several sizes either way."""
    if folder:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".png"))
        return [Image.open(path).convert("RGB") for path in paths[:: max(1, len(paths) // count)][:count]]
    config = FrameConfig(image_size=352, frames_per_sequence=1)
    pictures = [Image.fromarray(generate_sequence(0, i, config)[0][0]) for i in range(count)]
    return [picture.resize(SIZES[i % len(SIZES)]) for i, picture in enumerate(pictures)]


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations of matrix products and convolutions, in GFLOP."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """GFLOP/s of a square product: the best of some."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    return 2e-9 * side**3 / fastest(lambda: a @ b)


def bandwidth(device: torch.device) -> float:
    """GB/s read and written by a copy far larger than any cache: the best of some."""
    source = torch.ones(2**27, device=device)  # 512 MiB
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / fastest(lambda: target.copy_(source))


def fastest(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs, the first left out."""
    seconds = []
    for _ in range(repeats + 1):
        began = CLOCK.now()
        run()
        seconds.append(CLOCK.now() - began)
    return min(seconds[1:])


class Work(NamedTuple):
    """GFLOP of the encoder and our decoder's shared part an image, and of a point; of stock's decoder a point."""

    encoder: float
    shared: float
    passing: float  # a point of which a mask passes, and is upscaled
    failing: float
    stock: float

    def lines(self) -> list[str]:
        return [
            f"- encoder: {self.encoder:.1f} GFLOP an image",
            f"- stock decoder: {self.stock:.3f} GFLOP a point",
            f"- our decoder: {self.shared:.2f} GFLOP an image, and a point {self.passing:.3f} GFLOP where a mask "
            f"passes, {self.failing:.3f} where none does",
        ]


@torch.inference_mode()
def measure_work(generator: MaskGenerator, image: Image.Image) -> tuple[Work, Tensor]:
    """The arithmetic of an image, and its embedding."""
    model, device = generator.model, generator.device
    inputs = generator.processor(images=[image], return_tensors="pt", device="cpu")
    pixels = inputs["pixel_values"].to(device, generator.dtype)
    embeddings: list[Tensor] = []
    encoder = operations(lambda: embeddings.append(model.get_image_embeddings(pixels)))
    embedding = embeddings[0]
    points = model.config.vision_config.image_size * torch.rand(8, 2, device=device)
    stock = operations(lambda: model(image_embeddings=embedding, input_points=points[None, :, None])) / 8
    shared = operations(lambda: PointDecoder(model, embedding[0]))
    decoder = PointDecoder(model, embedding[0])
    passing, failing = (operations(lambda least=least: decoder(points, least)) / 8 for least in (float("-inf"), 1e9))
    return Work(encoder, shared, passing, failing, stock), embedding


def roofline(name: str, generator: MaskGenerator, work: Work, ious: Tensor, seconds: float) -> list[str]:
    """
    The least time that an image can take, and ours over it.

    FLOPs are those of our own arithmetic at the rate of a large matrix product. Bytes are those that must move: the
    weights once, and once out and once in the logits of every mask that passes.
    """
    passing = ious > generator.thresholds.pred_iou_thresh
    points = generator.thresholds.points_per_side**2
    share, kept = passing.any(1).float().mean().item(), points * passing.float().sum(1).mean().item()
    flops = work.encoder + work.shared + points * (share * work.passing + (1 - share) * work.failing)
    weights = sum(weight.nbytes for weight in generator.model.parameters())
    logits = kept * (4 * generator.model.config.prompt_encoder_config.image_embedding_size) ** 2
    moved = 1e-9 * (weights + 2 * logits * generator.dtype.itemsize)
    rate, speed = matmul_rate(generator.device, generator.dtype), bandwidth(generator.device)
    floor = max(flops / rate, moved / speed)
    return [
        f"- {name}: {flops:.1f} GFLOP at {rate:.0f} GFLOP/s is {flops / rate:.3f} s; {moved:.2f} GB at "
        f"{speed:.1f} GB/s is {moved / speed:.3f} s; ours took {seconds:.3f} s, {seconds / floor:.1f} times the larger"
    ]


def sides_of(generators: dict[str, MaskGenerator]) -> dict[str, Callable[[Image.Image], object]]:
    """Stock at each precision, and ours at each and, where asked for, compiled."""
    sides: dict[str, Callable[[Image.Image], object]] = {}
    for name, generator in generators.items():
        if not generator.config.sam_compile:
            sides[f"stock {name}"] = Stock(generator)
        sides[f"ours {name}"] = ours(generator)
    return sides


def warm(generators: dict[str, MaskGenerator], image: Image.Image) -> None:
    """Run every side over a few points."""
    usual = {name: generator.thresholds for name, generator in generators.items()}
    for generator in generators.values():
        generator.thresholds = generator.thresholds._replace(points_per_side=8)
    for run in sides_of(generators).values():
        run(image)
    for name, generator in generators.items():
        generator.thresholds = usual[name]


def compare(
    generators: dict[str, MaskGenerator], images: list[Image.Image], repeats: int, timings: Timings
) -> tuple[list[str], Any]:
    """The table, and the median seconds of each side: all in turn on every image, `repeats` times."""
    sides = sides_of(generators)
    device = next(iter(generators.values())).device
    keys = [(name, repeat, i) for repeat in range(repeats) for i in range(len(images)) for name in sides]
    missing = [key for key in keys if key not in timings.rows]
    if missing:
        warm(generators, images[0])
    for key in missing:
        timings.add(key, timed(sides[key[0]], images[key[2]], device))
    times = {name: [timings.rows[key] for key in keys if key[0] == name] for name in sides}
    lines = [
        "| | encoder, s | decoder, s | rest, s | total, s | images/s | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in times.items():
        cells = [spread([row[part] for row in rows], 3) for part in ("encoder", "decoder", "rest", "total")]
        rate, peak = 1 / np.median([row["total"] for row in rows]), max(row["peak"] for row in rows)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rate:.3f} | {peak:.0f} |")
    return [*lines, "", *ratios(times)], {name: np.median([r["total"] for r in rows]) for name, rows in times.items()}


def ratios(times: dict[str, list[dict[str, float]]]) -> list[str]:
    """Every stock side over every one of ours, and how much of ours is neither network."""
    lines = []
    for mine in (name for name in times if name.startswith("ours")):
        for stock in (name for name in times if name.startswith("stock")):
            for part in ("decoder", "rest", "total"):
                quotients = [a[part] / b[part] for a, b in zip(times[stock], times[mine])]
                lines.append(f"- {stock} over {mine}, {part}: {spread(quotients)}")
        share = spread([100 * row["rest"] / row["total"] for row in times[mine]], 1)
        lines.append(f"- the rest of {mine}: {share} % of its time")
    return lines


def ours(generator: MaskGenerator) -> Callable[[Image.Image], object]:
    """Masks, and patches cut and encoded."""

    def run(image: Image.Image) -> object:
        opened = Opened.whole(image)
        return cut_patches(opened, generator([opened])[0], generator.config)

    return run


def load_base(
    sam: str, revision: str | None, device: torch.device, dtype: torch.dtype, compiled: bool
) -> tuple[SamModel, SamProcessor]:
    """In `load_sam`'s place: sam-vit-base's size and processor."""
    model = base_model().to(device, dtype)
    if compiled:
        masks.compile_encoder(model)
    return model, SamProcessor(image_processor=SamImageProcessorPil())


def load(size: str, per_side: int, device: str, dtypes: list[str], compiled: bool) -> dict[str, MaskGenerator]:
    """The generator of a case at each precision and, if asked for, `compiled` too."""
    if size == "base":
        masks.load_sam = load_base
    loose = {"stability_score_thresh": 0.01, "min_area": 0.0, "max_area": 1.0} if size == "base" else {}
    config = PatchConfig(points_per_side=per_side, **loose)
    generators = {dtype: MaskGenerator(replace(config, sam_dtype=dtype), device) for dtype in dtypes}
    if compiled:
        fast = {name: replace(generator.config, sam_compile=True) for name, generator in generators.items()}
        generators |= {f"{name} compiled": MaskGenerator(config, device) for name, config in fast.items()}
    return generators


@torch.inference_mode()
def predicted_ious(model: SamModel, embedding: Tensor, per_side: int = 8) -> Tensor:
    """Predicted IoU `(P, K)` over a coarse grid."""
    points = model.config.vision_config.image_size * amg.point_grid(per_side).to(embedding.device)
    return PointDecoder(model, embedding[0])(points).ious.view(len(points), -1)


def synchronised() -> float:
    """Wall time when all that was asked of the GPU is done."""
    torch.cuda.synchronize()
    return time.perf_counter()


def arguments_of_the_case() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("embedded", "base"), default="embedded")
    parser.add_argument("--images", help="Folder of real images; without it, generated frames.")
    parser.add_argument("--count", type=int, default=8, help="Images.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=16, help="Side of the point grid.")
    parser.add_argument("--share", type=float, default=0.15, help="base: masks whose predicted IoU passes.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--compiled", action="store_true", help="Ours through torch.compile, as one more side.")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="Processor: one thread only.")
    parser.add_argument("--kept", type=Path, help="File of timings: a run that was cut off goes on where it stopped.")
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of_the_case()
    case = {name: value for name, value in vars(arguments).items() if name != "kept"}
    timings = Timings(arguments.kept, {**case, "torch": torch.__version__, "threads": torch.get_num_threads()})
    earlier = len(timings.rows)
    CLOCK.now = time.process_time if arguments.clock == "processor" else time.perf_counter
    if arguments.device.startswith("cuda"):
        CLOCK.now = synchronised
    images = frames(arguments.images, arguments.count)
    generators = load(arguments.size, arguments.points, arguments.device, arguments.dtypes, arguments.compiled)
    first = next(iter(generators.values()))
    work, embedding = measure_work(first, images[0])
    ious = predicted_ious(first.model, embedding)
    if arguments.size == "base":  # random weights: a threshold that lets through as many as asked
        least = ious.float().quantile(1 - arguments.share).item()
        for generator in generators.values():
            generator.thresholds = generator.thresholds._replace(pred_iou_thresh=least)
    passing = ious > first.thresholds.pred_iou_thresh
    device = torch.cuda.get_device_name() if first.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"## {arguments.size}, {len(images)} images x {arguments.repeats} repeats, {arguments.clock} time\n")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()},")
    busy = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{device}, {os.cpu_count()} cores, {busy}. Grid of {arguments.points}^2")
    print(f"points; sizes {sorted({image.size for image in images})}. Predicted IoU passes for")
    print(f"{100 * passing.float().mean():.0f} % of the masks of the first image, for one or more masks of")
    print(f"{100 * passing.any(1).float().mean():.0f} % of the points.\n")
    if earlier:
        print(f"{earlier} of the timings are of an earlier run that was cut off.\n")
    print("\n".join(work.lines()) + "\n", flush=True)
    for generator in generators.values():
        time_encoder(generator.model)
    masks.PointDecoder = TimedDecoder
    table, seconds = compare(generators, images, arguments.repeats, timings)
    print("\n".join(table) + "\n\nRoofline of ours, encoder and decoder:\n", flush=True)
    for name, generator in generators.items():
        print("\n".join(roofline(name, generator, work, ious, seconds[f"ours {name}"])), flush=True)
    if arguments.size == "embedded":
        stock = Stock(first)
        for name, generator in generators.items():
            print(f"\nAgreement of ours in {name} with stock in {arguments.dtypes[0]}:\n")
            print("\n".join(agreement(stock, generator, images)))


if __name__ == "__main__":
    main()
