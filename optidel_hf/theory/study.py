"""
The numerical study behind hard-sample selection: a perceptron taught by a perceptron, on a part of its pool.

After Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning" (arXiv 2206.14486).
A pool of `ratio * N` inputs x ~ N(0, I/N) is labelled by a teacher T, y = sign(T . x). A probe at an angle to the
teacher judges each point by its margin |x_0|: a small one is hard, a large one easy. A student learns a fraction of
the pool, kept by margin or at random, with the largest possible margin of its own; it errs on arccos(R) / pi of fresh
inputs, R its overlap with the teacher.

Shapes: `S` strategies, `A` data ratios, `F` fractions kept, `B` draws, `P` points, `N` dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from optidel_hf.errors import UserError
from optidel_hf.theory.hard_margin import solve_nested


STRATEGIES = ("hard", "easy", "random")
BLOCK = 2**23
"""Numbers in a block of draws that is solved at once: 64 MiB of points."""


@dataclass(frozen=True)
class TheoryConfig:
    """What is drawn; the defaults are those of the study published with OptiDEL."""

    dimension: int = field(default=30, metadata={"help": "Inputs of the perceptrons, N."})
    ratios: list[int] = field(
        default_factory=lambda: [20, 50, 100, 200, 500], metadata={"help": "Points in the pool, over N."}
    )
    smallest_fraction: float = field(default=0.01, metadata={"help": "Smallest fraction kept; the largest is 1."})
    fractions: int = field(default=12, metadata={"help": "Fractions kept, evenly spaced in the logarithm."})
    probe_angle: float = field(default=10.0, metadata={"help": "Angle between probe and teacher, in degrees."})
    copies: int = field(default=1, metadata={"help": "Redundancy: how often each point of the pool occurs."})
    shift: float = field(
        default=0.0,
        metadata={"help": "Downstream shift: added to the teacher off the probe, in every input, for the test only."},
    )
    draws: int = field(default=50, metadata={"help": "Pools and teachers drawn for each ratio."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})

    def __post_init__(self) -> None:
        if self.dimension < 3:
            raise UserError(f"dimension is {self.dimension}: a teacher beside its probe needs at least 3.")
        if not self.ratios:
            raise UserError("ratios needs at least one value.")
        if not 0 < self.smallest_fraction < 1 or self.fractions < 2:
            raise UserError("smallest_fraction lies between 0 and 1, and there are at least 2 fractions.")
        if round(min(self.ratios) * self.smallest_fraction * self.dimension, 9) < 1:
            raise UserError(
                f"smallest_fraction {self.smallest_fraction} of {min(self.ratios) * self.dimension} points keeps none."
            )
        if not 0 <= self.probe_angle < 90:
            raise UserError(f"probe_angle is {self.probe_angle}: it lies from 0 to below 90 degrees.")
        if self.copies < 1 or any(ratio * self.dimension % self.copies for ratio in self.ratios):
            raise UserError(f"copies is {self.copies}: it must divide the number of points at every ratio.")
        if not math.isfinite(self.shift) or self.seed < 0:
            raise UserError(f"shift is {self.shift} and seed {self.seed}: a number, and one of at least 0.")
        if self.draws < 2:
            raise UserError(f"draws is {self.draws}: an interval needs at least 2.")

    def kept(self) -> np.ndarray:
        """The fractions kept, ascending, shape `(F,)`."""
        return np.logspace(np.log10(self.smallest_fraction), 0, self.fractions)


@dataclass
class Study:
    """
    Students and the teachers that they are tested against.

    Args:
        weights (`np.ndarray`): Students' weights, shape `(S, A, F, B, N)`.
        teachers (`np.ndarray`): Downstream teachers, of length 1, shape `(A, B, N)`.
    """

    weights: np.ndarray
    teachers: np.ndarray

    def overlaps(self, centred: bool = False) -> np.ndarray:
        """
        Overlap R of student and teacher.

        Args:
            centred (`bool`, *optional*, defaults to `False`): Pearson's correlation over the weights in place of the
                cosine. The published study plots it; it does not see what all weights share, such as a shift that is
                the same in every input.

        Returns:
            `np.ndarray`: Shape `(S, A, F, B)`.
        """
        student, teacher = self.weights, self.teachers[:, None]
        if centred:
            student = student - student.mean(axis=-1, keepdims=True)
            teacher = teacher - teacher.mean(axis=-1, keepdims=True)
        product = (student * teacher).sum(axis=-1)
        return product / np.linalg.norm(student, axis=-1) / np.linalg.norm(teacher, axis=-1)

    def errors(self) -> np.ndarray:
        """Each student's error on fresh inputs, arccos(R) / pi with R a cosine, shape `(S, A, F, B)`."""
        return np.arccos(np.clip(self.overlaps(), -1, 1)) / np.pi


