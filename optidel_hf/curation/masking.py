"""
Seeded mask partitions: which tokens are visible together, the same for every sample.

One partition deals the `L` tokens into `K` visible sets of `L // K`, so that each token is visible once and hidden
`K - 1` times. Where `K` does not divide `L`, the remainder is visible in no set of that partition, and another
partition leaves out tokens of its own. Shapes: `B` patches, `K` masks a partition, `L` tokens, `C` errors a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optidel_hf.errors import UserError


def mask_ratio(tokens: int, masks: int) -> float:
    """
    The ratio at which ViTMAE shows exactly the `L // K` tokens of one visible set.

    ViTMAE shows `int(L * (1 - ratio))` tokens, and 1 - 1/K is not exact in binary: 25 tokens and 5 masks would give 4.
    Half a token more falls away in its rounding.

    Args:
        tokens (`int`): L, patches an image.
        masks (`int`): K, visible sets a partition.

    Raises:
        `UserError`: if there are more masks than tokens.
    """
    if masks > tokens:
        raise UserError(f"masks is {masks} and the reference model has {tokens} tokens: a mask would show nothing.")
    return 1 - (tokens // masks + 0.5) / tokens


def mask_partition(tokens: int, masks: int, seed: int) -> Tensor:
    """
    The `noise` that makes ViTMAE show each set of one partition.

    ViTMAE keeps the tokens of least noise: 0 for the visible set of a mask and 1 for all others.

    Args:
        tokens (`int`): L, patches an image.
        masks (`int`): K; with [`mask_ratio`], 1/K of the tokens are visible at a time.
        seed (`int`): of this partition.

    Returns:
        `Tensor` of shape `(K, L)`.
    """
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))
    visible = tokens // masks
    noise = torch.ones(masks, tokens)
    for k in range(masks):
        noise[k, order[k * visible : (k + 1) * visible]] = 0.0
    return noise


def hidden_mean(errors: Tensor, noise: Tensor) -> Tensor:
    """
    Error of each token, averaged over the masks that hide it.

    Args:
        errors (`Tensor` of shape `(B, K, L, C)`): mean squared errors of each token under each mask.
        noise (`Tensor` of shape `(K, L)`): from [`mask_partition`].

    Returns:
        `Tensor` of shape `(B, L, C)`.
    """
    return (errors * noise.unsqueeze(-1)).sum(1).div(noise.sum(0).unsqueeze(-1))
