"""Train the small network that finds burned-in letters, on letters drawn over generated pictures.

python recipes/train_letters.py                     # into runs/letters; some 10 minutes on one core

The pictures are the embedded sample's frames and the scenes that the embedded SAM was trained on, with glints, pits,
folds, bubbles, lines and boxes over them, so that none of these is mistaken for a letter; the letters have the fonts
that Matplotlib brings. No real image is read.

What lies in optidel_hf/curation was trained by this on one core of an AMD EPYC with AVX-512. One processor writes the
same bytes again; on another, rounding leads to other weights, which find as much
(benchmarks/letters_cpu_2026-12-01.md).
"""

from __future__ import annotations

import colorsys
import io
import logging
import string
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter, rotate
from torch import Tensor
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, max_pool2d
from tqdm import tqdm
from transformers import HfArgumentParser

from optidel_hf.curation.letters import CELL, LetterNet, scaled
from optidel_hf.sample.frames import FrameConfig, generate_sequence
from optidel_hf.sample.scenes import make_scene


logger = logging.getLogger(__name__)

SIDE = 64  # of a patch, pixels
FINE = 3  # letters and lines are drawn this much larger
FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10", "cmss10", "cmtt10")
LETTERS = string.ascii_letters + string.digits + ":.-/" + 8 * " "
LETTERED = 0.45  # of the patches
IN_CELL = 0.12  # of a cell or of one beside it, in ink: it counts as lettered


@dataclass
class LetterTrainingConfig:
    """Everything that determines the trained weights."""

    output_dir: str = field(default="runs/letters", metadata={"help": "Where letters.safetensors goes."})
    seed: int = field(default=0, metadata={"help": "Seed of the patches, the weights and the order."})
    pictures: int = field(default=1500, metadata={"help": "Generated pictures that patches are cut from."})
    patches: int = field(default=40_000, metadata={"help": "Patches that are drawn."})
    steps: int = field(default=5000, metadata={"help": "Optimisation steps."})
    batch_size: int = field(default=64, metadata={"help": "Patches a step."})
    learning_rate: float = field(default=5e-3, metadata={"help": "Peak of AdamW's learning rate."})


def generate_pictures(seed: int, count: int) -> list[np.ndarray]:
    """Scenes and frames in turn, (S, S, 3) uint8; a frame without its left edge, where marks as small as text are."""
    config, pictures = FrameConfig(image_size=160, frames_per_sequence=1), []
    for number in tqdm(range(count), desc="pictures"):
        if number % 2:
            pictures.append(make_scene(seed, number)[0])
        else:
            pictures.append(generate_sequence(seed, number, config)[0][0][:, 30:])
    return pictures


