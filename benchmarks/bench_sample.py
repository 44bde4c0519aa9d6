"""How fast the sample's frames are generated on one core.

    OMP_NUM_THREADS=1 python benchmarks/bench_sample.py

Prints frames a second and writes `benchmarks/sample_cpu_[date].md`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from pathlib import Path

import numpy as np
import scipy
from timings import processor

from optidel_hf.sample import FrameConfig, generate_sequence


CASES = {
    "pool (20 frames a sequence, 128 px)": (FrameConfig(), 10),
    "downstream (4 frames a sequence, 128 px)": (FrameConfig(frames_per_sequence=4, stride=5, polyp_rate=0.9), 12),
    "pool, 64 px": (FrameConfig(image_size=64), 10),
}


def measure(config: FrameConfig, sequences: int, repeats: int) -> list[tuple[float, float]]:
    """Milliseconds a frame, by the wall clock and of processor time, once a repeat."""
    figures = []
    for repeat in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        for sequence in range(sequences):
            generate_sequence(repeat, sequence, config)
        scale = 1000 / (sequences * config.frames_per_sequence)
        figures.append(((time.perf_counter() - wall) * scale, (time.process_time() - cpu) * scale))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    arguments = parser.parse_args()
    lines = [
        "# Generating the sample's frames",
        "",
        f"{processor()}, one core of {os.cpu_count()}, load {os.getloadavg()[0]:.1f} at the start. "
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}.",
        "`OMP_NUM_THREADS=1 python benchmarks/bench_sample.py`;",
        f"median of {arguments.repeats} (lowest to highest). Drawing each sequence's scene is included.",
        "On a loaded machine the wall clock also counts the others' work.",
        "",
        "| case | processor ms/frame | wall ms/frame | frames/s (wall) |",
        "|---|---|---|---|",
    ]
    for name, (config, sequences) in CASES.items():
        wall, cpu = np.array(measure(config, sequences, arguments.repeats)).T
        row = [f"{np.median(x):.1f} ({x.min():.1f} to {x.max():.1f})" for x in (cpu, wall)]
        lines.append(f"| {name} | {row[0]} | {row[1]} | {1000 / np.median(wall):.1f} |")
    report = "\n".join(lines) + "\n"
    print(report)
    (Path(__file__).parent / f"sample_cpu_{arguments.date}.md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
