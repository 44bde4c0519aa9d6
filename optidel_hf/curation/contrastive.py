"""
The contrastive counterpart of V-information: of C candidates, which is the other view of this patch?

X is a view's embedding z, Y the number of its other view z' among C candidates in random order, and the family holds
the predictors softmax(z . z_k / t) over candidates k, with one temperature t. Then H_V(Y|0) = log2 C, H_V(Y|X) is the
InfoNCE loss in bits (van den Oord et al. 2018, arXiv 1807.03748), and

    I_V = log2 C - InfoNCE        PVI = log2 C - a patch's own loss

bits, of which no model can have more than log2 C. NT-Xent (SimCLR, Chen et al. 2020) in a batch of B images has
C = 2B - 1. In a batch, a patch's loss depends on its neighbours; here every patch meets one seeded bank of candidates,
one a group, none from its own group.

Shapes: `B` patches, `N` = C - 1 wrong candidates, `W` width of an embedding; all embeddings are L2-normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy


COLDEST, HOTTEST = 1e-3, 10.0
SATURATED = 0.95  # of log2 C: hardly anything is left to tell patches apart by


def candidates_in_batch(images: int) -> int:
    """The candidates C of NT-Xent in a batch of so many images: all other views, the right one included."""
    return 2 * images - 1


def information(loss: Tensor, candidates: int) -> Tensor:
    """Bits that InfoNCE losses in nats stand for, one each: log2 C - loss / ln 2."""
    return math.log2(candidates) - loss / math.log(2)


def info_nce(right: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    """
    Each patch's InfoNCE loss in nats.

    Args:
        right (`Tensor` of shape `(B,)`): similarity of its two views.
        wrong (`Tensor` of shape `(B, N)`): similarities to the other candidates.
        temperature (`float`): t.
    """
    logits = torch.cat([right.unsqueeze(1), wrong], dim=1).double() / temperature
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="none")


def fit_temperature(right: Tensor, wrong: Tensor) -> float:
    """
    The temperature of the least mean loss; arguments as for [`info_nce`].

    The loss is convex in 1/t, so there is one minimum; without a mistake among the patches it is flat towards zero,
    and any temperature there, not under 0.001, may come out.
    """

    def loss(logarithm: float) -> float:
        return float(info_nce(right, wrong, math.exp(logarithm)).mean())

    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


@dataclass(frozen=True)
class CandidateBank:
    """
    The wrong candidates that every patch meets: one embedding a group, and a spare.

    A patch whose own group is in the bank meets the spare in its place, so that C is the same for all.

    Args:
        embeddings (`Tensor` of shape `(N + 1, W)`): the spare last.
        groups (`tuple[str, ...]`): the group of each, all different.
    """

    embeddings: Tensor
    groups: tuple[str, ...]

    @property
    def candidates(self) -> int:
        """C: the bank without its spare, and the right one."""
        return len(self.groups)

    def similarities(self, views: Tensor, groups: Sequence[str]) -> Tensor:
        """Views `(B, W)` of patches of these groups against the candidates of other groups: `(B, N)`."""
        similar = views @ self.embeddings.T
        wrong, place = similar[:, :-1].clone(), {group: k for k, group in enumerate(self.groups[:-1])}
        own = [(row, place[group]) for row, group in enumerate(groups) if group in place]
        for row, k in own:
            wrong[row, k] = similar[row, -1]
        return wrong

    def both_ways(self, first: Tensor, second: Tensor, groups: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Similarities of each view to the other, `(2B,)`, and to the wrong candidates, `(2B, N)`."""
        wrong = torch.cat([self.similarities(view, groups) for view in (first, second)])
        return (first * second).sum(1).repeat(2), wrong

    def loss(self, first: Tensor, second: Tensor, groups: Sequence[str], temperature: float) -> Tensor:
        """Mean InfoNCE loss in nats of both directions, as in NT-Xent: views `(B, W)` twice to `(B,)`."""
        return info_nce(*self.both_ways(first, second, groups), temperature).unflatten(0, (2, -1)).mean(0)
