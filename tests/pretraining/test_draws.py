from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch

from optidel_hf.pretraining.draws import Augmentation, Draws, draw, sample_order


SIMCLR = Augmentation(views=2, min_scale=0.08, jitter=1.0, grey=0.2, blur=0.5)


def _draw(seed: int = 3, step: int = 7, start: int = 0, count: int = 8, **changes: Any) -> Draws:
    return draw(seed, step, start, count, augmentation=changes.pop("augmentation", SIMCLR), n_tokens=15)


def _each(*draws: Draws) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(getattr(one, field.name) for one in draws) for field in fields(Draws)]


def test_draws_are_a_function_of_seed_step_and_place() -> None:
    assert all(torch.equal(*pair) for pair in _each(_draw(), _draw()))
    for other in (_draw(seed=4), _draw(step=8), _draw(start=8)):
        assert not torch.equal(other.box, _draw().box)
        assert not torch.equal(other.noise, _draw().noise)


def test_slices_make_up_the_batch_whatever_its_size() -> None:
    pieces = [_draw(start=start, count=3) for start in range(0, 12, 3)]
    whole = _draw(count=40)
    for *parts, all_of_it in _each(*pieces, whole):
        assert torch.equal(torch.cat(parts), all_of_it[:12])


def test_no_two_images_or_views_share_their_numbers() -> None:
    draws = _draw(count=400)
    assert len(draws.box.flatten(0, 2).unique(dim=0)) == 800
    assert len(draws.noise.unique(dim=0)) == 400


def test_every_epoch_is_a_permutation_whatever_the_batches() -> None:
    stream = sample_order(1, range(35), 7)
    for epoch in stream.reshape(5, 7):
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in stream.reshape(5, 7)}) > 1
    pieces = [sample_order(1, range(start, start + 5), 7) for start in range(0, 35, 5)]
    np.testing.assert_array_equal(np.concatenate(pieces), stream)


def test_crops_follow_the_paper() -> None:
    box = _draw(count=4000, augmentation=Augmentation()).box
    x, y, width, height = box[:, 0, 0].unbind(1)
    assert box.min() >= 0
    assert max((x + width).max(), (y + height).max()) <= 1 + 1e-6
    area, aspect = width * height, width / height
    assert 0.2 - 1e-6 < area.min() < 0.21
    assert 0.9 < area.max() <= 1
    assert 3 / 4 - 1e-5 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-5
    whole = _draw(augmentation=Augmentation(min_scale=1.0)).box
    assert torch.equal(whole, torch.tensor([0.0, 0, 1, 1]).expand(8, 1, 1, 4))


def test_half_of_the_views_are_mirrored_or_none() -> None:
    assert abs(_draw(count=4000).flip.float().mean() - 0.5) < 0.03
    assert not _draw(count=400, augmentation=Augmentation(flip=False)).flip.any()


def test_colours_follow_the_paper() -> None:
    draws = _draw(count=4000)
    neutral = (draws.factors == torch.tensor([1.0, 1, 1, 0])).all(dim=-1)
    assert abs(neutral.float().mean() - 0.2) < 0.02
    low, high = draws.factors.amin(dim=(0, 1)), draws.factors.amax(dim=(0, 1))
    torch.testing.assert_close(low, torch.tensor([0.2, 0.2, 0.2, -0.2]), atol=2e-3, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.8, 1.8, 1.8, 0.2]), atol=2e-3, rtol=0)
    assert abs(draws.grey.float().mean() - 0.2) < 0.02
    blurred = draws.sigma[draws.sigma > 0]
    assert abs(len(blurred) / draws.sigma.numel() - 0.5) < 0.02
    assert 0.1 <= blurred.min() < 0.11
    assert 1.99 < blurred.max() <= 2


def test_mae_changes_no_colour() -> None:
    draws = _draw(count=400, augmentation=Augmentation())
    assert torch.equal(draws.factors, torch.tensor([1.0, 1, 1, 0]).expand(400, 1, 4))
    assert not draws.grey.any()
    assert not draws.sigma.any()


def test_no_number_tells_another() -> None:
    draws = draw(3, 7, 0, 6000, augmentation=SIMCLR, n_tokens=15)
    x, y, width, height = draws.box[:, 0, 0].double().unbind(1)
    left, above = x / (1 - width).clamp_min(1e-9), y / (1 - height).clamp_min(1e-9)
    crop = [left, above, width * height, (width / height).log(), draws.flip[:, 0, 0]]
    look = [*draws.factors[:, 0].unbind(1), draws.grey[:, 0], draws.sigma[:, 0] > 0]
    told = torch.stack([column.double() for column in (*crop, *look, *draws.noise.unbind(1))])
    told = told[:, (1 - width > 1e-6) & (1 - height > 1e-6)]
    correlation = torch.corrcoef(told).fill_diagonal_(0)
    assert correlation.abs().max() < 0.07


def test_each_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(sample_order(seed, range(40), 40)) for seed in range(3)]
    assert len(set(orders)) == 3
