from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_sizes import TINY_SIZES

from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding, build_mae
from optidel_hf.pretraining.reconstructions import GAP, draw_grid, reconstruct


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.rand(2, 16, generator=generator)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_gives_the_image_back(batch, norm_pix_loss: bool, monkeypatch) -> None:
    views, noise = batch
    model = build_mae(**TINY_SIZES, norm_pix_loss=norm_pix_loss)
    forward, target = model.forward, MaskedAutoencoding(model).target(views)

    def perfect(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = target
        return output

    monkeypatch.setattr(model, "forward", perfect)
    torch.testing.assert_close(reconstruct(model, views, noise)[2], views, atol=1e-5, rtol=1e-5)


def test_what_is_hidden_is_grey_and_then_predicted(batch) -> None:
    views, noise = batch
    model = build_mae(**TINY_SIZES)
    torch.nn.init.zeros_(model.decoder.decoder_pred.weight)  # every hidden patch is predicted as its own mean
    given, masked, reconstructed = reconstruct(model, views, noise)
    assert torch.equal(given, views)
    hidden = noise.argsort().argsort() >= 4  # (2, 16): a quarter of 16 patches stays visible
    for image in range(2):
        for patch in range(16):
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            place = (image, slice(None), slice(y, y + 8), slice(x, x + 8))
            if hidden[image, patch]:
                assert (masked[place] == 0).all()
                torch.testing.assert_close(reconstructed[place], views[place].mean().expand(3, 8, 8))
            else:
                assert torch.equal(masked[place], views[place])
                assert torch.equal(reconstructed[place], views[place])


def test_the_grid_has_an_image_a_row() -> None:
    columns = torch.zeros(3, 2, 3, 8, 8)
    columns[1, 0] += 100  # clipped to white
    pixels = np.array(draw_grid(columns))
    assert pixels.shape == (2 * 8 + GAP, 3 * 8 + 2 * GAP, 3)
    assert pixels[0, 0].tolist() == [124, 116, 104]  # ImageNet's mean
    assert (pixels[:8, 8 + GAP : 16 + GAP] == 255).all()
    assert (pixels[8 : 8 + GAP] == 255).all()
    assert pixels[8 + GAP, 8 + GAP].tolist() == [124, 116, 104]
