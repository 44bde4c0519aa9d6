"""How fast the theory's students are solved, against cvxpy's default solver on the same pools.

    pip install -e ".[bench]"
    OMP_NUM_THREADS=1 python benchmarks/bench_theory.py

Prints the table and writes `benchmarks/theory_cpu_[date].md`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from pathlib import Path

import cvxpy
import numpy as np
from timings import processor

from optidel_hf.theory.hard_margin import HardMargin, kkt_residual, solve_nested
from optidel_hf.theory.study import BLOCK, STRATEGIES, TheoryConfig, draw_pool, keep_order


TOLERANCE = 1e-7
SOLVER = "CLARABEL"


def pools(config: TheoryConfig, ratio: int, strategy: str, draws: int) -> np.ndarray:
    """The study's first pools in a strategy's order, shape `(B, P, N)`."""
    drawn = (draw_pool(config, ratio, draw) for draw in range(draws))
    return np.stack([points[keep_order(points, shuffled, strategy)] for points, _, shuffled in drawn])


def solve_cvxpy(points: np.ndarray) -> HardMargin:
    """One pool `(P, N)` as the published study states it, min ||w||_2 subject to X w >= 1, by the default solver."""
    weights = cvxpy.Variable(points.shape[1])
    constraint = points @ weights >= 1
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm(weights, 2)), [constraint])
    problem.solve(tol_feas=TOLERANCE, tol_gap_abs=TOLERANCE, tol_gap_rel=TOLERANCE)
    assert problem.solver_stats.solver_name == SOLVER, "cvxpy's default solver has changed."
    norm = np.linalg.norm(weights.value)
    return HardMargin(weights.value[None], np.arange(len(points))[None], norm * constraint.dual_value[None])


def ours(points: np.ndarray, counts: list[int], block: int) -> tuple[list[list[HardMargin]], float]:
    """Solutions, block after block of draws, and processor seconds."""
    started = time.process_time()
    solved = [solve_nested(points[start : start + block], counts) for start in range(0, len(points), block)]
    return solved, time.process_time() - started


def compare(config: TheoryConfig, ratio: int, strategy: str, reference_draws: int) -> dict[str, float]:
    """Milliseconds a solve of both, and their residuals, over all fractions at one ratio."""
    counts = [int(ratio * fraction * config.dimension) for fraction in config.kept()]
    points = pools(config, ratio, strategy, config.draws)
    block = max(1, BLOCK // (ratio * config.dimension**2))
    solved, seconds = ours(points, counts, block)
    few, few_seconds = ours(points[:reference_draws], counts, reference_draws)
    started = time.process_time()
    references = [[solve_cvxpy(pool[:count]) for pool in points[:reference_draws]] for count in counts]
    cvxpy_seconds = time.process_time() - started
    compared = [
        (points[[draw], :count], few[0][level].weights[draw], references[level][draw])
        for level, count in enumerate(counts)
        for draw in range(reference_draws)
    ]
    checked = [
        kkt_residual(points[number * block : (number + 1) * block, :count], solution).max()
        for number, row in enumerate(solved)
        for count, solution in zip(counts, row)
    ]
    return {
        "ours": 1000 * seconds / (config.draws * len(counts)),
        "few": 1000 * few_seconds / len(compared),
        "cvxpy": 1000 * cvxpy_seconds / len(compared),
        "residual": max(checked),
        "cvxpy_residual": max(kkt_residual(pool, theirs)[0] for pool, _, theirs in compared),
        "difference": max(
            np.linalg.norm(own - theirs.weights[0]) / np.linalg.norm(own) for _, own, theirs in compared
        ),
    }


def table(config: TheoryConfig, reference_draws: int) -> list[str]:
    """One line a ratio and strategy, and the whole study's."""
    lines = [
        f"| points/N | kept | ours, {config.draws} draws | ours, {reference_draws} draws | cvxpy | ratio "
        "| KKT ours | KKT cvxpy | largest difference of w |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for ratio in config.ratios:
        for strategy in STRATEGIES:
            row = compare(config, ratio, strategy, reference_draws)
            rows.append(row)
            lines.append(_line(str(ratio), strategy, row))
            print(lines[-1], flush=True)
    worst = {name: max(row[name] for row in rows) for name in ("residual", "cvxpy_residual", "difference")}
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("ours", "few", "cvxpy")}
    return [*lines, _line("all", "all", mean | worst)]


def _line(ratio: str, strategy: str, row: dict[str, float]) -> str:
    times = " | ".join(f"{row[name]:.2f}" for name in ("ours", "few", "cvxpy"))
    errors = " | ".join(f"{row[name]:.0e}" for name in ("residual", "cvxpy_residual", "difference"))
    return f"| {ratio} | {strategy} | {times} | **{row['cvxpy'] / row['ours']:.0f}** | {errors} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--reference_draws", type=int, default=2)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    arguments = parser.parse_args()
    config = TheoryConfig(draws=arguments.draws)
    lines = [
        "# Solving the theory's students",
        "",
        f"{processor()}, one thread, load {os.getloadavg()[0]:.1f} at the start. Python {platform.python_version()}, "
        f"numpy {np.__version__}, cvxpy {cvxpy.__version__}.",
        f"`OMP_NUM_THREADS=1 python benchmarks/bench_theory.py --draws {config.draws} "
        f"--reference_draws {arguments.reference_draws}`;",
        f"processor milliseconds a solve, the mean over the study's {config.fractions} fractions, without the drawing",
        f"of pools. cvxpy gets tolerances of {TOLERANCE:g} and the first {arguments.reference_draws} of these pools,",
        "each stated anew as the published study does; ours solves the row of nested pools in blocks of draws. The",
        f"ratio is cvxpy's time over ours with {config.draws} draws. Residuals and differences are the largest of the",
        "row, relative as in `kkt_residual`; the last line is the whole study.",
        "",
        *table(config, arguments.reference_draws),
    ]
    Path(f"benchmarks/theory_cpu_{arguments.date}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
