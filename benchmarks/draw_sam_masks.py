"""
A contact sheet of the embedded SAM's masks: each image beside itself with the masks that the preset keeps.

    pip install -e ".[bench]"
    python benchmarks/draw_sam_masks.py --images frame1.jpg frame2.jpg skimage:coffee --output masks.png

Images are cut to their central square. `skimage:name` is one of scikit-image's own photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from polyp_recall import Proposer, filter_areas
from skimage import data

from optidel_hf.checkpoints import EMBEDDED
from optidel_hf.images import centre_square, open_image


SIDE, ACROSS = 160, 4
COLOURS = np.array([(255, 99, 71), (60, 179, 255), (255, 214, 51), (144, 238, 96), (221, 120, 255), (80, 235, 215)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--sam", default=EMBEDDED)
    parser.add_argument("--output", type=Path, default=Path("masks.png"))
    given = parser.parse_args()
    propose = Proposer(given.sam)
    tiles = [draw(square(name), propose) for name in given.images]
    rows = -(-len(tiles) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * 2 * SIDE, rows * SIDE), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % ACROSS * 2 * SIDE, number // ACROSS * SIDE))
    sheet.save(given.output, optimize=True)


def square(name: str) -> Image.Image:
    """The central square of an image."""
    if name.startswith("skimage:"):
        image = Image.fromarray(getattr(data, name.removeprefix("skimage:"))()).convert("RGB")
    else:
        image = open_image(name)
    x, y, side = centre_square(*image.size)
    return image.crop((x, y, x + side, y + side))


def draw(image: Image.Image, propose: Proposer) -> Image.Image:
    """The image, and beside it the image under its masks, the largest at the bottom."""
    plain = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    masks = filter_areas(propose(plain))
    canvas = np.asarray(plain).astype(np.float32)
    for number, index in enumerate(np.argsort(-masks.sum(axis=(1, 2)))):
        mask, colour = masks[index], COLOURS[number % len(COLOURS)]
        canvas[mask] = 0.65 * canvas[mask] + 0.35 * colour
        edge = np.zeros_like(mask)
        edge[1:] |= mask[1:] != mask[:-1]
        edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        canvas[edge] = colour
    tile = Image.new("RGB", (2 * SIDE, SIDE))
    tile.paste(plain, (0, 0))
    tile.paste(Image.fromarray(canvas.astype(np.uint8)), (SIDE, 0))
    ImageDraw.Draw(tile).text((SIDE + 4, 2), f"{len(masks)} masks", fill="white", stroke_width=1, stroke_fill="black")
    return tile


if __name__ == "__main__":
    main()
