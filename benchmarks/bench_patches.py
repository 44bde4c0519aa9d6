"""How fast key patches are found: `MaskGenerator` against the steps of transformers' mask generation, in one run.

    python benchmarks/bench_patches.py --images FOLDER                # the embedded SAM, 16 x 16 points
    python benchmarks/bench_patches.py --size base --repeats 3        # sam-vit-base's configuration, random weights

The stock side calls `SamModel` for 64 points at a time and then the image processor's own `post_process_masks` and
`filter_masks` (boxes and run lengths included), as `MaskGenerationPipeline` does; its NMS needs torchvision, so ours
stands in for it. Both sides are warmed and then alternate, image by image. Ours also cuts and encodes the patches.
Prints a table in Markdown; redirect it to `benchmarks/patches_[hardware]_[date].md`.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import (
    SamImageProcessorPil,
    _batched_mask_to_box,
    _compute_stability_score,
    _rle_to_mask,
)

from optidel_hf.curation import amg, patches
from optidel_hf.curation.decoder import Decoded, PointDecoder
from optidel_hf.curation.patches import MaskGenerator, PatchConfig, cut_patches
from optidel_hf.sample import FrameConfig, generate_sequence


STOCK_BATCH = 64
NEAR_A_THRESHOLD = 0.02
SIZES = [(352, 352), (352, 288), (512, 384), (301, 257), (640, 480), (352, 198)]


class Clock:
    """Seconds by part, of the run under way; processor time serves where others keep the machine busy."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.now = time.perf_counter

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] += self.now() - began


CLOCK = Clock()


class TimedDecoder(PointDecoder):
    """The decoder with its time taken."""

    def __init__(self, model: SamModel, embedding: Tensor) -> None:
        with CLOCK.part("decoder"):
            super().__init__(model, embedding)

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


class Stock:
    """The steps of transformers' `MaskGenerationPipeline` on one image."""

    def __init__(self, generator: MaskGenerator) -> None:
        self.model, self.thresholds = generator.model, generator.thresholds
        self.config = generator.config
        self.processor: SamImageProcessorPil = generator.processor.image_processor

    def embed(self, image: Image.Image) -> tuple[Any, ...]:
        """Image embedding, points `(1, P, 1, 2)`, labels and the processor's inputs."""
        side = self.processor.size["longest_edge"]
        per_side = self.thresholds.points_per_side
        boxes, points, images, labels = self.processor.generate_crop_boxes(image, side, points_per_crop=per_side)
        inputs = self.processor(images=images, return_tensors="pt")
        return self.model.get_image_embeddings(inputs["pixel_values"]), points.float(), labels, inputs, boxes

    def decode(self, image: Image.Image) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Logits at the image's size and predicted IoU, a batch of points at a time, and the crop's box."""
        embedding, points, labels, inputs, boxes = self.embed(image)
        for start in range(0, points.shape[1], STOCK_BATCH):
            batch = slice(start, start + STOCK_BATCH)
            with CLOCK.part("decoder"):
                output = self.model(
                    image_embeddings=embedding, input_points=points[:, batch], input_labels=labels[:, batch]
                )
            sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
            masks = self.processor.post_process_masks(output.pred_masks, *sizes, binarize=False)[0]
            yield masks, output.iou_scores[0], boxes[0]

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> int:
        """Masks of one image; returns how many."""
        thresholds, found = self.thresholds, []
        for masks, ious, box in self.decode(image):
            found.append(
                self.processor.filter_masks(
                    masks,
                    ious,
                    image.size[::-1],
                    box,
                    thresholds.pred_iou_thresh,
                    thresholds.stability_score_thresh,
                    stability_score_offset=thresholds.stability_score_offset,
                )
            )
        runs = [run for part in found for run in part[0]]
        scores, boxes = (torch.cat([part[i] for part in found]) for i in (1, 2))
        keep = amg.non_maximum_suppression(boxes.float(), scores, thresholds.box_nms_thresh)
        return len([_rle_to_mask(runs[i]) for i in keep.tolist()])

    @torch.inference_mode()
    def boxes(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Boxes before suppression by our filters, and which of them are clear of every threshold."""
        parts = []
        for masks, ious, _ in self.decode(image):
            flat = masks.flatten(0, 1)
            stability = _compute_stability_score(flat, 0.0, self.thresholds.stability_score_offset)
            area = (flat > 0).float().mean((-1, -2))
            keep, clear = accepted(ious.flatten(), stability, area, self.thresholds, self.config)
            parts.append((_batched_mask_to_box(flat > 0)[keep].float(), clear[keep]))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def accepted(ious: Tensor, stability: Tensor, area: Tensor, thresholds: Any, config: PatchConfig) -> tuple:
    """Which masks pass, and which are further than `NEAR_A_THRESHOLD` (a tenth of it for areas) from failing."""
    margins = [
        (ious - thresholds.pred_iou_thresh) / NEAR_A_THRESHOLD,
        (stability - thresholds.stability_score_thresh) / NEAR_A_THRESHOLD,
        (area - config.min_area) / (NEAR_A_THRESHOLD / 10),
        (config.max_area - area) / (NEAR_A_THRESHOLD / 10),
    ]
    return torch.stack(margins).amin(0) > 0, torch.stack(margins).amin(0) > 1


