from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from transformers import ViTConfig

from optidel_hf.pretraining.batches import Batches, image_processor
from optidel_hf.pretraining.draws import Augmentation, sample_order
from optidel_hf.pretraining.residency import ResidentPool

from .test_augmentation import smooth


CPU = torch.device("cpu")
MODEL = ViTConfig(image_size=32, patch_size=8)


def _parts(
    images: torch.Tensor, after: int, count: int, **changes: Any
) -> list[tuple[list[torch.Tensor], torch.Tensor]]:
    options = {"augmentation": Augmentation(), "seed": 1, "batch_size": 8, **changes}
    pool = ResidentPool(images, CPU, seed=1, tiles=options["augmentation"].tiles)
    return list(itertools.islice(Batches(pool, model=MODEL, **options).after(after), count))


@pytest.mark.parametrize("tiles", [1, 4])
def test_the_parts_of_ranks_and_accumulation_make_up_the_batch(tiles: int) -> None:
    images, augmentation = smooth(11, 36), Augmentation(tiles=tiles)
    whole = _parts(images, 3, 2, augmentation=augmentation)
    shared = {"augmentation": augmentation, "processes": 2, "accumulation": 2}
    shares = [_parts(images, 3, 4, rank=rank, **shared) for rank in (0, 1)]
    for step, ((view,), noise) in enumerate(whole):
        parts = [shares[rank][2 * step + part] for part in (0, 1) for rank in (0, 1)]
        torch.testing.assert_close(torch.cat([views[0] for views, _ in parts]), view)
        assert torch.equal(torch.cat([noise for _, noise in parts]), noise)


@pytest.mark.parametrize("tiles", [1, 4])
def test_a_resumed_run_goes_on_within_an_epoch(tiles: int) -> None:
    images, augmentation = smooth(11, 36), Augmentation(tiles=tiles)
    straight, resumed = (_parts(images, *steps, augmentation=augmentation) for steps in ((0, 5), (3, 2)))
    for (expected, noise), (found, again) in zip(straight[3:], resumed):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(noise, again)


def test_views_are_what_the_saved_processor_makes() -> None:
    images = smooth(3, 32 + 1)[..., :32, :32]
    (((views,), _),) = _parts(images, 0, 1, augmentation=Augmentation(min_scale=1.0, flip=False), batch_size=3)
    pictures = [PILImage.fromarray(images[row].permute(1, 2, 0).numpy()) for row in sample_order(1, range(3), 3)]
    expected = image_processor(32)(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)
