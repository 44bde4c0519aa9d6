"""
The hard-margin perceptron, solved exactly for many draws at once.

    min ||w||   subject to   x_p . w >= 1   for every p                          (x already multiplied by its label)

The dual active-set method of Goldfarb and Idnani (Mathematical Programming 27, 1983). On a support S its optimum is
w = S^T g with g = (S S^T)^-1 1. A violated point a enters with a multiplier s that rises from zero: r = (S S^T)^-1 S a
makes the other multipliers g - s r and w = S^T g + s z, z = a - S^T r. The first event decides: a multiplier reaches
zero (its point leaves), or a . w reaches 1 (a joins). Both change (S S^T)^-1 by one outer product. Nothing but the
support is carried over, so rounding does not build up, and a solved pool is the start for any larger one: a whole row
of nested pools costs little more than its last.

Shapes: `B` draws, `P` points, `N` dimensions and also slots of the support, `K` nested pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


TOLERANCE = 1e-9
"""A point is violated where its margin is below one by more than this, or than the rounding of long weights."""
CANDIDATES = 8
"""Points that an inner solve sees, over the dimensions: those of the smallest margins."""


@dataclass
class HardMargin:
    """
    The optimum of every draw.

    Args:
        weights (`np.ndarray`): Weights of least norm, shape `(B, N)`.
        support (`np.ndarray`): Index into the points of each support point, or -1 in a free slot, shape `(B, N)`.
        multipliers (`np.ndarray`): Their dual variables, zero in a free slot, shape `(B, N)`.
    """

    weights: np.ndarray
    support: np.ndarray
    multipliers: np.ndarray


def solve_nested(points: np.ndarray, counts: Sequence[int]) -> list[HardMargin]:
    """
    Solve the pools of the first `counts[0]`, `counts[1]`, ... points, each from the one before.

    Args:
        points (`np.ndarray`): Inputs times labels, shape `(B, P, N)`, float64, in the order in which they are added.
        counts (`Sequence[int]`): Sizes of the `K` nested pools, ascending.

    Returns:
        `list[HardMargin]`: One solution a pool.

    Raises:
        `ValueError`: where no weights have a positive margin on all points of a draw.
    """
    supports = _Supports.empty(len(points), points.shape[2])
    solutions = []
    for count in counts:
        _solve_pool(supports, points[:, :count])
        multipliers, weights = supports.optimum()
        solutions.append(HardMargin(weights, supports.index.copy(), multipliers))
    return solutions


def kkt_residual(points: np.ndarray, solution: HardMargin) -> np.ndarray:
    """
    The largest violation of the optimality conditions, a draw, free of the problem's scale.

    The largest of: how far a margin falls below 1 (primal), how far a multiplier falls below 0 over the sum of them
    (dual), ||w - sum_p u_p x_p|| over ||w|| (stationarity), and sum_p u_p |x_p . w - 1| over the sum of the
    multipliers (complementary slackness).

    Args:
        points (`np.ndarray`): Inputs times labels, shape `(B, P, N)`.
        solution (`HardMargin`): What to check.

    Returns:
        `np.ndarray`: Shape `(B,)`; zero at an exact optimum.
    """
    weights, multipliers = solution.weights, solution.multipliers
    support = np.take_along_axis(points, np.maximum(solution.support, 0)[:, :, None], axis=1)
    total = np.abs(multipliers).sum(axis=1)
    primal = np.maximum(1 - _times(points, weights).min(axis=1), 0)
    dual = np.maximum(-multipliers.min(axis=1), 0) / total
    gradient = weights - _times(support.swapaxes(1, 2), multipliers)
    stationarity = np.linalg.norm(gradient, axis=1) / np.linalg.norm(weights, axis=1)
    complementarity = (np.abs(multipliers) * np.abs(_times(support, weights) - 1)).sum(axis=1) / total
    return np.max([primal, dual, stationarity, complementarity], axis=0)


@dataclass
class _Supports:
    """
    The support of every draw, one point a slot, and the inverse of its Gram matrix; zeros in a free slot.

    Args:
        index (`np.ndarray`): Index into the points, or -1 in a free slot, shape `(B, N)`.
        points (`np.ndarray`): The support points S, shape `(B, N, N)`.
        inverse (`np.ndarray`): (S S^T)^-1, shape `(B, N, N)`.
    """

    index: np.ndarray
    points: np.ndarray
    inverse: np.ndarray

    @classmethod
    def empty(cls, draws: int, dimension: int) -> _Supports:
        """No support yet."""
        square = (draws, dimension, dimension)
        return cls(np.full((draws, dimension), -1), np.zeros(square), np.zeros(square))

    def take(self, rows: np.ndarray) -> _Supports:
        """A copy of some draws."""
        return _Supports(self.index[rows], self.points[rows], self.inverse[rows])

    def put(self, rows: np.ndarray, other: _Supports) -> None:
        """Write draws back."""
        self.index[rows], self.points[rows], self.inverse[rows] = other.index, other.points, other.inverse

    def refresh(self) -> None:
        """Invert the Gram matrices anew, which forgets the rounding of the updates since."""
        free = self.index < 0
        slots = np.arange(free.shape[1])
        self.inverse = self.points @ self.points.swapaxes(1, 2)
        self.inverse[:, slots, slots] += free
        self.inverse = np.linalg.inv(self.inverse)
        self.inverse[:, slots, slots] -= free

    def optimum(self) -> tuple[np.ndarray, np.ndarray]:
        """Multipliers g and weights S^T g of the supports' optima."""
        multipliers = self._solve((self.index >= 0).astype(float))
        return multipliers, self._combine(multipliers)

    def respond(self, entering: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How the multipliers fall (r) and the weights move (z) as the entering points' multipliers rise."""
        response = self._solve(_times(self.points, entering))
        return response, entering - self._combine(response)

    def add(
        self, rows: np.ndarray, entering: np.ndarray, index: np.ndarray, response: np.ndarray, length: np.ndarray
    ) -> None:
        """Put one more point into the first free slot of some draws, given its r and the square length of its z."""
        slot = (self.index[rows] < 0).argmax(axis=1)
        response[np.arange(len(rows)), slot] = -1
        self._add_outer(rows, response, length)
        self.index[rows, slot], self.points[rows, slot] = index, entering

    def drop(self, rows: np.ndarray, slot: np.ndarray) -> None:
        """Empty one slot of some draws."""
        column = self.inverse[rows, :, slot]
        self._add_outer(rows, column, -self.inverse[rows, slot, slot])
        self.inverse[rows, :, slot] = self.inverse[rows, slot, :] = 0
        self.index[rows, slot], self.points[rows, slot] = -1, 0

    def _solve(self, right: np.ndarray) -> np.ndarray:
        solved = _times(self.inverse, right)
        # One step of refinement: the Gram matrix has the support's condition squared, and norms of 10^3 occur.
        return solved + _times(self.inverse, right - _times(self.points, self._combine(solved)))

    def _combine(self, multipliers: np.ndarray) -> np.ndarray:
        return _times(self.points.swapaxes(1, 2), multipliers)

    def _add_outer(self, rows: np.ndarray, vector: np.ndarray, scale: np.ndarray) -> None:
        self.inverse[rows] += vector[:, :, None] * (vector / scale[:, None])[:, None, :]


def _solve_pool(supports: _Supports, points: np.ndarray) -> None:
    """Solve for each draw's points of smallest margin, again and again until no point of the pool is violated."""
    rows = np.arange(len(points))
    size = min(CANDIDATES * points.shape[2], points.shape[1])
    while True:
        supports_now = supports.take(rows)
        supports_now.refresh()
        # Draw by draw: the points of many rows, gathered, would be a copy of the pools.
        _, weights = supports_now.optimum()
        margins = np.stack([points[row] @ w for row, w in zip(rows, weights)])
        violated = _violated(margins, weights)
        if not violated.any():
            return
        rows, supports_now = rows[violated], supports_now.take(violated)
        smallest = np.argpartition(margins[violated], size - 1, axis=1)[:, :size]
        _solve_candidates(supports_now, points[rows[:, None], smallest], smallest)
        supports.put(rows, supports_now)


def _solve_candidates(supports: _Supports, points: np.ndarray, index: np.ndarray) -> None:
    """Let the most violated point of every draw enter, until there is none; finished draws wait."""
    entering = np.full(len(points), -1)
    while True:
        multipliers, weights = supports.optimum()
        margins = _times(points, weights)
        rows = np.flatnonzero((entering >= 0) | _violated(margins, weights))
        if not len(rows):
            return
        chosen = np.where(entering < 0, margins.argmin(axis=1), entering)[rows]
        lack = 1 - margins[rows, chosen]
        joined = _step(supports, rows, points[rows, chosen], index[rows, chosen], lack, multipliers[rows])
        entering[rows] = np.where(joined, -1, chosen)


def _violated(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Draws in which a point is violated; the multipliers, whose sum rounds, add up to the weights' squared length."""
    rounding = 64 * np.finfo(np.float64).eps * (weights**2).sum(axis=1)
    return margins.min(axis=1) < 1 - np.maximum(TOLERANCE, rounding)


def _step(
    supports: _Supports,
    rows: np.ndarray,
    entering: np.ndarray,
    index: np.ndarray,
    lack: np.ndarray,
    multipliers: np.ndarray,
) -> np.ndarray:
    """Follow each entering point's multiplier to its first event; tells where the point has joined."""
    response, move = supports.take(rows).respond(entering)
    length = (move * move).sum(axis=1)
    independent = length > 1e-13 * (entering * entering).sum(axis=1)
    joins_at = np.where(independent, lack / np.where(independent, length, 1), np.inf)
    falling = response > 0
    leaves_at = np.where(falling, multipliers / np.where(falling, response, 1), np.inf)
    joins = joins_at <= leaves_at.min(axis=1)
    if np.isinf(joins_at[joins]).any():
        raise ValueError("No weights have a positive margin on all points: the labels are not linearly separable.")
    supports.add(rows[joins], entering[joins], index[joins], response[joins], length[joins])
    supports.drop(rows[~joins], leaves_at[~joins].argmin(axis=1))
    return joins


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """One matrix times one vector, a draw."""
    return (matrices @ vectors[:, :, None])[:, :, 0]
