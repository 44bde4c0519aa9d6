"""How long near-duplicate groups of a large pool take, beside faiss and scipy.

    pip install faiss-cpu
    python benchmarks/bench_near_duplicates.py

Prints seconds and million pairs a second, and writes `benchmarks/near_duplicates_cpu_[date].md`. Hashes are drawn: a
fifth of the pool is ten copies of an image with up to 12 bits changed, the rest is alone. All find the same groups.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import scipy
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from timings import processor

from optidel_hf.curation.near_duplicates import NEAR, near_duplicate_components


COPIES, COPIED = 10, 0.2
SCIPY_ROWS = 512


def draw_hashes(n: int, seed: int = 0) -> np.ndarray:
    """Hashes `(n, 4)` uint64 of a pool in which some images have near copies, in any order."""
    rng = np.random.default_rng(seed)
    copied = int(n * COPIED) // COPIES
    images = rng.integers(0, 2**64, (n - copied * (COPIES - 1), 4), dtype=np.uint64)
    hashes = np.concatenate([images, np.repeat(images[:copied], COPIES - 1, axis=0)])
    for _ in range(12):
        bit = rng.integers(256, size=n)
        hashes[np.arange(n), bit // 64] ^= np.uint64(1) << (bit % 64).astype(np.uint64)
    return rng.permutation(hashes)


def by_faiss(hashes: np.ndarray) -> np.ndarray:
    """Groups by a range search in an exact binary index."""
    codes = hashes.view(np.uint8)
    index = faiss.IndexBinaryFlat(256)
    index.add(codes)
    limits, _, found = index.range_search(codes, NEAR + 1)  # faiss: below
    return _groups(np.repeat(np.arange(len(hashes)), np.diff(limits).astype(np.int64)), found, len(hashes))


def by_scipy(hashes: np.ndarray) -> np.ndarray:
    """Groups by `cdist`, some rows at a time."""
    bits = np.unpackbits(hashes.view(np.uint8), axis=1).astype(bool)
    pairs = []
    for start in range(0, len(bits), SCIPY_ROWS):
        row, column = np.nonzero(cdist(bits[start : start + SCIPY_ROWS], bits, "hamming") * 256 <= NEAR + 0.5)
        pairs.append((row + start, column))
    return _groups(*np.concatenate(pairs, axis=1), len(hashes))


def _groups(left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels, return_index=True)[1][labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--scipy_up_to", type=int, default=10_000)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    arguments = parser.parse_args()
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "optidel_hf": near_duplicate_components,
        f"faiss {faiss.__version__}, IndexBinaryFlat": by_faiss,
        f"scipy {scipy.__version__}, cdist": by_scipy,
    }
    load, rows = os.getloadavg()[0], []
    for n in arguments.sizes:
        hashes = draw_hashes(n)
        groups = near_duplicate_components(hashes)
        for name, way in ways.items():
            if way is by_scipy and n > arguments.scipy_up_to:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            assert np.array_equal(way(hashes), groups), name
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            rows.append(f"| {n:,} | {name} | {wall:.1f} | {cpu:.1f} | {n * (n - 1) / 2 / cpu / 1e6:.0f} |")
            print(rows[-1], flush=True)
    lines = [
        "# Near-duplicate groups",
        "",
        f"{processor()}, {os.cpu_count()} cores, load {load:.1f} at the start. Python {platform.python_version()}, "
        f"numpy {np.__version__}.",
        "`python benchmarks/bench_near_duplicates.py`: 256-bit hashes, a fifth of them in groups of ten.",
        "All found the same groups.",
        "",
        "| images | | seconds | processor seconds | million pairs a processor second |",
        "|---:|---|---:|---:|---:|",
        *rows,
    ]
    Path(__file__).with_name(f"near_duplicates_cpu_{arguments.date}.md").write_text(
        "\n".join(lines) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
