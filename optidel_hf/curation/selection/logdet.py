"""
The log-determinant as diversity: an ablation of facility location in `optidel`.

    D(S) = 1/2 log2 det(I + sigma^-2 sum over i in S of z_i z_i^T)      bits

z is pool-centred and of unit length, as in `objective.py`. D is what noisy looks along each z_i tell of a Gaussian
vector, and so monotone and submodular (Krause, Singh and Guestrin, JMLR 2008); it is never divided by |S|, for the
log-determinant of a covariance is neither, and prefers outliers. Its gain, 1/2 log2(1 + sigma^-2 z^T A^-1 z) with A
the matrix in the determinant, is kept for all patches by a rank-one update of A^-1 (Sherman and Morrison) a choice:

    v = A^-1 z_i / sqrt(sigma^2 + z_i^T A^-1 z_i),     A^-1 -= v v^T,     z_j^T A^-1 z_j -= (z_j . v)^2

That takes count x n x D steps and holds all z, where facility location works in blocks: for pools up to about 10^5.

D width of the embedding.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.objective import Directions


NOISE = 1.0
"""sigma^2: a second look along one direction gives log2(3/2) of the first's bits."""


class LogDet:
    """
    F of a set that grows patch by patch, with hardness and D: the counterpart of [`Objective`].

    Args:
        worth (`np.ndarray` of shape `(n,)`): hardness, times its weight.
        directions ([`Directions`]): z, of `n` patches.
        weight (`float`): lambda, what a bit is worth.

    Attributes:
        gain (`np.ndarray` of shape `(n,)`, float64): by how much choosing each would raise F.
        bits (`float`): D of what was chosen.
    """

    def __init__(self, worth: np.ndarray, directions: Directions, weight: float) -> None:
        self.worth, self.weight = worth.astype(np.float64), weight
        self.z = directions[np.arange(len(directions))].astype(np.float64)
        self.inverse = np.eye(self.z.shape[1])
        self.lever = np.square(self.z).sum(axis=1)  # z^T A^-1 z
        self.bits = 0.0
        self._renew()

    def add(self, row: int) -> None:
        """Choose a patch: those along its direction gain less from now on."""
        self.bits += float(self._bits(self.lever[row]))
        along = self.inverse @ self.z[row] / np.sqrt(NOISE + self.lever[row])
        self.inverse -= np.outer(along, along)
        self.lever = np.maximum(self.lever - (self.z @ along) ** 2, 0)  # below zero by rounding alone
        self._renew()

    def _renew(self) -> None:
        self.gain = self.worth + self.weight * self._bits(self.lever)

    def _bits(self, lever: np.ndarray) -> np.ndarray:
        return 0.5 * np.log2(1 + lever / NOISE)


def log_determinant(z: np.ndarray) -> float:
    """D of a whole set `(m, D)` at once."""
    z = z.astype(np.float64)
    return 0.5 * float(np.linalg.slogdet(np.eye(z.shape[1]) + z.T @ z / NOISE)[1]) / np.log(2)


def equal_bits(worth: np.ndarray, directions: Directions, count: int, seed: int) -> float:
    """lambda: the hardness of `count` random patches over their bits; 0 where all patches are the same."""
    drawn = np.random.default_rng(seed).permutation(len(worth))[:count]
    bits = log_determinant(directions[drawn])
    return float(worth[drawn].sum()) / bits if bits > 1e-9 else 0.0
