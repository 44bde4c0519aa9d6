"""What finding letters by a network changes on a testbed: patches found by kind of junk, and what `optidel` takes.

    python benchmarks/letters_on_testbed.py --curation RUN/grids/POOL/curation --latents POOL/latents.parquet

`--curation` is what `testbed_grid.py` leaves behind, scored: its column `text` may be of an earlier commit. The column
is measured anew on the stored patches, and `optidel`, with and without hardness, chooses 5 % by both. Latents are read
when all is chosen. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from optidel_hf.curation.nuisance import nuisances
from optidel_hf.curation.selection import mosaics_in_budget, select
from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.curation.shards import read_columns
from optidel_hf.evidence.worth import Worth, judge
from optidel_hf.images import open_image
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_schema, read_table
from optidel_hf.processes import share_cores


BUDGET, TILES = 0.05, 4
RULES = {"optidel": 1.0, "without hardness": 0.0}
ROWS = 256  # patches measured at once


def measure_text(folder: Path) -> np.ndarray:
    """The column `text` of all stored patches, in their order, float32."""
    found = []
    for path in tqdm(existing_shards(folder), desc="shards"):
        images = read_table(path, ["image"])["image"].to_pylist()
        for start in range(0, len(images), ROWS):
            pixels = np.stack([np.asarray(open_image(image)) for image in images[start : start + ROWS]])
            found.append(nuisances(torch.from_numpy(pixels))["text"].numpy())
    return np.concatenate(found)


def choose(table: pa.Table, usable: int, hardness_weight: float) -> list[str]:
    """The sources of the tiles that `optidel` takes, by seed 0."""
    budget = mosaics_in_budget(BUDGET, usable) / usable
    options = {"strategy": "optidel", "seed": 0, "tiles_per_mosaic": TILES, "hardness_weight": hardness_weight}
    return table["source"].take(select(table, budget=budget, images=usable, **options).rows).to_pylist()


def found_by_kind(table: pa.Table, columns: dict[str, np.ndarray], latents: pa.Table) -> list[str]:
    """Rows of the table of shares."""
    junk = dict(zip(latents["source"].to_pylist(), latents["junk"].to_pylist()))
    kinds = np.array([junk[source] or "none" for source in table["source"].to_pylist()])
    rows = ["| junk | patches | " + " | ".join(columns) + " |", "|---|---:|" + "---:|" * len(columns)]
    for kind in sorted(set(kinds)):
        of = kinds == kind
        shares = [f"{100 * (values[of] > LEAST['text']).mean():.1f} %" for values in columns.values()]
        rows.append(f"| {kind} | {of.sum():,} | {' | '.join(shares)} |")
    return rows


def worth_row(name: str, worth: Worth) -> str:
    """A row of the table of selections."""
    kinds = ", ".join(f"{kind} {count}" for kind, count in worth.kinds.items())
    scenes = f"{worth.scenes[0]:,} of {worth.scenes[1]:,}"
    return f"| {name} | {worth.tiles:,} | {100 * worth.junk_share:.1f} % | {kinds} | {scenes} |"


def main() -> None:
    share_cores()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curation", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="whose scores")
    arguments = parser.parse_args()
    scored = arguments.curation / f"seed-{arguments.seed:04d}" / "patch" / "scores"
    names = [name for name in read_schema(existing_shards(scored)[0]).names if name != "image"]
    table = read_columns(scored, names)
    usable = read_columns(arguments.curation / "image" / "patches", ["source"]).num_rows
    columns = {"as scored": table["text"].to_numpy(), "now": measure_text(scored.with_name("patches"))}
    place = names.index("text")
    tables = {name: table.set_column(place, "text", pa.array(values)) for name, values in columns.items()}
    chosen = {
        f"{rule}, {name}": choose(tables[name], usable, weight) for rule, weight in RULES.items() for name in tables
    }
    latents = read_table(arguments.latents)
    print(f"Share of key patches with `text` above {LEAST['text']}, by the junk that their frame is:\n")
    print("\n".join(found_by_kind(table, columns, latents)))
    print("\n| arm, 5 % | tiles | junk | kinds of junk | scenes |\n|---|---:|---:|---|---:|")
    for name, sources in chosen.items():
        print(worth_row(name, judge(sources, latents)))


if __name__ == "__main__":
    main()
