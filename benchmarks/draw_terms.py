"""
A contact sheet of what each term of `optidel` buys, on the patches of a finished curation, from columns and images.

    optidel score --dataset frames --output_dir out
    python benchmarks/draw_terms.py --curation_dir out --budget 0.05 --output terms.png

One row a rule: the patches that it chooses first, and of all that it chooses the source images and near-duplicate
groups, the mean hardness rank, the mean cosine distance from the pool to the nearest of them (about the pool's mean),
and how many the outlier cut would refuse, which are framed in red. Patches with burned-in text are drawn illegibly: it
may be a patient's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from optidel_hf.curation.selection import mosaics_in_budget
from optidel_hf.curation.selection.candidates import LEARNABILITY, NUISANCES, Candidates, read_candidates
from optidel_hf.curation.selection.choice import Options
from optidel_hf.curation.selection.objective import MEMORY, Directions, Objective, equal_weight, make_blocks
from optidel_hf.curation.selection.optidel import Turns, deal, optidel
from optidel_hf.curation.selection.outliers import LEAST, cut_outliers
from optidel_hf.curation.selection.select import _Columns, _eligible
from optidel_hf.curation.selection.uniform import random
from optidel_hf.curation.shards import existing_shards, read_columns, read_rows
from optidel_hf.images import open_image


SIDE, GAP, HEAD, PIXELATED = 72, 4, 24, 9
INK, PAPER, REFUSED = (30, 32, 38), (250, 250, 248), (200, 64, 28)
TILES = 4
OPTIONS = Options(seed=0, trim=None, keep="far", max_distance=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curation_dir", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--across", type=int, default=16, help="patches drawn of each rule")
    parser.add_argument("--credit", default="", help="a line below the rows: whose images these are")
    parser.add_argument("--output", type=Path, default=Path("terms.png"))
    given = parser.parse_args()
    pool = read_pool(given.curation_dir)
    count = TILES * mosaics_in_budget(given.budget, int(pool.source.max()) + 1)
    refused = cut_outliers(pool, 0, None).reasons != ""
    rows = {name: choose(pool, count) for name, choose in RULES.items()}
    for name, chosen in rows.items():
        print(f"{name}: {describe(pool, chosen, refused)}")
    picture = draw(given.curation_dir, pool, rows, refused, given.across, given.credit)
    picture.save(given.output, optimize=True, quality=88)


def read_pool(curation_dir: Path) -> Candidates:
    """The candidates that `optidel` sees by default."""
    folder = curation_dir / "scores"
    known = pq.read_schema(existing_shards(folder)[0]).names
    needed = ["source", "group", "bbox", "upscale", "difficulty", "fold", "embedding"]
    cut_by = (*NUISANCES, LEARNABILITY, "recon_error")
    columns = _Columns(read_columns(folder, needed + [name for name in cut_by if name in known]))
    return read_candidates(columns, "difficulty", _eligible(columns["upscale"], 2.0), True)


def uncapped(pool: Candidates, rows: np.ndarray, count: int, hard: float) -> np.ndarray:
    """Greedy on hardness, `hard` times, and coverage, over some rows, whatever their sources, groups and clusters."""
    assert pool.embedding is not None
    directions, worth = Directions(pool.embedding, rows), pool.hardness[rows]
    weight = equal_weight(worth, directions, count, OPTIONS.seed)
    blocks = make_blocks(directions, np.zeros(len(rows), dtype=np.int64), MEMORY)
    free = Turns(np.arange(len(rows)), np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64))
    return rows[deal(free, Objective(hard * worth, directions, weight, blocks), count)[0]]


def left(pool: Candidates, count: int) -> np.ndarray:
    """What the outlier cut leaves, hardest first."""
    return cut_outliers(pool, count, None).pool


RULES: dict[str, Callable[[Candidates, int], np.ndarray]] = {
    "random patches": lambda pool, count: random(pool, count, OPTIONS).chosen,
    "hardness alone": lambda pool, count: cut_outliers(pool, count, 0.0).pool[:count],
    "hardness, outliers cut": lambda pool, count: left(pool, count)[:count],
    "coverage alone": lambda pool, count: uncapped(pool, left(pool, count), count, 0.0),
    "hardness and coverage, outliers cut": lambda pool, count: uncapped(pool, left(pool, count), count, 1.0),
    "optidel without the outlier cut": lambda pool, count: optidel(pool, count, replace(OPTIONS, trim=0.0)).chosen,
    "optidel: both, cut, and capped by source, group and cluster": lambda pool, count: (
        optidel(pool, count, OPTIONS).chosen
    ),
    "optidel with the log-determinant for coverage": lambda pool, count: (
        optidel(pool, count, replace(OPTIONS, diversity="logdet")).chosen
    ),
}


def describe(pool: Candidates, chosen: np.ndarray, refused: np.ndarray) -> str:
    """A set's figures in one line."""
    assert pool.embedding is not None
    directions = Directions(pool.embedding, np.arange(len(pool)))
    nearest = (directions[np.arange(len(pool))] @ directions[chosen].T).max(axis=1)
    sources, groups = (len(np.unique(codes[chosen])) for codes in (pool.source, pool.group))
    return (
        f"{len(chosen)} patches of {sources} images, {groups} groups; hardness {pool.hardness[chosen].mean():.2f}, "
        f"distance {1 - nearest.mean():.3f}, outliers {int(refused[chosen].sum())}"
    )


def draw(
    curation_dir: Path, pool: Candidates, rows: dict[str, np.ndarray], refused: np.ndarray, across: int, credit: str
) -> Image.Image:
    """One row a rule, its first patches; a red frame marks what the outlier cut refuses."""
    height = HEAD + SIDE + 2 * GAP
    picture = Image.new("RGB", (across * (SIDE + GAP) + GAP, len(rows) * height + HEAD * bool(credit)), PAPER)
    text = pool.nuisances.get("text", np.zeros(len(pool)))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for number, (name, chosen) in enumerate(rows.items()):
        pen.text((GAP, number * height + 5), f"{name}: {describe(pool, chosen, refused)}", INK, font)
        for place, row in enumerate(chosen[:across]):
            value = read_rows(curation_dir / "patches", [int(pool.rows[row])])["image"][0].as_py()
            at = GAP + place * (SIDE + GAP), number * height + HEAD
            image = open_image(value)
            if text[row] > LEAST["text"]:
                image = image.resize((PIXELATED, PIXELATED))
            picture.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), at)
            if refused[row]:
                pen.rectangle((at[0], at[1], at[0] + SIDE - 1, at[1] + SIDE - 1), outline=REFUSED, width=3)
    pen.text((GAP, len(rows) * height + 5), credit, INK, font)
    return picture


if __name__ == "__main__":
    main()