def agreement(generator: MaskGenerator, images: list[Image.Image]) -> list[str]:
    """How many boxes of either side, before suppression, have one of the other's with IoU 0.9."""
    unsuppressed = generator.thresholds._replace(box_nms_thresh=1.0)
    generator.thresholds, usual = unsuppressed, generator.thresholds
    counts = np.zeros((2, 3), int)  # side; found, clear, near a threshold
    for image in images:
        stock, stock_clear = Stock(generator).boxes(image)
        masks = generator([image])[0]
        measures = masks.predicted_iou, masks.stability, masks.areas
        clear = accepted(*measures, generator.thresholds, generator.config)[1]
        overlap = amg.box_iou(stock, masks.boxes)
        for side, (best, far) in enumerate(((overlap.amax(1), stock_clear), (overlap.amax(0), clear))):
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


def peak_memory(run: Callable[[], object]) -> float:
    """Highest resident memory during `run`, in MiB (Linux: the mark is reset first)."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def timed(run: Callable[[Image.Image], object], image: Image.Image) -> dict[str, float]:
    """Seconds of one image: encoder, decoder, rest, total."""
    CLOCK.seconds.clear()
    began = CLOCK.now()
    run(image)
    total = CLOCK.now() - began
    parts = {name: CLOCK.seconds[name] for name in ("encoder", "decoder")}
    return {**parts, "rest": total - sum(parts.values()), "total": total}


def operations(run: Callable[[], object]) -> float:
    """Floating-point operations of matrix products and convolutions, in GFLOP."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def matmul_rate(side: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a square float32 product: the best of some."""
    a, b = torch.randn(2, side, side)
    seconds = []
    for _ in range(repeats + 1):
        began = CLOCK.now()
        a @ b
        seconds.append(CLOCK.now() - began)
    return 2e-9 * side**3 / min(seconds)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def arithmetic(model: SamModel, embedding: Tensor) -> list[str]:
    """GFLOP of a point, on both sides."""
    points = model.config.vision_config.image_size * torch.rand(8, 2)
    stock = operations(lambda: model(image_embeddings=embedding, input_points=points[None, :, None])) / 8
    shared = operations(lambda: PointDecoder(model, embedding[0]))
    decoder = PointDecoder(model, embedding[0])
    all_pass = operations(lambda: decoder(points)) / 8
    none_pass = operations(lambda: decoder(points, 1e9)) / 8
    return [
        f"- stock decoder: {stock:.3f} GFLOP a point",
        f"- our decoder: {shared:.2f} GFLOP an image, and a point {all_pass:.3f} GFLOP where a mask passes, "
        f"{none_pass:.3f} where none does",
    ]


