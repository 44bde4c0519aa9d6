"""
What does each strategy take from pools in which junk and redundancy are known? No pre-training.

    OMP_NUM_THREADS=2 python benchmarks/testbed_selection.py --output_dir runs/testbeds

Nine pools of the embedded generator, redundancy 1, 5 and 20 by junk 0, 20 and 50 %, are curated with coarse settings
(the demo's); strategies share their key patches and scores. Prints Markdown, and writes it after every pool as
`testbed_selection.md` beside them; a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

import pyarrow.parquet as pq

from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import CurationConfig, curate
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns, write_text
from optidel_hf.demo import QUICK
from optidel_hf.devices import hardware, resolve_device
from optidel_hf.evidence.worth import Worth, judge, judge_curation
from optidel_hf.sample.testbed import LATENTS, TestbedConfig, write_testbed


REDUNDANCIES, JUNK = (1, 5, 20), (0.0, 0.2, 0.5)
KEY_PATCHES = "(all key patches)"
HEADER = [
    "| near copies | junk in the pool | strategy | tiles | junk | kinds of junk | scenes | scene types | rare types |",
    "|---|---|---|---|---|---|---|---|---|",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/testbeds"))
    parser.add_argument("--frames", type=int, default=600, help="frames in every pool")
    parser.add_argument("--budget", type=float, default=0.05)
    parser.add_argument("--strategies", nargs="+", default=["optidel", "hardest", "random"])
    parser.add_argument("--seed", type=int, default=0, help="of pools, reference models and selections")
    given = parser.parse_args()
    lines = [*introduction(given), *HEADER]
    for redundancy, junk in itertools.product(REDUNDANCIES, JUNK):
        folder = given.output_dir / f"redundancy-{redundancy}-junk-{junk:g}"
        sizes = {"frames": given.frames, "redundancy": redundancy, "junk": junk, "seed": given.seed}
        config = TestbedConfig(str(folder), **sizes)
        started = time.monotonic()
        for strategy, worth in judge_pool(config, given.strategies, given.budget):
            lines.append(as_row(redundancy, strategy, worth))
        print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
        write_text("\n".join(lines) + "\n", given.output_dir / "testbed_selection.md")
    print("\n".join(lines))


def introduction(given: argparse.Namespace) -> list[str]:
    flags = f"--frames {given.frames} --budget {given.budget} --seed {given.seed}"
    return [
        "# What a selection takes from pools where it is known",
        "",
        f"`python benchmarks/testbed_selection.py {flags}`",
        f"on {hardware(resolve_device())}, load {os.getloadavg()[0]:.1f} at the start.",
        "Junk is the share of tiles cut from a junk frame; scenes and types count usable tiles only, of those in the",
        "pool; rare types are the rarest half. One pool a row: among n random tiles junk's share q has a standard",
        "error of sqrt(q (1 - q) / n), or more, since a frame gives several tiles.",
        "",
    ]


def judge_pool(config: TestbedConfig, strategies: list[str], budget: float) -> list[tuple[str, Worth]]:
    """Every strategy's worth on one pool, after that of all its key patches, what strategies choose from."""
    pool, folder = write_testbed(config), Path(config.output_dir)
    judged, first = [], folder / strategies[0]
    for strategy in strategies:
        output = folder / strategy
        curate(
            CurationConfig(
                InputConfig(dataset=str(pool)),
                str(output),
                patches=PatchConfig(points_per_side=QUICK["points_per_side"], max_patches=QUICK["max_patches"]),
                reference=ReferenceConfig(reference_steps=QUICK["reference_steps"], reference_seed=config.seed),
                selection=SelectionConfig(budget=budget, strategy=strategy, seed=config.seed),
                reuse=None if output == first else str(first),
            )
        )
        judged.append((strategy, judge_curation(output, folder / LATENTS)))
    sources = read_columns(first / "patches", ["source"])["source"].to_pylist()
    return [(KEY_PATCHES, judge(sources, pq.read_table(folder / LATENTS))), *judged]


def as_row(redundancy: int, strategy: str, worth: Worth) -> str:
    kinds = ", ".join(f"{kind} {count}" for kind, count in worth.kinds.items()) or "none"
    covered = [f"{count} of {whole}" for count, whole in (worth.scenes, worth.scene_types, worth.tail_types)]
    shares = f"{100 * worth.pool_junk:.0f} % | {strategy} | {worth.tiles} | {100 * worth.junk_share:.1f} %"
    return f"| {redundancy} | {shares} | {kinds} | {' | '.join(covered)} |"


if __name__ == "__main__":
    main()
