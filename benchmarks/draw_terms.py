"""
A contact sheet of what each term of `optidel` buys, on the patches of a finished curation, from columns and images.

    optidel score --dataset frames --output_dir out
    python benchmarks/draw_terms.py --curation_dir out --budget 0.05 --output terms.png

One row a rule: the patches that it chooses first, and of all that it chooses the source images and near-duplicate
groups, the mean hardness rank, the mean cosine distance from the pool to the nearest of them (about the pool's mean),
and how many the outlier cut would refuse, which are framed in red. Patches with burned-in text are drawn illegibly: it
may be a patient's. The report has the same as a panel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from optidel_hf.curation.comparison import Compared, compare
from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.curation.shards import read_columns, read_rows
from optidel_hf.images import open_image
from optidel_hf.layout import existing_shards


SIDE, GAP, HEAD, PIXELATED = 72, 4, 24, 9
INK, PAPER, REFUSED = (30, 32, 38), (250, 250, 248), (200, 64, 28)
TILES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curation_dir", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--across", type=int, default=16, help="patches drawn of each rule")
    parser.add_argument("--credit", default="", help="a line below the rows: whose images these are")
    parser.add_argument("--output", type=Path, default=Path("terms.png"))
    given = parser.parse_args()
    rules = [rule for rule in compare(given.curation_dir, given.budget, TILES) if rule.term or rule.name == "random"]
    for rule in rules:
        print(describe(rule))
    picture = draw(given.curation_dir, rules, given.across, given.credit)
    picture.save(given.output, optimize=True, quality=88)


def describe(rule: Compared) -> str:
    """A set's figures in one line."""
    return (
        f"{rule.name}: {len(rule.rows)} patches of {rule.sources} images, {rule.groups} groups; hardness "
        f"{rule.hardness:.2f}, distance {rule.distance:.3f}, outliers {int(rule.refused.sum())}"
    )


def draw(curation_dir: Path, rules: list[Compared], across: int, credit: str) -> Image.Image:
    """One row a rule, its first patches; a red frame marks what the outlier cut refuses."""
    height, text = HEAD + SIDE + 2 * GAP, read_text(curation_dir)
    picture = Image.new("RGB", (across * (SIDE + GAP) + GAP, len(rules) * height + HEAD * bool(credit)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, rule in enumerate(rules):
        pen.text((GAP, number * height + 5), describe(rule), INK, font)
        for place, (row, refused) in enumerate(zip(rule.rows[:across], rule.refused)):
            value = read_rows(curation_dir / "patches", [int(row)])["image"][0].as_py()
            at = GAP + place * (SIDE + GAP), number * height + HEAD
            image = open_image(value)
            if text is not None and text[row] > LEAST["text"]:
                image = image.resize((PIXELATED, PIXELATED))
            picture.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), at)
            if refused:
                pen.rectangle((at[0], at[1], at[0] + SIDE - 1, at[1] + SIDE - 1), outline=REFUSED, width=3)
    pen.text((GAP, len(rules) * height + 5), credit, INK, font)
    return picture


def read_text(curation_dir: Path) -> np.ndarray | None:
    """How surely each patch shows burned-in text; `None` where that was not scored."""
    folder = curation_dir / "scores"
    if "text" not in pq.read_schema(existing_shards(folder)[0]).names:
        return None
    return read_columns(folder, ["text"])["text"].to_numpy()


if __name__ == "__main__":
    main()
