"""
What the perceptron study tends to in high dimension: the saddle-point equations of data pruning.

Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning" (arXiv 2206.14486): the
replica theory of a hard-margin student that learns from the part of its pool whose margin z under a probe lies in a
band l < |z| < h. With alpha = P/N kept points a dimension, kept density p(z) = phi(z)/f on the band, margin k of the
student, R its overlap with the teacher, rho with the probe, R0 = cos(theta) the teacher's with the probe, t the
student's margin on a point, q(t|z) = N(t; rho z, 1 - rho^2), and INT over the band and t < k:

    (R - rho R0) / (1 - R0^2)                    = alpha INT p E (k - t)
    1 - (rho^2 + R^2 - 2 rho R R0) / (1 - R0^2)  = 2 alpha INT p q Phi (k - t)^2
    (rho - R R0) / (1 - R0^2) (1 - rho^2)        = alpha INT p {2 q Phi (z - rho t) - (R0 - R rho) E} (k - t)

Phi is the probability of the label given z and t; E is 2 q times the density of the teacher's field at zero. The
student is written as (R, b, c) along the teacher, along what the probe adds to it, and across both, by two angles, so
that no step of the root finder leaves the sphere. Then E is a Gaussian in t of mean z b / sin(theta) and deviation c,
and its integral over t is closed; the others are sums over Gauss-Legendre nodes, with panels where Phi turns. At
theta = 0 the student is (R, s), s^2 = 1 - R^2, and two equations in one integral remain.

Shapes: `Z` nodes over the band, `T` nodes over t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import root
from scipy.special import erfinv, ndtr


NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)
FAR = 9.0
"""Standard deviations beyond which a Gaussian counts as zero."""
Residual = Callable[[np.ndarray, float], np.ndarray]


def saddle_point_errors(
    strategy: str, ratio: float, fractions: Sequence[float] | np.ndarray, probe_angle: float
) -> np.ndarray:
    """
    The student's error in high dimension.

    Args:
        strategy (`str`): `"hard"` keeps the smallest margins, `"easy"` the largest, `"random"` any.
        ratio (`float`): Points of the pool a dimension.
        fractions (`Sequence[float]`): Fractions kept, in (0, 1].
        probe_angle (`float`): Angle between probe and teacher, in degrees.

    Returns:
        `np.ndarray`: Fraction of fresh inputs that the student labels wrongly, arccos(R) / pi, one a fraction.

    Raises:
        `RuntimeError`: where the equations have no root that can be followed from the whole pool.
    """
    angle = np.deg2rad(probe_angle)
    order = np.argsort(fractions)[::-1]
    descending = np.asarray(fractions, dtype=float)[order]
    whole = _whole_pool(ratio)
    if strategy == "random":
        roots = _follow(lambda x, f: _aligned(x, ratio * f, 1.0, (0.0, np.inf)), whole, descending)
    elif angle == 0:
        roots = _follow(lambda x, f: _aligned(x, ratio * f, f, _band(strategy, f)), whole, descending)
    else:
        start = np.array([whole[0], np.pi / 2, whole[1]])
        roots = _follow(lambda x, f: _tilted(x, ratio * f, f, _band(strategy, f), angle), start, descending)
    errors = np.empty(len(descending))
    errors[order] = 2 * np.arctan(np.exp(roots[:, 0])) / np.pi
    return errors


def _band(strategy: str, fraction: float) -> tuple[float, float]:
    """The margins |z| that hold the smallest or the largest `fraction` of a standard normal."""
    if strategy == "hard":
        return 0.0, np.sqrt(2) * erfinv(fraction)
    return np.sqrt(2) * erfinv(1 - fraction), np.inf


def _whole_pool(ratio: float) -> np.ndarray:
    """The root for the whole pool, followed up from one point a dimension; (log tan of half the angle, log margin)."""
    return _follow(lambda x, f: _aligned(x, 1 / f, 1.0, (0.0, np.inf)), np.array([-0.7, 0.0]), [1.0, 1 / ratio])[-1]


def _follow(residual: Residual, start: np.ndarray, fractions: Sequence[float] | np.ndarray) -> np.ndarray:
    """The root at each of the descending fractions, from `start` at 1."""
    roots, at = [], 1.0
    for fraction in fractions:
        start = _reach(residual, start, at, fraction)
        roots.append(start)
        at = fraction
    return np.array(roots)


def _reach(residual: Residual, x: np.ndarray, at: float, fraction: float) -> np.ndarray:
    """The root at `fraction` from the one at `at`: in one leap, or in two shorter ones where that fails."""
    # On its way the root finder may try what no float holds; what is not finite is no root.
    with np.errstate(all="ignore"):
        found = root(residual, x, args=(fraction,), tol=1e-12)
    if np.abs(found.fun).max() < 1e-8 and np.abs(found.x - x).max() < 1.5:
        return found.x
    middle = np.sqrt(at * fraction)
    if at / fraction < 1 + 1e-9:
        raise RuntimeError(f"The saddle-point equations have no root near a kept fraction of {fraction:.4g}.")
    return _reach(residual, _reach(residual, x, at, middle), middle, fraction)


def _aligned(x: np.ndarray, alpha: float, fraction: float, band: tuple[float, float]) -> np.ndarray:
    """Residuals of the two equations of a probe that is the teacher."""
    angle, margin = 2 * np.arctan(np.exp(x[0])), np.exp(x[1])
    overlap, rest = np.cos(angle), np.sin(angle)
    low, high = band
    edge = _ramp(margin - low * overlap, rest) * np.exp(-(low**2) / 2)
    if np.isfinite(high):
        edge -= _ramp(margin - high * overlap, rest) * np.exp(-(high**2) / 2)
    turns = [low * overlap, min(high, FAR) * overlap]
    cuts = np.sort(np.clip([-FAR, *(turn + d * rest for turn in turns for d in (-FAR, 0, FAR)), FAR], -FAR, margin))
    t, weights = _panels(cuts[None], np.array([min(margin, FAR)]))
    inside = ndtr((high - overlap * t) / rest) - ndtr((low - overlap * t) / rest)
    quadratic = (weights * _normal(t) * (margin - t) ** 2 * inside).sum()
    return np.array(
        [overlap - alpha * edge / (np.pi * fraction * rest), 1 - 2 * alpha * quadratic / (fraction * rest**2)]
    )


def _tilted(x: np.ndarray, alpha: float, fraction: float, band: tuple[float, float], angle: float) -> np.ndarray:
    """Residuals of the three equations of a probe at an angle to the teacher."""
    teacher_angle, side_angle, margin = 2 * np.arctan(np.exp(x[0])), x[1], np.exp(x[2])
    cos, sin = np.cos(angle), np.sin(angle)
    overlap, rest = np.cos(teacher_angle), np.sin(teacher_angle)
    side, across = rest * np.cos(side_angle), rest * abs(np.sin(side_angle))
    probe = cos * overlap + sin * side
    spread = np.sqrt(1 - probe**2)

    z, density = _band_nodes(band, fraction)
    gaussian = np.exp(-((z * cos / sin) ** 2) / 2) / (np.pi * sin * across)
    linear = alpha * (density * gaussian * _ramp(margin - z * side / sin, across)).sum()

    slope = (sin * overlap - cos * side) * sin
    turn = z * (probe * overlap - cos) / slope
    width = spread * sin * across / abs(slope)
    t, weights = _turning_nodes(z, probe, spread, turn, width, margin)
    sign = ndtr(np.sign(slope) * (t - turn[:, None]) / width)
    mass = 2 * alpha * density[:, None] * weights * _normal((t - probe * z[:, None]) / spread) / spread * sign
    lack = margin - t
    lean = (mass * lack * (z[:, None] - probe * t)).sum()
    return np.array(
        [
            overlap - side * cos / sin - linear,
            1 - (mass * lack**2).sum() / across**2,
            side / sin - (lean - (cos - overlap * probe) * linear) / spread**2,
        ]
    )


def _band_nodes(band: tuple[float, float], fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes z on both sides of the band, shape `(Z,)`, and their share of the kept points; finer towards zero."""
    low, high = band[0], min(band[1], FAR)
    cuts = low + (high - low) * np.concatenate([[0.0], 0.5 ** np.arange(8, -1, -1)])
    z, weights = _panels(cuts[None, :-1], cuts[-1:])
    z, density = z[0], weights[0] * _normal(z[0]) / fraction
    return np.concatenate([-z, z]), np.concatenate([density, density])


