"""
Draw the README's picture from a finished curation: source images with their key patches, and the mosaics made of them.

    python benchmarks/draw_overview.py --curation_dir runs/demo/optidel --source runs/demo/sample/pool/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from optidel_hf.curation.shards import read_columns
from optidel_hf.images import open_image
from optidel_hf.layout import existing_shards


SIDE, GAP, HEAD = 150, 8, 34
CHOSEN, KEPT = (255, 210, 60), (120, 220, 255)
INK, PAPER = (30, 32, 38), (250, 250, 248)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curation_dir", type=Path, default=Path("runs/demo/optidel"))
    parser.add_argument("--source", type=Path, default=Path("runs/demo/sample/pool/images"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/overview.png"))
    parser.add_argument("--mosaics", type=int, default=3)
    given = parser.parse_args()
    draw(given.curation_dir, given.source, given.mosaics).save(given.output, optimize=True)


def draw(curation_dir: Path, source: Path, mosaics: int) -> Image.Image:
    """One row a mosaic: its four source images with all key patches (thin) and the chosen one (thick), then itself."""
    chosen = pq.read_table(curation_dir / "selection.parquet").to_pylist()
    patches = read_columns(curation_dir / "patches", ["source", "crop"]).to_pylist()
    curated = [row for path in existing_shards(curation_dir / "curated") for row in pq.read_table(path).to_pylist()]
    width, row_height = 5 * (SIDE + GAP) + 2 * GAP + 30, SIDE + GAP
    picture = Image.new("RGB", (width, HEAD + mosaics * row_height), PAPER)
    write(picture, "source images, key patches cut by SAM, the chosen one in yellow", GAP)
    write(picture, "curated image", 4 * (SIDE + GAP) + 38)
    for number in range(mosaics):
        top = HEAD + number * row_height
        tiles = sorted((row for row in chosen if row["mosaic"] == number), key=lambda row: row["slot"])
        for slot, tile in enumerate(tiles):
            crops = [row["crop"] for row in patches if row["source"] == tile["source"]]
            picture.paste(boxed(source / tile["source"], crops, tile["crop"]), (GAP + slot * (SIDE + GAP), top))
        arrow(picture, 4 * (SIDE + GAP) + GAP, top + SIDE // 2)
        mosaic = open_image(curated[number]["image"]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        picture.paste(mosaic, (4 * (SIDE + GAP) + GAP + 30, top))
    return picture


def boxed(path: Path, crops: list[list[int]], chosen: list[int]) -> Image.Image:
    """A source image, squared and enlarged, with the squares that were cut."""
    image = open_image(path)
    scale = SIDE / max(image.size)
    canvas = Image.new("RGB", (SIDE, SIDE), PAPER)
    canvas.paste(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS))
    pen = ImageDraw.Draw(canvas)
    for crop in [crop for crop in crops if crop != chosen]:
        pen.rectangle(corners(crop, scale), outline=KEPT, width=1)
    pen.rectangle(corners(chosen, scale), outline=CHOSEN, width=3)
    return canvas


def corners(crop: list[int], scale: float) -> tuple[float, float, float, float]:
    x, y, side = (value * scale for value in crop)
    return x, y, min(x + side, SIDE - 1), min(y + side, SIDE - 1)


def arrow(picture: Image.Image, x: int, y: int) -> None:
    pen = ImageDraw.Draw(picture)
    pen.line((x, y, x + 20, y), fill=INK, width=2)
    pen.polygon([(x + 20, y - 5), (x + 27, y), (x + 20, y + 5)], fill=INK)


def write(picture: Image.Image, text: str, x: int) -> None:
    ImageDraw.Draw(picture).text((x, 10), text, fill=INK, font=ImageFont.load_default(14))


if __name__ == "__main__":
    main()