def compare(generator: MaskGenerator, images: list[Image.Image], repeats: int) -> list[str]:
    """The table: both sides in turn on every image, `repeats` times."""
    stock = Stock(generator)
    config = generator.config
    sides: dict[str, Callable[[Image.Image], object]] = {
        "stock": stock,
        "ours": lambda image: cut_patches(image, generator([image])[0], config),
    }
    times: dict[str, list[dict[str, float]]] = defaultdict(list)
    memory = {}
    for name, run in sides.items():
        memory[name] = peak_memory(lambda run=run: run(images[0]))  # warms up, too
    for image in images * repeats:
        for name, run in sides.items():
            times[name].append(timed(run, image))
    points = generator.thresholds.points_per_side**2
    lines = [
        "| | encoder, s | decoder, s | rest, s | total, s | images/s | points/s of the decoder | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in times.items():
        cells = [spread([row[part] for row in rows], 3) for part in ("encoder", "decoder", "rest", "total")]
        rate = 1 / np.median([row["total"] for row in rows])
        speed = points / np.median([row["decoder"] for row in rows])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rate:.3f} | {speed:.1f} | {memory[name]:.0f} |")
    ratio = {
        part: spread([a[part] / b[part] for a, b in zip(times["stock"], times["ours"])])
        for part in ("decoder", "rest", "total")
    }
    share = spread([100 * row["rest"] / row["total"] for row in times["ours"]], 1)
    lines += ["", *(f"Stock over ours, {part}: {value}." for part, value in ratio.items())]
    return [*lines, f"The rest of ours: {share} % of its time."]


def load(size: str, per_side: int | None, image: Image.Image) -> tuple[MaskGenerator, Tensor, float]:
    """The generator of a case, the first image's embedding, and the GFLOP that this takes."""
    if size == "base":
        loaded = base_model(), SamProcessor(image_processor=SamImageProcessorPil())
        patches.load_sam = lambda *_: loaded
    loose = {"stability_score_thresh": 0.01, "min_area": 0.0, "max_area": 1.0} if size == "base" else {}
    generator = MaskGenerator(PatchConfig(points_per_side=per_side, **loose), "cpu")
    pixels = generator.processor(images=[image], return_tensors="pt", device="cpu")["pixel_values"]
    embeddings: list[Tensor] = []
    encoder = operations(lambda: embeddings.append(generator.model.get_image_embeddings(pixels)))
    return generator, embeddings[0], encoder


@torch.inference_mode()
def predicted_ious(model: SamModel, embedding: Tensor, per_side: int = 8) -> Tensor:
    """Predicted IoU `(P, K)` over a coarse grid."""
    points = model.config.vision_config.image_size * amg.point_grid(per_side)
    return PointDecoder(model, embedding[0])(points).ious.view(len(points), -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("embedded", "base"), default="embedded")
    parser.add_argument("--images", help="Folder of real images; without it, generated frames.")
    parser.add_argument("--count", type=int, default=8, help="Images.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points_per_side", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.15, help="base: masks whose predicted IoU passes.")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="Processor: one thread only.")
    arguments = parser.parse_args()
    CLOCK.now = time.process_time if arguments.clock == "processor" else time.perf_counter
    images = frames(arguments.images, arguments.count)
    generator, embedding, encoder = load(arguments.size, arguments.points_per_side, images[0])
    model = generator.model
    ious = predicted_ious(model, embedding)
    if arguments.size == "base":  # random weights: a threshold that lets through as many as asked
        least = ious.quantile(1 - arguments.share).item()
        generator.thresholds = generator.thresholds._replace(pred_iou_thresh=least)
    passing = ious > generator.thresholds.pred_iou_thresh
    print(f"## {arguments.size}, {len(images)} images x {arguments.repeats} repeats, {arguments.clock} time\n")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()},")
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start.")
    print(f"float32 matmul (2,048 square, best of 6): {matmul_rate():.0f} GFLOP/s. Grid of")
    print(f"{generator.thresholds.points_per_side}^2 points; sizes {sorted({image.size for image in images})}.")
    print(f"Predicted IoU passes for {100 * passing.float().mean():.0f} % of the masks of the first image, for one or")
    print(f"more masks of {100 * passing.any(1).float().mean():.0f} % of the points.\n")
    print(f"- encoder: {encoder:.1f} GFLOP an image")
    print("\n".join(arithmetic(model, embedding)) + "\n", flush=True)
    time_encoder(model)
    patches.PointDecoder = TimedDecoder
    print("\n".join(compare(generator, images, arguments.repeats)), flush=True)
    if arguments.size == "embedded":
        print("\n" + "\n".join(agreement(generator, images)))


if __name__ == "__main__":
    main()
