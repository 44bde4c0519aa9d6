"""Mask partitions: every token is shown once, and ViTMAE hides exactly what the noise says."""

from __future__ import annotations

import pytest
import torch

from optidel_hf.curation.masking import hidden_mean, mask_partition, mask_ratio
from optidel_hf.errors import UserError
from optidel_hf.pretraining.objectives.mae import build_mae


# 25 tokens and 5 masks, 36 and 3, 49 and 7: ratios 1 - 1/K at which floating point loses a token.
GRIDS = [(16, 4), (64, 4), (25, 5), (36, 3), (36, 6), (49, 7), (49, 4), (16, 3), (64, 2)]


@pytest.mark.parametrize(("tokens", "masks"), GRIDS)
def test_every_token_is_visible_at_most_once_and_hidden_otherwise(tokens: int, masks: int) -> None:
    noise = mask_partition(tokens, masks, seed=3)
    assert noise.shape == (masks, tokens)
    assert (noise == 0).sum(1).tolist() == [tokens // masks] * masks
    hidden = noise.sum(0)
    remainder = tokens % masks
    assert sorted(hidden.tolist()) == [masks - 1] * (tokens - remainder) + [masks] * remainder


@pytest.mark.parametrize(("tokens", "masks"), GRIDS)
def test_the_models_own_mask_is_the_noise(tokens: int, masks: int) -> None:
    side = int(tokens**0.5)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    model = build_mae(image_size=8 * side, patch_size=8, **sizes, **decoder, decoder_intermediate_size=8)
    model.config.mask_ratio = mask_ratio(tokens, masks)
    noise = mask_partition(tokens, masks, seed=1)
    pixels = torch.zeros(3, 3, 8 * side, 8 * side)
    with torch.no_grad():
        for row in noise:
            mask = model.vit(pixels, noise=row.expand(3, -1)).mask
            assert torch.equal(mask, row.expand(3, -1))


def test_a_seed_gives_one_partition() -> None:
    assert torch.equal(mask_partition(64, 4, seed=5), mask_partition(64, 4, seed=5))
    assert not torch.equal(mask_partition(64, 4, seed=5), mask_partition(64, 4, seed=6))


def test_the_token_left_out_changes_with_the_partition() -> None:
    left_out = {int((mask_partition(49, 4, seed) == 1).all(0).nonzero()) for seed in range(8)}
    assert len(left_out) > 4


def test_a_mask_that_would_show_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="masks is 20 and the reference model has 16 tokens"):
        mask_ratio(16, 20)


def test_hidden_mean_by_hand() -> None:
    noise = torch.tensor([[0.0, 1, 1], [1, 0, 1]])  # the third token is the remainder
    errors = torch.tensor([[[100.0, 2, 3], [4, 100, 5]]]).unsqueeze(-1)
    assert hidden_mean(errors, noise).flatten().tolist() == [4, 2, (3 + 5) / 2]