def error_of_mean_overlap(overlaps: np.ndarray) -> np.ndarray:
    """
    The published study's error, arccos(mean R) / pi; near the transition it lies above the students' mean error.

    Args:
        overlaps (`np.ndarray`): Overlaps, draws along the last axis.

    Returns:
        `np.ndarray`: Errors, without that axis.
    """
    return np.arccos(np.clip(overlaps.mean(axis=-1), -1, 1)) / np.pi


def run_study(config: TheoryConfig) -> Study:
    """
    Draw the pools and solve every student; strategies share a draw's pool, and larger fractions hold the smaller.

    Args:
        config (`TheoryConfig`): What is drawn.

    Returns:
        `Study`: The students, the same whatever the size of a block.
    """
    shape = (len(STRATEGIES), len(config.ratios), config.fractions, config.draws, config.dimension)
    weights, teachers = np.empty(shape), np.empty((shape[1], *shape[3:]))
    with tqdm(total=shape[1] * shape[3], unit="draw", desc="theory") as progress:
        for number, ratio in enumerate(config.ratios):
            size = max(1, BLOCK // (ratio * config.dimension**2))
            for start in range(0, config.draws, size):
                draws = slice(start, min(start + size, config.draws))
                block, teachers[number, draws] = _solve_block(config, ratio, draws)
                weights[:, number, :, draws] = block
                progress.update(draws.stop - draws.start)
    return Study(weights, teachers)


def draw_pool(config: TheoryConfig, ratio: int, draw: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    One pool and its teacher, by seed, ratio and number alone.

    Args:
        config (`TheoryConfig`): What is drawn.
        ratio (`int`): Points of the pool, over the dimension.
        draw (`int`): Number of the draw.

    Returns:
        `tuple`: inputs times labels `(P, N)`, the teacher `(N,)`, and a random order of the points `(P,)`.
    """
    generator = np.random.default_rng([config.seed, ratio, draw])
    angle = np.deg2rad(config.probe_angle)
    teacher = generator.standard_normal(config.dimension)
    teacher[0] = 0
    teacher *= np.sin(angle) / np.linalg.norm(teacher)
    teacher[0] = np.cos(angle)
    size = ratio * config.dimension // config.copies, config.dimension
    inputs = generator.standard_normal(size) / np.sqrt(config.dimension)
    points = np.tile(inputs * np.sign(inputs @ teacher)[:, None], (config.copies, 1))
    return points, teacher, generator.permutation(len(points))


def keep_order(points: np.ndarray, shuffled: np.ndarray, strategy: str) -> np.ndarray:
    """
    The order in which a strategy takes the points; equal margins, such as copies, stay together.

    Args:
        points (`np.ndarray`): Inputs times labels, shape `(P, N)`.
        shuffled (`np.ndarray`): A random order of them, shape `(P,)`.
        strategy (`str`): `"hard"`, `"easy"` or `"random"`.

    Returns:
        `np.ndarray`: Indices of the points, shape `(P,)`.
    """
    margins = np.abs(points[:, 0])
    if strategy == "random":
        return shuffled
    return np.argsort(margins if strategy == "hard" else -margins, kind="stable")


def downstream_teacher(teacher: np.ndarray, shift: float) -> np.ndarray:
    """
    The teacher that the student is tested against: `shift` is added off the probe and the sum has length 1 again.

    Args:
        teacher (`np.ndarray`): The teacher of the pool, shape `(N,)`.
        shift (`float`): What is added to every input's weight but the probe's.

    Returns:
        `np.ndarray`: Shape `(N,)`.
    """
    shifted = teacher + shift * (np.arange(len(teacher)) > 0)
    return shifted / np.linalg.norm(shifted)


def _solve_block(config: TheoryConfig, ratio: int, draws: slice) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(S, F, B, N)` and downstream teachers `(B, N)` of some draws."""
    pools = [draw_pool(config, ratio, draw) for draw in range(draws.start, draws.stop)]
    counts = [int(round(ratio * fraction * config.dimension, 9)) for fraction in config.kept()]
    weights = []
    for strategy in STRATEGIES:
        points = np.stack([points[keep_order(points, shuffled, strategy)] for points, _, shuffled in pools])
        weights.append([solution.weights for solution in solve_nested(points, counts)])
    return np.array(weights), np.array([downstream_teacher(teacher, config.shift) for _, teacher, _ in pools])
