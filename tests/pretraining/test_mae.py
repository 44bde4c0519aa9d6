from __future__ import annotations

import math

import pytest
import torch
from PIL import Image
from tiny_sizes import TINY_SIZES
from transformers import AutoModel, ViTConfig, ViTMAEForPreTraining, ViTMAEModel, ViTModel, pipeline

from optidel_hf.errors import UserError
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.objectives.mae import (
    MaskedAutoencoding,
    build_mae,
    position_tables,
)
from optidel_hf.pretraining.objectives.vit import sincos_positions

from .tiny import tiny_images


TOKENS = 16


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 3, 32, 32, generator=generator), torch.rand(5, TOKENS, generator=generator)


def test_positions_are_distinct_fixed_and_column_first() -> None:
    for table in position_tables(build_mae(**TINY_SIZES)):
        assert not table.requires_grad
        assert torch.cdist(table[0], table[0]).fill_diagonal_(1).min() > 0.1
        assert table[0, 0].abs().max() == 0  # the class token has no place
    # Width 4 has the one frequency 1; row 1, column 2 of a 3x3 grid is token 1 + 5.
    expected = torch.tensor([math.sin(2), math.cos(2), math.sin(1), math.cos(1)])
    torch.testing.assert_close(sincos_positions(3, 4)[6], expected)
    # Width 8 adds the frequency 10000^(-1/2) = 0.01.
    expected = torch.tensor([math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)])
    torch.testing.assert_close(sincos_positions(3, 8)[6, :4], expected)


def test_a_new_model_has_no_zero_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second = build_mae(**TINY_SIZES, seed=5), build_mae(**TINY_SIZES, seed=5)
    assert torch.rand(1) == expected
    for (name, weight), twin in zip(first.named_parameters(), second.parameters()):
        assert torch.equal(weight, twin)
        assert weight.ndim == 1 or weight.std() > 0.01, name


def test_it_learns_what_a_model_without_positions_cannot() -> None:
    objective = MaskedAutoencoding(build_mae(**TINY_SIZES))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    images = (tiny_images(256, 32) - 127.0) / 60
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(120):
        chosen = images[torch.randint(256, (32,), generator=generator)]
        loss = objective(chosen, torch.rand(32, TOKENS, generator=generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Targets have unit variance, so predicting the mean costs 1; with zero position tables it ends at 0.78.
    assert sum(losses[-10:]) / 10 < 0.35


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_loss_is_that_of_transformers(batch: tuple[torch.Tensor, torch.Tensor], norm_pix_loss: bool) -> None:
    pixels, noise = batch
    model = build_mae(**TINY_SIZES, norm_pix_loss=norm_pix_loss)
    expected = model(pixels, noise=noise).loss
    torch.testing.assert_close(MaskedAutoencoding(model)(pixels, noise), expected)


def test_only_hidden_patches_count(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, _ = batch
    model = build_mae(**TINY_SIZES, norm_pix_loss=False)
    torch.nn.init.zeros_(model.decoder.decoder_pred.weight)
    noise = torch.arange(TOKENS).expand(5, -1) / TOKENS  # the first row of four patches stays visible
    expected = pixels[:, :, 8:].square().mean()  # all predictions are zero
    torch.testing.assert_close(MaskedAutoencoding(model)(pixels, noise), expected)


def test_the_backbone_is_the_encoder_that_sees_everything(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, _ = batch
    model = build_mae(**TINY_SIZES, seed=2).eval()
    model.config.mask_ratio = 0.0
    in_order = torch.arange(TOKENS).expand(5, -1) / TOKENS
    with torch.no_grad():
        expected = model.vit(pixels, noise=in_order).last_hidden_state
        torch.testing.assert_close(MaskedAutoencoding(model).backbone()(pixels).last_hidden_state, expected)


def test_what_is_saved_opens_in_plain_transformers(tmp_path) -> None:
    model = build_mae(**TINY_SIZES, seed=2).eval()
    MaskedAutoencoding(model).save(tmp_path, image_processor(32))
    again, report = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    picture = Image.fromarray(tiny_images(1, 48)[0].permute(1, 2, 0).numpy())
    pixels = image_processor(32)(picture, return_tensors="pt").pixel_values
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        expected = model.vit(pixels, noise=torch.arange(TOKENS)[None] / TOKENS).last_hidden_state
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "backbone")(pixels)[0], expected)
    features = pipeline("image-feature-extraction", model=str(tmp_path / "backbone"))
    first, second = torch.tensor(features(picture)), torch.tensor(features(picture))
    assert first.shape == (1, 1 + TOKENS, 32)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-4)


def test_any_configuration_trains(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    pixels, _ = batch
    model = build_mae(**{**TINY_SIZES, "patch_size": 16}, mask_ratio=0.5, norm_pix_loss=False, qkv_bias=False)
    loss = MaskedAutoencoding(model)(pixels, torch.rand(5, 4, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert MaskedAutoencoding(model).backbone().config.qkv_bias is False


def test_a_checkpoint_comes_back_in_float32_with_fixed_positions(tmp_path) -> None:
    model = build_mae(**TINY_SIZES, seed=4)
    model.half().save_pretrained(tmp_path)
    loaded = build_mae(str(tmp_path), mask_ratio=0.5, norm_pix_loss=False, hidden_size=999)
    assert loaded.dtype == torch.float32
    assert (loaded.config.mask_ratio, loaded.config.norm_pix_loss, loaded.config.hidden_size) == (0.5, False, 32)
    assert not any(table.requires_grad for table in position_tables(loaded))
    torch.testing.assert_close(loaded.decoder.decoder_pred.weight, model.decoder.decoder_pred.weight.float())


def test_other_checkpoints_are_refused_by_name(tmp_path) -> None:
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match=r"vit is a 'vit', not a 'vit_mae'"):
        build_mae(str(tmp_path / "vit"))
    ViTMAEModel(build_mae(**TINY_SIZES).config).save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"encoder lacks \d+ weights of a ViT-MAE with its decoder, such as decoder"):
        build_mae(str(tmp_path / "encoder"))
    (tmp_path / "encoder/model.safetensors").rename(tmp_path / "encoder/pytorch_model.bin")
    with pytest.raises(UserError, match=r"encoder has no model.safetensors, and pickled weights .* are never read"):
        build_mae(str(tmp_path / "encoder"))
    with pytest.raises(UserError, match="nowhere is no folder or Hub id"):
        build_mae(str(tmp_path / "nowhere"))