def draw_patch(rng: np.random.Generator, pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A patch, (64, 64, 3) uint8, and where there is ink on it, (64, 64) uint8."""
    patch = recolour(rng, cut_out(rng, pictures[rng.integers(len(pictures))]))
    if rng.random() < 0.8:
        patch = litter(rng, patch)
    page = Image.fromarray(patch).resize((SIDE * FINE, SIDE * FINE), Image.Resampling.BICUBIC)
    ink = Image.new("L", page.size)
    if rng.random() < LETTERED:
        write(rng, page, ink)
    return photograph(rng, page), np.asarray(ink.resize((SIDE, SIDE), Image.Resampling.BOX))


def cut_out(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """A square of any size from 24 pixels on, at 64 pixels, turned over at random."""
    height, width = picture.shape[:2]
    side = int(rng.integers(24, min(height, width) + 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    square = Image.fromarray(picture[top : top + side, left : left + side])
    patch = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if rng.random() < 0.5:
        patch = patch[::-1]
    return patch.transpose(1, 0, 2) if rng.random() < 0.5 else patch


def recolour(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """Other colours, now and then none, and another exposure."""
    if rng.random() < 0.2:
        patch = patch[..., rng.permutation(3)]
    if rng.random() < 0.15:
        patch = np.repeat(patch.mean(-1, keepdims=True), 3, axis=-1)
    return as_levels(patch * rng.uniform(0.6, 1.4) + rng.uniform(-20, 20))


def litter(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """What is easily mistaken for letters: glints, pits, folds, grain, and shapes."""
    levels = patch.astype(float)
    if rng.random() < 0.55:
        levels = sprinkle(rng, levels)
    if rng.random() < 0.3:
        folds = grooves(rng, rng.uniform(3, 12), rng.uniform(0.7, 2))
        levels = levels * (1 + 0.25 * rng.random() * folds[..., None] * rng.uniform(0.3, 1, 3))
    if rng.random() < 0.2:
        levels = levels + rng.normal(0, rng.uniform(3, 15), (SIDE, SIDE, 1))
    return draw_shapes(rng, as_levels(levels)) if rng.random() < 0.35 else as_levels(levels)


def sprinkle(rng: np.random.Generator, levels: np.ndarray) -> np.ndarray:
    """Bright glints or dark pits, round or drawn out along one direction, in some places of the patch."""
    size = np.exp(rng.uniform(np.log(0.5), np.log(2.5)))
    dense = np.minimum(blobs(rng, SIDE, 12, 12), 1.2)
    height = grooves(rng, size * rng.uniform(1, 3.5), size) + rng.uniform(0.2, 1.2) * dense
    cover = np.clip((height - rng.uniform(0.8, 2.2)) * rng.uniform(1.5, 8), 0, 1)[..., None]
    tint = 1 - 0.35 * rng.random(3) * (rng.random() < 0.4)
    colour = 255 * tint if rng.random() < 0.75 else levels.mean((0, 1)) * rng.uniform(0.1, 0.7)
    return levels * (1 - cover) + colour * cover


def grooves(rng: np.random.Generator, along: float, across: float) -> np.ndarray:
    """A field of blobs, (64, 64), that are longer along one direction, drawn at random."""
    margin = SIDE // 4
    turned = rotate(blobs(rng, SIDE + 2 * margin, along, across), rng.uniform(0, 180), reshape=False, order=1)
    return turned[margin:-margin, margin:-margin]


def blobs(rng: np.random.Generator, side: int, along: float, across: float) -> np.ndarray:
    """Noise of unit variance, smoothed by so many pixels."""
    smooth = gaussian_filter(rng.standard_normal((side, side)), (across, along))
    return smooth / smooth.std()


def draw_shapes(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """Bubbles, lines, an instrument, a box, or arcs."""
    page = Image.fromarray(patch).resize((SIDE * FINE, SIDE * FINE), Image.Resampling.BICUBIC)
    pen, kind = ImageDraw.Draw(page), rng.choice(["bubble", "line", "polygon", "box", "arc"])
    bright = rng.uniform(150, 256, 3) if rng.random() < 0.6 else rng.uniform(0, 120, 3)
    colour = tuple(int(level) for level in (bright if rng.random() < 0.6 else np.full(3, bright.mean())))
    for _ in range(1 if kind in ("polygon", "box") else int(rng.integers(1, 14))):
        points = [tuple(point) for point in rng.uniform(-20, SIDE * FINE + 20, (int(rng.integers(3, 5)), 2))]
        (x, y), wide = points[0], FINE * rng.uniform(0.5, 6)
        if kind == "bubble":
            radius = FINE * rng.uniform(2, 10)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=FINE)
            glint = (x - 0.25 * radius, y - 0.85 * radius, x + 0.25 * radius, y - 0.35 * radius)
            pen.ellipse(glint, fill=(255, 255, 255) if rng.random() < 0.7 else None)
        elif kind == "line":
            pen.line(points[1:], fill=colour, width=int(wide))
        elif kind == "polygon":
            pen.polygon(points, fill=colour)
        elif kind == "box":
            low, high = np.min(points[:2], axis=0), np.max(points[:2], axis=0)
            pen.rectangle((*low, *high), fill=colour if rng.random() < 0.5 else (0, 0, 0))
        else:
            radius, start = FINE * rng.uniform(4, 60), rng.uniform(0, 360)
            ends = (start, start + rng.uniform(20, 180))
            pen.arc((x - radius, y - radius, x + radius, y + radius), *ends, fill=colour, width=int(wide / 2) + 1)
    return np.asarray(page.resize((SIDE, SIDE), Image.Resampling.BOX))


def write(rng: np.random.Generator, page: Image.Image, ink: Image.Image) -> None:
    """A page of letters or a few words, 5 to 34 pixels high on the patch; `ink` is where they are."""
    side, size = page.width, int(FINE * np.exp(rng.uniform(np.log(5), np.log(34))))
    pen, font = ImageDraw.Draw(ink), load_font(int(rng.integers(len(font_files()))), size)
    whole = rng.random() < 0.6
    top, spacing = rng.uniform(-size, size if whole else side), size * rng.uniform(1, 1.8)
    for line in range(int(side / spacing) + 2 if whole else int(rng.integers(1, 4))):
        count = rng.uniform(1, 2.5 * side / size) if whole else rng.integers(1, 12)
        words = "".join(rng.choice(list(LETTERS), int(count)))
        left = rng.uniform(-2 * size, side * (0.2 if whole else 0.8))
        pen.text((int(left), int(top + line * spacing)), words, 255, font)
    if rng.random() < 0.3:
        page.paste((0, 0, 0), (FINE, FINE), fainter(ink, 0.8))
    page.paste(draw_ink(rng), (0, 0), fainter(ink, rng.uniform(0.75, 1)))


def draw_ink(rng: np.random.Generator) -> tuple[int, ...]:
    """White, dark, or any bright colour."""
    kind = rng.random()
    if kind < 0.3:
        return (255, 255, 255)
    value = rng.uniform(0, 0.2) if kind < 0.4 else rng.uniform(0.75, 1)
    return tuple(int(255 * level) for level in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.9), value))


def fainter(ink: Image.Image, opacity: float) -> Image.Image:
    """A mask that lets some of the ground through."""
    return ink.point(lambda level: int(level * opacity))


def photograph(rng: np.random.Generator, page: Image.Image) -> np.ndarray:
    """The page at a patch's size: out of focus, compressed or sharpened, as it may be."""
    if rng.random() < 0.3:
        page = page.filter(ImageFilter.GaussianBlur(FINE * rng.uniform(0, 1.2)))
    patch = page.resize((SIDE, SIDE), Image.Resampling.BOX if rng.random() < 0.5 else Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        file = io.BytesIO()
        patch.save(file, "JPEG", quality=int(rng.integers(50, 96)))
        patch = Image.open(file)
    if rng.random() < 0.35:
        patch = patch.filter(ImageFilter.UnsharpMask(rng.uniform(0.6, 2), int(rng.integers(50, 250)), 0))
    return np.asarray(patch)


def as_levels(values: np.ndarray) -> np.ndarray:
    """Clipped to 0 to 255, uint8."""
    return np.clip(values, 0, 255).astype(np.uint8)


@cache
def font_files() -> list[Path]:
    """Matplotlib's fonts of letters."""
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return sorted(path for name in FONTS for path in folder.glob(f"{name}.ttf") if "Display" not in path.name)


@cache
def load_font(number: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_files()[number], size)


def lettered_cells(ink: Tensor) -> Tensor:
    """Which cells have ink in or beside them: `(B, 64, 64)` uint8 to `(B, 1, 16, 16)` float32 of 0 and 1."""
    share = avg_pool2d(ink[:, None].float() / 255, CELL)
    return (max_pool2d(share, 3, stride=1, padding=1) > IN_CELL).float()


def train(config: LetterTrainingConfig, patches: Tensor, cells: Tensor) -> LetterNet:
    """`(n, 3, 64, 64)` uint8 patches and their cells to a network that tells these from those."""
    torch.manual_seed(config.seed)
    network = LetterNet()
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    with tqdm(range(config.steps), desc="training", unit="step") as bar:
        for _ in bar:
            batch = torch.randint(len(patches), (config.batch_size,))
            loss = binary_cross_entropy_with_logits(network(scaled(patches[batch])), cells[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return network


def main() -> None:
    """Draw, train, write."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    (config,) = HfArgumentParser(LetterTrainingConfig).parse_args_into_dataclasses()
    pictures = generate_pictures(config.seed, config.pictures)
    numbers = tqdm(range(config.patches), desc="patches")
    drawn = [draw_patch(np.random.default_rng([config.seed, number]), pictures) for number in numbers]
    patches, ink = (torch.from_numpy(np.stack(each)) for each in zip(*drawn))
    network = train(config, patches.permute(0, 3, 1, 2), lettered_cells(ink))
    path = Path(config.output_dir, "letters.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.half() for name, weight in network.state_dict().items()}, path)
    logger.info("weights: %s", path)


if __name__ == "__main__":
    main()
