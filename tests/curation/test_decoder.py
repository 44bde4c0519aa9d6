"""The shared decoder: transformers' masks and predicted IoU, for less arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path
from optidel_hf.curation.decoder import PointDecoder, _compiled_steps


TOLERANCE = 1e-4


def random_sam(
    layers: int = 2, width: int = 32, heads: int = 4, masks: int = 3, image_size: int = 64, seed: int = 0
) -> SamModel:
    """
    A `SamModel` every weight of which is random, norms and biases too.

    What transformers draws would hide errors: norms that do nothing, and Fourier features of the wrong scale.
    """
    vision = {"image_size": image_size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"output_channels": width, "num_pos_feats": width // 2}
    prompt = {"hidden_size": width, "image_size": image_size, "image_embedding_size": image_size // 16}
    decoder = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 40}
    decoder |= {"iou_head_hidden_dim": 24, "num_multimask_outputs": masks}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            spread = 1.0 if "embed" in name else 2.0 * weight[0].numel() ** -0.5
            weight.data = noise * spread
        else:
            weight.data = 0.3 * noise + float("norm" in name and name.endswith("weight"))
    return model.eval()


def embedded_sam() -> SamModel:
    return SamModel.from_pretrained(checkpoint_path(EMBEDDED), dtype=torch.float32).eval()


def scene(model: SamModel, points: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """An image embedding `(1, D, g, g)` and points `(P, 2)` in pixels."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config.prompt_encoder_config
    grid = config.image_embedding_size
    embedding = torch.randn(1, config.hidden_size, grid, grid, generator=generator)
    return embedding, config.image_size * torch.rand(points, 2, generator=generator)


def assert_like_stock(model: SamModel, embedding: Tensor, points: Tensor) -> None:
    with torch.inference_mode():
        stock = model(image_embeddings=embedding, input_points=points[None, :, None])
        ours = PointDecoder(model, embedding[0])(points)
    logits = stock.pred_masks[0].flatten(0, 1)
    scale = logits.std()
    assert stock.pred_masks[0].std(0).mean() > 0.02 * scale  # else the points make no difference
    torch.testing.assert_close(ours.logits / scale, logits / scale, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours.ious, stock.iou_scores[0].flatten(), atol=TOLERANCE, rtol=0)
    assert torch.equal(ours.points, torch.arange(len(points)).repeat_interleave(stock.iou_scores.shape[-1]))


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"seed": 5},
        {"layers": 1},
        {"layers": 3, "heads": 8},
        {"width": 64, "heads": 2},
        {"masks": 2},
    ],
)
def test_any_weights_give_the_stock_masks(shape: dict[str, int]) -> None:
    model = random_sam(**shape)
    assert_like_stock(model, *scene(model, points=7))


def test_the_embedded_sam_gives_the_stock_masks() -> None:
    model = embedded_sam()
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert_like_stock(model, model.get_image_embeddings(pixels), scene(model, points=12)[1])


def test_only_masks_above_the_predicted_iou_come_back() -> None:
    model = random_sam()
    embedding, points = scene(model, points=20)
    with torch.inference_mode():
        decoder = PointDecoder(model, embedding[0])
        whole = decoder(points)
        least = whole.ious.median().item()
        some = decoder(points, least)
    passing = whole.ious > least
    assert 10 < passing.sum() < 50
    assert torch.equal(some.points, whole.points[passing])
    torch.testing.assert_close(some.ious, whole.ious[passing])
    torch.testing.assert_close(some.logits, whole.logits[passing], atol=1e-4, rtol=1e-4)


def test_compiling_changes_rounding_only_and_serves_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # The whole path but the last stage, which writes C++: that takes minutes, and is torch's own to test.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    anew = functools.lru_cache(_compiled_steps.__wrapped__)
    monkeypatch.setattr("optidel_hf.curation.decoder._compiled_steps", anew)
    model, graphs = random_sam(), []
    for seed in range(4):
        embedding, points = scene(model, points=4, seed=seed)
        with torch.inference_mode():
            plain, compiled = (PointDecoder(model, embedding[0], compiled)(points) for compiled in (False, True))
            least = plain.ious.sort().values[-3 - seed].item()  # another number of masks for every image
            some = PointDecoder(model, embedding[0], compiled=True)(points, least)
        torch.testing.assert_close(compiled.logits, plain.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(compiled.ious, plain.ious)
        torch.testing.assert_close(some.logits, plain.logits[plain.ious > least], atol=1e-4, rtol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] >= 2  # both steps
    assert graphs[-1] <= 5  # one of the transformer, and of the masks for 1, for this and for any number of points


def test_no_mask_passes() -> None:
    model = random_sam()
    embedding, points = scene(model, points=3)
    with torch.inference_mode():
        nothing = PointDecoder(model, embedding[0])(points, 1e9)
    assert nothing.logits.shape == (0, 16, 16)
    assert len(nothing.ious) == len(nothing.points) == 0


def test_a_point_does_not_depend_on_the_others() -> None:
    model = random_sam()
    embedding, points = scene(model, points=6)
    with torch.inference_mode():
        decoder = PointDecoder(model, embedding[0])
        together = decoder(points)
        alone = [decoder(point) for point in points.split(1)]
    torch.testing.assert_close(together.logits, torch.cat([each.logits for each in alone]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.ious, torch.cat([each.ious for each in alone]))


def test_bfloat16_stays_near_float32() -> None:
    model = random_sam()
    embedding, points = scene(model, points=16)
    with torch.inference_mode():
        exact = PointDecoder(model, embedding[0])(points)
        half = PointDecoder(model.to(torch.bfloat16), embedding[0].bfloat16())(points)
    assert half.logits.dtype == torch.bfloat16
    error = (half.logits.float() - exact.logits).square().mean().sqrt()
    assert error < 0.2 * exact.logits.std()


def operations(run: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_it_takes_less_arithmetic_than_stock() -> None:
    model = random_sam(width=256, heads=8, image_size=256)  # the decoder of facebook/sam-vit-base
    embedding, points = scene(model, points=16)
    stock = operations(lambda: model(image_embeddings=embedding, input_points=points[None, :, None]))
    decoder = PointDecoder(model, embedding[0])
    assert operations(lambda: decoder(points)) < 0.4 * stock
    assert operations(lambda: decoder(points, 1e9)) < 0.25 * stock