def _turning_nodes(
    z: np.ndarray, probe: float, spread: float, turn: np.ndarray, width: float, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes t below the margin where q(t|z) is not zero, and their weights, `(Z, T)`, in panels about the turn."""
    low = np.minimum(probe * z - FAR * spread, margin)
    high = np.minimum(probe * z + FAR * spread, margin)
    cuts = np.stack([low, *(np.clip(turn + d * width, low, high) for d in (-FAR, FAR))], axis=1)
    return _panels(cuts, high)


def _panels(cuts: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and weights, panel after panel, from each row's ascending cuts to its end."""
    edges = np.concatenate([cuts, end[:, None]], axis=1)
    half = np.diff(edges, axis=1)[:, :, None] / 2
    nodes = edges[:, :-1, None] + half * (1 + NODES)
    return nodes.reshape(len(cuts), -1), (half * WEIGHTS).reshape(len(cuts), -1)


def _ramp(distance: np.ndarray | float, width: float) -> np.ndarray:
    """The integral over x < `distance` of (distance - x) exp(-x^2 / (2 width^2))."""
    scaled = distance / width
    return width**2 * (np.exp(-(scaled**2) / 2) + scaled * np.sqrt(2 * np.pi) * ndtr(scaled))


def _normal(x: np.ndarray) -> np.ndarray:
    """Density of the standard normal."""
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
