"""
Seeded mask partitions: which tokens are visible together, the same for every sample.

One partition deals the `L` tokens into `K` visible sets of `L // K`, so that each token is visible once and hidden
`K - 1` times. Where `K` does not divide `L`, the remainder is visible in no set of that partition, and another
partition leaves out other tokens. Shapes: `K` masks a partition, `L` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_partition(tokens: int, masks: int, seed: int) -> Tensor:
    """
    The `noise` that makes ViTMAE show each set of one partition.

    ViTMAE keeps the tokens of least noise: 0 for the visible set of a mask and 1 for all others.

    Args:
        tokens (`int`): L, patches an image.
        masks (`int`): K; the mask ratio is 1 - 1/K.
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
    Mean error over tokens, each averaged over the masks that hide it.

    Args:
        errors (`Tensor` of shape `(B, K, L)`): mean squared error of each token under each mask.
        noise (`Tensor` of shape `(K, L)`): from [`mask_partition`].

    Returns:
        `Tensor` of shape `(B,)`.
    """
    return (errors * noise).sum(1).div(noise.sum(0)).mean(-1)
