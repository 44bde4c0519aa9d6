"""One run: batches, loss by hand, what is trained and what is not, and that a learnable task is learnt."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optidel_hf.evaluation import protocol
from optidel_hf.evaluation.backbone import Backbone, load_backbone
from optidel_hf.evaluation.downstream import DownstreamSet, load_downstream
from optidel_hf.evaluation.protocol import (
    MLPHead,
    Segmenter,
    all_flips,
    batch_rows,
    labelled_rows,
    score,
    segmentation_loss,
    train,
)


@pytest.fixture(scope="module")
def train_set(squares_folder: Path) -> DownstreamSet:
    return load_downstream(str(squares_folder), "train", 32)


@pytest.fixture(scope="module")
def test_set(squares_folder: Path) -> DownstreamSet:
    return load_downstream(str(squares_folder), "test", 32)


@pytest.fixture
def model(vit_folder: Path) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(load_backbone(str(vit_folder)), mask_size=32)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def fit(
    model: Segmenter, data: DownstreamSet, mode: str, steps: int, seed: int = 0, mixed_precision: str = "no"
) -> Segmenter:
    rate = 2e-3
    train(model, data, mode, seed=seed, steps=steps, batch_size=8, learning_rate=rate, mixed_precision=mixed_precision)
    return model


def test_every_order_holds_every_image_once() -> None:
    rows = np.concatenate([batch_rows(10, 4, seed=3, step=step) for step in range(5)])
    first, second = (rows % 10).reshape(2, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    assert rows.max() < 40


def test_batches_depend_on_seed_and_step_alone() -> None:
    assert (batch_rows(10, 4, seed=3, step=7) == batch_rows(10, 4, seed=3, step=7)).all()
    one, other = batch_rows(50, 20, seed=3, step=0), batch_rows(50, 20, seed=4, step=0)
    assert (one % 50 != other % 50).any()  # the images
    assert (one // 50 != other // 50).any()  # their flips
    assert len(batch_rows(3, 8, seed=0, step=0)) == 8  # a batch may be larger than the set


def test_flips_of_images_and_masks_go_together() -> None:
    maps = torch.arange(8).view(2, 2, 2)
    flips = all_flips(maps)
    assert flips[:2].equal(maps)
    assert flips[2::2].tolist() == [[[1, 0], [3, 2]], [[2, 3], [0, 1]], [[3, 2], [1, 0]]]
    assert all_flips(maps.unsqueeze(1).expand(2, 3, 2, 2))[:, 0].equal(flips)


def test_labels_are_the_seeds_choice() -> None:
    assert labelled_rows(7, 0, seed=0).tolist() == list(range(7))
    few, more = labelled_rows(100, 10, seed=5), labelled_rows(100, 20, seed=5)
    assert len(set(few.tolist())) == 10
    assert set(few.tolist()) < set(more.tolist())
    assert set(few.tolist()) != set(labelled_rows(100, 10, seed=6).tolist())


def test_loss_by_hand() -> None:
    logits = torch.zeros(1, 2, 1, 2)  # probability 1/2 everywhere
    masks = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    # cross-entropy ln 2; Dice 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    assert segmentation_loss(logits, masks).item() == pytest.approx(np.log(2) + 1 / 3)


def test_head_puts_tokens_where_their_patches_are() -> None:
    head = MLPHead(width=4, mask_size=8)
    tokens = torch.zeros(1, 4, 4)
    tokens[0, 1] = 5.0  # second token: first row, second column
    with torch.no_grad():
        changed = (head(tokens) - head(torch.zeros(1, 4, 4))).abs().sum(dim=1)[0]
    assert changed[:2, 6:].min() > 0  # the middle of its patch and outwards
    assert changed[6:, :2].max() < 1e-6


def test_probing_leaves_the_encoder_and_fine_tuning_changes_it(model: Segmenter, train_set: DownstreamSet) -> None:
    encoder, head = weights(model.encoder), weights(model.head)
    fit(model, train_set, "probe", steps=3)
    assert weights(model.encoder).equal(encoder)
    assert not weights(model.head).equal(head)
    fit(model, train_set, "finetune", steps=3)
    assert not weights(model.encoder).equal(encoder)


@pytest.mark.parametrize("mode", ["finetune", "probe"])
def test_a_device_without_float64_judges(
    mode: str, model: Segmenter, train_set: DownstreamSet, no_float64: TorchDispatchMode
) -> None:
    with no_float64:
        score(fit(model, train_set, mode, steps=2), train_set, batch_size=8)


def test_fine_tuning_in_bfloat16_goes_where_float32_goes(model: Segmenter, train_set: DownstreamSet) -> None:
    start, plain = weights(model), copy.deepcopy(model)
    fit(plain, train_set, "finetune", steps=5)
    fit(model, train_set, "finetune", steps=5, mixed_precision="bf16")
    moved, expected = weights(model) - start, weights(plain) - start
    assert not moved.equal(expected)
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.9
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_probe_is_float32_whatever_the_precision(model: Segmenter, train_set: DownstreamSet) -> None:
    plain = copy.deepcopy(model)
    fit(plain, train_set, "probe", steps=3)
    fit(model, train_set, "probe", steps=3, mixed_precision="bf16")
    assert weights(model).equal(weights(plain))


def test_training_sees_images_and_masks_that_belong_together(
    model: Segmenter, train_set: DownstreamSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn_as_their_masks = DownstreamSet(
        train_set.names, 255 * train_set.masks.unsqueeze(1).repeat(1, 3, 1, 1), train_set.masks
    )
    images: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []

    def spy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        masks.append(truth)
        return segmentation_loss(logits, truth)

    monkeypatch.setattr(protocol, "segmentation_loss", spy)
    model.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    fit(model, drawn_as_their_masks, "finetune", steps=2)
    assert torch.equal(torch.cat(images)[:, 0] // 255, torch.cat(masks))
    assert len(torch.cat(masks)) == 16


@pytest.mark.parametrize(("mode", "steps"), [("finetune", 60), ("probe", 200)])
def test_bright_squares_are_learnt(
    model: Segmenter, train_set: DownstreamSet, test_set: DownstreamSet, mode: str, steps: int
) -> None:
    all_background = float(1 - test_set.masks.float().mean()) / 2  # IoU of the object is 0
    before = score(model, test_set, batch_size=5)["mean_iou"]
    after = score(fit(model, train_set, mode, steps), test_set, batch_size=5)
    assert after["mean_iou"] > max(before, all_background) + 0.25
    assert np.sum(after["confusion_matrix"]) == test_set.masks.numel()


def test_score_does_not_depend_on_the_batch_size(model: Segmenter, test_set: DownstreamSet) -> None:
    confusions = [np.array(score(model, test_set, size)["confusion_matrix"]) for size in (1, 3, 8)]
    # rounding may turn a pixel whose two logits are equal to the sixth digit
    assert all(np.abs(confusion - confusions[0]).max() <= 2 for confusion in confusions)


@torch.no_grad()
def test_images_of_another_size_than_the_encoders_are_accepted(vit_folder: Path) -> None:
    model = Segmenter(load_backbone(str(vit_folder)), mask_size=48)
    assert model(torch.zeros(2, 3, 48, 48, dtype=torch.uint8)).shape == (2, 2, 48, 48)


@pytest.mark.parametrize("mode", ["finetune", "probe"])
def test_the_rate_warms_up_for_a_tenth_and_falls_to_zero_and_no_gradient_is_longer_than_one(
    model: Any, train_set: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, norms, decay = [], [], set()
    step = torch.optim.AdamW.step

    def note(optimizer: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        (group,) = optimizer.param_groups
        rates.append(group["lr"])
        decay.add(group["weight_decay"])
        gradients = [weight.grad for weight in group["params"] if weight.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return step(optimizer, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    monkeypatch.setattr(protocol, "segmentation_loss", lambda *told: 1000 * segmentation_loss(*told))
    fit(model, train_set, mode, steps=20)  # at a peak of 2e-3
    cosine = [(1 + np.cos(np.pi * step / 18)) / 2 for step in range(18)]
    assert rates == pytest.approx([2e-3 * share for share in (0, 0.5, *cosine)])
    assert norms == pytest.approx([1.0] * 20, abs=1e-3)
    assert decay == {0.05}


@torch.no_grad()
def test_tokens_are_the_encoders_of_the_patches_alone_under_its_own_normalisation(vit_folder: Path) -> None:
    encoder = load_backbone(str(vit_folder)).encoder
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.4)
    pixels = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = encoder(pixels).last_hidden_state[:, 1:]  # without the class token
    torch.testing.assert_close(Segmenter(Backbone(encoder, mean, std), 32).tokens(images), expected)
