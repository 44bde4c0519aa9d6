"""What `optidel` costs as the pool grows, and how near its greedy comes to lazy greedy on the whole objective.

    python benchmarks/bench_selection.py                      # 10^4, 10^5 and 10^6 generated patches, 5 % chosen
    python benchmarks/bench_selection.py --pool OUT/scores    # quality on 10,000 patches of a curation as well

Each size runs in a process of its own, so that its peak memory is its own; that includes the table of columns. Writes
`benchmarks/selection_cpu_[date].md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sklearn

from optidel_hf.curation.selection import select
from optidel_hf.curation.selection.candidates import read_candidates
from optidel_hf.curation.selection.choice import Options
from optidel_hf.curation.selection.clusters import cluster
from optidel_hf.curation.selection.objective import MEMORY, Directions
from optidel_hf.curation.selection.optidel import optidel
from optidel_hf.curation.selection.outliers import cut_outliers
from optidel_hf.curation.selection.select import _Columns


# The plain way is the tests' own.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "curation"))
from lazy_greedy import lazy_greedy


WIDTH, PER_SOURCE, PER_GROUP, SHARE = 384, 10, 40, 0.05
LARGEST = 1_000_000
QUALITY = 10_000
OPTIONS = Options(seed=0, trim=None, keep="far", max_distance=0.9)


def generate(n: int, seed: int = 0) -> pa.Table:
    """
    Columns of `n` patches: ten an image, four images a near-duplicate group.

    Embeddings share one large component, as mean tokens do, and lie about 300 centres with noise of 32 dimensions in
    which patches of a group are alike; how hard a patch is depends on its centre in part.
    """
    rng = np.random.default_rng(seed)
    common, centres, basis = rng.normal(size=WIDTH), rng.normal(size=(300, WIDTH)), rng.normal(size=(32, WIDTH))
    embedding = np.empty((n, WIDTH), dtype=np.float16)
    centre = rng.integers(len(centres), size=n)
    for rows in np.array_split(np.arange(n), n // 50_000 + 1):
        groups, group = np.unique(rows // PER_GROUP, return_inverse=True)
        noise = rng.normal(size=(len(rows), 32)) + rng.normal(size=(len(groups), 32))[group]
        part = common + 0.1 * centres[centre[rows]] + 0.02 * noise @ basis
        embedding[rows] = part / np.linalg.norm(part, axis=1, keepdims=True)
    boxes = np.tile(np.arange(n, dtype=np.float32)[:, None], 4)
    columns = {
        "source": pa.array([f"images/{row // PER_SOURCE:08d}.jpg" for row in range(n)]),
        "group": pa.array([f"video-{row // PER_GROUP:07d}" for row in range(n)]),
        "bbox": pa.FixedSizeListArray.from_arrays(boxes.ravel(), 4),
        "upscale": np.ones(n, dtype=np.float32),
        "difficulty": (rng.normal(size=300)[centre] + rng.normal(size=n)).astype(np.float32),
        "fold": np.zeros(n, dtype=np.int8),
        "embedding": pa.FixedSizeListArray.from_arrays(embedding.ravel(), WIDTH),
    }
    return pa.table(columns)


def measure(n: int) -> dict[str, float]:
    """Seconds of `select` and the process's peak memory in GiB."""
    table = generate(n)
    wall, cpu = time.perf_counter(), time.process_time()
    selection = select(table, SHARE * PER_SOURCE / 4)  # of the images, as mosaics of four
    seconds, processor = time.perf_counter() - wall, time.process_time() - cpu
    assert len(set(selection.rows.tolist())) == round(SHARE * n)
    return {
        "n": n,
        "chosen": len(selection.rows),
        "seconds": seconds,
        "processor_seconds": processor,
        "blocks": selection.facts["blocks"],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def quality(table: pa.Table) -> dict[str, float]:
    """
    F, as a share of lazy greedy's, with all similarities (`whole`), with blocks as small as a million patches would
    have them (`blocks`), and of a random set.
    """
    candidates = read_candidates(_Columns(table), "difficulty", np.ones(len(table), bool), True)
    n, count = len(candidates), round(SHARE * len(candidates))
    pool = cut_outliers(candidates, count, OPTIONS.trim).pool
    z = Directions(candidates.embedding, pool)[np.arange(len(pool))]
    similar, worth = np.maximum(z @ z.T, 0), candidates.hardness[pool]
    place = np.empty(n, dtype=np.int64)
    place[pool] = np.arange(len(pool))
    start = time.perf_counter()
    choices = {"whole": optidel(candidates, count, OPTIONS)}
    seconds = time.perf_counter() - start
    choices["blocks"] = optidel(candidates, count, OPTIONS, memory=MEMORY * n // LARGEST)
    weight = choices["whole"].facts["coverage_weight"]

    def value(rows: np.ndarray) -> float:
        return float(worth[rows].sum() + weight * similar[rows].max(axis=0).sum(dtype=np.float64))

    start = time.perf_counter()
    label = cluster(candidates, count, OPTIONS.seed).label
    codes = [codes[pool] for codes in (candidates.source, candidates.group, label)]
    reference = value(np.array(lazy_greedy(codes, worth, similar, weight, count)))
    shares = {name: value(place[choice.chosen]) / reference for name, choice in choices.items()}
    shares["random"] = value(np.random.default_rng(1).permutation(len(pool))[:count]) / reference
    return {
        "n": n,
        "blocks_of": choices["blocks"].facts["blocks"],
        **shares,
        "seconds": seconds,
        "lazy_seconds": time.perf_counter() - start,
    }


def read_pool(folder: Path) -> pa.Table:
    """10,000 patches of a curation's scores, drawn at random."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("shard-*.parquet"))])
    return table.take(np.sort(np.random.default_rng(0).permutation(len(table))[:QUALITY]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, LARGEST])
    parser.add_argument("--pool", type=Path, help="a curation's scores folder")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        json.dump(measure(arguments.one), sys.stdout)
        return
    load = os.getloadavg()[0]
    rows = []
    for n in arguments.sizes:
        command = [sys.executable, __file__, "--one", str(n)]
        rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        print(json.dumps(rows[-1]), flush=True)
    pools = {"generated": generate(QUALITY)}
    if arguments.pool:
        pools["given"] = read_pool(arguments.pool)
    shares = {}
    for name, table in pools.items():
        shares[name] = quality(table)
        print(name, json.dumps(shares[name]), flush=True)
    path = Path(__file__).parent / f"selection_cpu_{datetime.date.today()}.md"
    path.write_text(report(rows, shares, load), encoding="utf-8")


def report(rows: list[dict[str, float]], shares: dict[str, dict[str, float]], load: float) -> str:
    """The figures as a page."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    lines = [
        "# Selection",
        "",
        f"{name}, {os.cpu_count()} cores ({threads} threads), load {load:.1f} at the start. Python "
        f"{platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}.",
        f"`python benchmarks/bench_selection.py`: strategy `optidel`, {WIDTH}-d float16 embeddings, generated, "
        f"{PER_SOURCE} patches an image and {PER_GROUP} a near-duplicate group, {100 * SHARE:g} % chosen. One run a "
        "size; peak memory is of the whole process, with the table.",
        "",
        "| pool | chosen | seconds | processor seconds | microseconds a patch | blocks | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['n']:,} | {row['chosen']:,} | {row['seconds']:.1f} | {row['processor_seconds']:.1f} | "
            f"{1e6 * row['seconds'] / row['n']:.0f} | {row['blocks']} | {row['peak_gib']:.2f} |"
        )
    lines += [
        "",
        "F as a share of lazy greedy's (same turns, same lambda, all similarities) on 10,000 patches; *blocks* are as "
        "small as in a pool of a million:",
        "",
        "| pool | optidel | optidel in blocks | a random set | seconds, optidel | seconds, lazy greedy |",
        "|---|---|---|---|---|---|",
    ]
    for pool, row in shares.items():
        lines.append(
            f"| {pool} | {100 * row['whole']:.2f} % | {100 * row['blocks']:.2f} % ({row['blocks_of']} blocks) | "
            f"{100 * row['random']:.2f} % | {row['seconds']:.1f} | {row['lazy_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
