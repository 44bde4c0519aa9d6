"""
What do arms take from pools in which junk and redundancy are known, and where does selection pay?

    OMP_NUM_THREADS=1 python benchmarks/testbed_grid.py --selection_only
    python benchmarks/testbed_grid.py --arms none full random_images optidel oracle --frames 2000
    python benchmarks/testbed_grid.py --pool runs/polypgen-semi-synthetic --output_dir runs/semi-synthetic

Nine pools of the embedded generator, near copies 1, 5 and 20 by junk 0, 20 and 50 %, or one that `optidel testbed` has
written (`--pool FOLDER`). On each a grid is run as `optidel reproduce` runs it, with its flags, and with the training
of `recipes/configs/sample.yaml` unless `--config` names another file; the embedded sample's downstream set judges, or
`--downstream`. `--selection_only` builds the arms and pre-trains nothing. A killed run goes on where it was;
`accelerate launch` shares out the cutting of a pool, and its cells.

    OUT/pools/redundancy-5-junk-0.2/    the testbed; its latents are read once the arms are made
    OUT/grids/redundancy-5-junk-0.2/    its grid, with a results.md of its own
    OUT/testbed_grid.md, .parquet, testbed_map.png    all pools, written after each
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from optidel_hf.arguments import parse
from optidel_hf.commands import sample_pool
from optidel_hf.curation.shards import read_columns
from optidel_hf.devices import hardware, resolve_device
from optidel_hf.errors import UserError
from optidel_hf.evidence.arm_data import build_arm
from optidel_hf.evidence.config import FLAGS, Experiment, make_experiment
from optidel_hf.evidence.grid import Grid
from optidel_hf.evidence.pool import cut, lock
from optidel_hf.evidence.testbed_results import Chosen, JudgedPool, write_testbed_results
from optidel_hf.evidence.worth import Worth, judge, judge_curated
from optidel_hf.flags import EMBEDDED, SAMPLE_DIR
from optidel_hf.processes import share_cores
from optidel_hf.sample.testbed import KnownPool, TestbedConfig, open_testbed, write_testbed


TRAINING = Path(__file__).parents[1] / "recipes" / "configs" / "sample.yaml"
DEFAULTS = ["--config", str(TRAINING), "--output_dir", "runs/testbed_grid"]


@dataclass(frozen=True)
class PoolsConfig:
    """Which pools are generated; every other flag is one of `optidel reproduce`."""

    frames: int = field(default=600, metadata={"help": "Frames in every generated pool."})
    redundancies: list[int] = field(default_factory=lambda: [1, 5, 20], metadata={"help": "Near copies of a scene."})
    junk: list[float] = field(default_factory=lambda: [0.0, 0.2, 0.5], metadata={"help": "Shares of junk."})
    selection_only: bool = field(default=False, metadata={"help": "Build and judge the arms; pre-train nothing."})


def main(arguments: Sequence[str]) -> None:
    share_cores()
    summary = __doc__.strip().splitlines()[0]
    asked, *flags = parse((PoolsConfig, *FLAGS), [*DEFAULTS, *arguments], "testbed_grid.py", summary)
    experiment = make_experiment(*flags)
    if experiment.grid.final:
        raise UserError("--final: a testbed's grid is read off the validation part alone.")
    if experiment.grid.downstream == EMBEDDED:
        sample_pool()  # writes the whole sample where it is not there yet
        experiment = with_grid(experiment, downstream=str(SAMPLE_DIR / "downstream"))
    preface = introduction(experiment, arguments)
    judged: list[JudgedPool] = []
    for pool in find_pools(asked, experiment):
        started = time.monotonic()
        grid = Grid(on_pool(experiment, pool))
        if asked.selection_only:
            grid.cut_pool()
        results = None if asked.selection_only else grid.run()
        if grid.rank == 0:
            judged.append(judge_pool(pool, grid, results))
            write_testbed_results(judged, experiment.output, preface)
            print(f"{pool.folder.name}: {time.monotonic() - started:.0f} s", flush=True)


def introduction(experiment: Experiment, arguments: Sequence[str]) -> str:
    """Command and machine."""
    machine = f"{hardware(resolve_device(experiment.grid.device))}, load {os.getloadavg()[0]:.1f} at the start"
    return f"`python benchmarks/testbed_grid.py {shlex.join(arguments)}` on {machine}."


def find_pools(asked: PoolsConfig, experiment: Experiment) -> Iterator[KnownPool]:
    """The pool that was given, or the generated ones, each written when its turn comes."""
    if experiment.grid.pool != EMBEDDED:
        yield open_testbed(experiment.grid.pool)
        return
    for redundancy, junk in itertools.product(asked.redundancies, asked.junk):
        folder = experiment.output / "pools" / f"redundancy-{redundancy}-junk-{junk:g}"
        with lock(folder):
            write_testbed(TestbedConfig(str(folder), frames=asked.frames, redundancy=redundancy, junk=junk))
        yield open_testbed(folder)


def on_pool(experiment: Experiment, pool: KnownPool) -> Experiment:
    """The experiment with a pool's images, in a folder of its own."""
    grid, name = experiment.grid, pool.folder.resolve().name
    return with_grid(
        experiment,
        pool=str(pool.images),
        output_dir=str(experiment.output / "grids" / name),
        curation_dir=str(Path(grid.curation_dir, name)) if grid.curation_dir else None,
        merge=[str(Path(folder, "grids", name)) for folder in grid.merge],
    )


def with_grid(experiment: Experiment, **changes: Any) -> Experiment:
    return replace(experiment, grid=replace(experiment.grid, **changes))


def judge_pool(pool: KnownPool, grid: Grid, results: Path | None) -> JudgedPool:
    """What every arm took, which is built here where the grid has not, and the grid's rows."""
    source, worth = grid.experiment.pool(), dict[Chosen, list[Worth]]()
    for arm, budget, seed in ((cell.arm, cell.budget, cell.seed) for cell in grid.cells):
        data = build_arm(arm, budget, seed, source, label_images=grid.candidates.images)
        if data.dataset:
            worth.setdefault((arm, budget), []).append(judge_curated(data.dataset, pool.latents))
    patches = read_columns(cut(source, "patch").folder / "patches", ["source"])["source"].to_pylist()
    key_patches = judge(patches, pq.read_table(pool.latents))
    return JudgedPool(pool, key_patches, worth, pq.read_table(results) if results else None)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"testbed_grid.py: {error}")
