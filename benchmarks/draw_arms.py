"""
A contact sheet of what arms of a grid are pre-trained on: one row an arm, its first images.

    python benchmarks/draw_arms.py --curation_dir runs/polypgen_kvasir/curation --output arms.jpg

Tiles with burned-in text are drawn illegibly: it may be a patient's. Whole images are drawn too small to be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.curation.shards import read_columns, read_rows
from optidel_hf.evidence.arms import ARMS
from optidel_hf.images import open_image
from optidel_hf.layout import existing_shards


SIDE, GAP, HEAD, PIXELATED = 72, 4, 24, 5
INK, PAPER = (30, 32, 38), (250, 250, 248)
SHOWN = ["random_images", "image_mosaics", "random_patch_mosaics", "hardest", "optidel"]
Tile = tuple[str, tuple[int, ...]]
"""Source image and crop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curation_dir", type=Path, required=True, help="a grid's, with arms/ and seed-0000/")
    parser.add_argument("--arms", nargs="+", default=SHOWN)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--across", type=int, default=14, help="images drawn of each arm")
    parser.add_argument("--credit", default="", help="a line below the rows: whose images these are")
    parser.add_argument("--output", type=Path, default=Path("arms.jpg"))
    given = parser.parse_args()
    scores = given.curation_dir / f"seed-{given.seed:04d}" / "patch" / "scores"
    lettered = find_text(scores) if existing_shards(scores) else set()
    rows = [
        (arm, read_first(given.curation_dir / "arms" / f"{arm}_{given.budget:g}_{given.seed:04d}", given.across))
        for arm in given.arms
    ]
    draw(rows, lettered, given.credit).save(given.output, optimize=True, quality=88)


def find_text(scores: Path) -> set[Tile]:
    """The key patches that show burned-in text."""
    table = read_columns(scores, ["source", "crop", "text"]).to_pylist()
    return {(row["source"], tuple(row["crop"])) for row in table if row["text"] > LEAST["text"]}


def read_first(arm: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of an arm's images, with the lineage of their tiles."""
    total = read_columns(arm / "curated", ["tiles"]).num_rows
    return read_rows(arm / "curated", list(range(min(count, total)))).to_pylist()


def draw(arms: list[tuple[str, list[dict[str, Any]]]], lettered: set[Tile], credit: str) -> Image.Image:
    """One row an arm under its name and question."""
    height, across = HEAD + SIDE + 2 * GAP, max(len(images) for _, images in arms)
    picture = Image.new("RGB", (across * (SIDE + GAP) + GAP, len(arms) * height + HEAD * bool(credit)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, (name, images) in enumerate(arms):
        pen.text((GAP, number * height + 5), f"{name}: {ARMS[name].question}".replace("`", ""), INK, font)
        for place, row in enumerate(images):
            at = GAP + place * (SIDE + GAP), number * height + HEAD
            picture.paste(without_text(row, lettered).resize((SIDE, SIDE), Image.Resampling.LANCZOS), at)
    pen.text((GAP, len(arms) * height + 5), credit, INK, font)
    return picture


def without_text(row: dict[str, Any], lettered: set[Tile]) -> Image.Image:
    """An image, the tiles that show text made coarse."""
    image, tiles = open_image(row["image"]), row["tiles"]
    across = round(len(tiles) ** 0.5)
    side = image.width // across
    for slot, tile in enumerate(tiles):
        if (tile["source"], tuple(tile["crop"])) in lettered:
            y, x = divmod(slot, across)
            box = (x * side, y * side, (x + 1) * side, (y + 1) * side)
            image.paste(
                image.crop(box).resize((PIXELATED, PIXELATED)).resize((side, side), Image.Resampling.NEAREST), box
            )
    return image


if __name__ == "__main__":
    main()
