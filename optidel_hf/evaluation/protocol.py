"""
One downstream run: a simple MLP head on a ViT's patch tokens, trained on few labels, tested by mIoU.

The head is MedDEL's "simple MLP" (arXiv 2401.17542): two linear layers on every patch token of the last layer; its
logits are upsampled bilinearly to the mask. The loss is cross-entropy plus soft Dice: with cross-entropy alone, few
steps and small objects end in all background. Fine-tuning trains encoder and head, probing the head alone on tokens
that are computed once. AdamW, 10 % linear warm-up, cosine to zero, the same steps whatever the number of labels.

Shapes: `B` batch, `N` images, `C` classes, `T` patch tokens in a `G` x `G` grid, `D` width, `S` image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from optidel_hf.devices import forked_rng, resolve_precision, send
from optidel_hf.evaluation.backbone import Backbone
from optidel_hf.evaluation.downstream import DownstreamSet
from optidel_hf.evaluation.metrics.mean_iou.mean_iou import MeanIoU, confusion_matrix


NUM_CLASSES = 2  # background, object
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-1, -2))  # image axes: none, horizontal, vertical, both
WEIGHT_DECAY = 0.05
WARMUP_SHARE = 0.1
MAX_GRAD_NORM = 1.0

# What a random generator is for: streams of one seed that share no draw.
LABELS, ORDER, FLIPPING = range(3)


class MLPHead(nn.Module):
    """
    Patch tokens to class logits at the mask's size.

    Args:
        width (`int`): width D of the tokens, also of the hidden layer.
        mask_size (`int`): side S of the mask.
    """

    def __init__(self, width: int, mask_size: int) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, NUM_CLASSES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `(B, T, D)` to logits `(B, C, S, S)`."""
        logits = self.layers(tokens)
        batch, count, classes = logits.shape
        grid = round(count**0.5)
        coarse = logits.transpose(1, 2).reshape(batch, classes, grid, grid)
        return F.interpolate(coarse, size=(self.mask_size, self.mask_size), mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """
    A backbone with an [`MLPHead`].

    Args:
        backbone ([`Backbone`]): encoder and normalisation; trained in place.
        mask_size (`int`): side S of images and masks.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone, mask_size: int) -> None:
        super().__init__()
        self.encoder = backbone.encoder
        self.head = MLPHead(self.encoder.config.hidden_size, mask_size)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1))

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, S, S)` uint8 to the patch tokens of the last layer `(B, T, D)`."""
        pixels = (images.float() / 255 - self.mean) / self.std
        # Interpolation is the identity at the encoder's own size, so that one call serves all sizes.
        return self.encoder(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(B, 3, S, S)` uint8 to logits `(B, C, S, S)`."""
        return self.head(self.tokens(images))


def labelled_rows(count: int, labels: int, seed: int) -> np.ndarray:
    """The seed's choice of `labels` of `count` training images (0: all), as sorted row numbers."""
    if labels == 0:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, LABELS)).permutation(count)[:labels])


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """
    The images of one batch and their flips, a pure function of (seed, step).

    Images come in one shuffled order after the other, each once per order, without regard to the batches' borders.

    Returns:
        `numpy.ndarray` of shape `(B,)`: row numbers in [`all_flips`] of `count` images.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng((seed, ORDER, epoch)).permutation(count)
        for epoch in {place // count for place in places}
    }
    images = np.array([orders[place // count][place % count] for place in places])
    flips = np.random.default_rng((seed, FLIPPING, step)).integers(len(FLIPS), size=batch_size)
    return flips * count + images


def all_flips(maps: torch.Tensor) -> torch.Tensor:
    """All four flips of every image or mask, `(N, ..., S, S)` to `(4 N, ..., S, S)`, flip by flip."""
    return torch.cat([maps.flip(axes) for axes in FLIPS])


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus the batch's soft Dice loss; logits `(B, C, S, S)`, masks `(B, S, S)` with 0 and 1."""
    probability, truth = logits.softmax(dim=1)[:, 1], masks.float()
    dice = 1 - (2 * (probability * truth).sum() + 1) / (probability.sum() + truth.sum() + 1)
    return F.cross_entropy(logits, masks.long()) + dice


def train_segmenter(
    backbone: Backbone,
    data: DownstreamSet,
    mode: str,
    *,
    seed: int,
    device: torch.device,
    mixed_precision: str = "no",
    **schedule: Any,
) -> Segmenter:
    """
    Put a head on a backbone and [`train`] them, on `device`: the head's weights are the seed's, too.

    The backbone is trained in place; torch's generators are left as they were. `mixed_precision` may be `"auto"`, and
    `schedule` is the rest of what [`train`] is told.
    """
    with forked_rng(device):
        torch.manual_seed(seed)
        model = Segmenter(backbone, data.images.shape[-1]).to(device)
        train(model, data, mode, seed=seed, mixed_precision=resolve_precision(mixed_precision, device), **schedule)
    return model


def train(
    model: Segmenter,
    data: DownstreamSet,
    mode: str,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    mixed_precision: str = "no",
) -> None:
    """
    Train a segmenter in place.

    Args:
        model ([`Segmenter`]): on the device where training is to run.
        data ([`DownstreamSet`]): the labelled images.
        mode (`str`):
            `"finetune"` trains everything; `"probe"` the head, on tokens of the frozen encoder, which lie on the
            device for all four flips (16 T D bytes an image: 2.4 MB for ViT-B at 224 pixels).
        seed (`int`): draws order and flips, with the step's number.
        steps (`int`): optimiser steps.
        batch_size (`int`): images a step.
        learning_rate (`float`): peak learning rate.
        mixed_precision (`str`, *optional*, defaults to `"no"`):
            `"bf16"` fine-tunes under bfloat16 autocast. The loss, a probe and what judges stay float32.
    """
    device = next(model.parameters()).device
    half = mixed_precision == "bf16" and mode == "finetune"
    if half and device.type == "cpu":
        model.encoder.set_attn_implementation("eager")  # faster by far there than the fused one
    inputs, masks = all_flips(data.images).to(device), all_flips(data.masks).to(device)
    trained: nn.Module = model
    if mode == "probe":
        inputs, trained = torch.cat(list(_tokens_in_batches(model, inputs, batch_size))), model.head
    trained.train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARMUP_SHARE * steps), steps)
    with tqdm(total=steps * batch_size, desc=f"{mode}, seed {seed}", unit="img", leave=False) as bar:
        for step in range(steps):
            rows = send(torch.from_numpy(batch_rows(len(data), batch_size, seed, step)), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = trained(inputs[rows])
            loss = segmentation_loss(logits.float(), masks[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            bar.update(batch_size)
    model.eval()


def score(model: Segmenter, data: DownstreamSet, batch_size: int) -> dict:
    """What [`MeanIoU.compute`] returns for a segmenter on a split; no image is weighted, every pixel counts once."""
    metric = MeanIoU(num_labels=NUM_CLASSES)
    for predictions, masks in _predictions(model, data, batch_size):
        metric.add_batch(predictions=predictions, references=masks)
    return metric.compute()


def image_confusions(model: Segmenter, data: DownstreamSet, batch_size: int) -> np.ndarray:
    """The confusion matrix of every image, `(N, C, C)` int64, rows are references; their sum is that of [`score`]."""
    batches = _predictions(model, data, batch_size)
    return np.stack([confusion_matrix(*pair, NUM_CLASSES) for batch in batches for pair in zip(*batch, strict=True)])


@torch.no_grad()
def _predictions(model: Segmenter, data: DownstreamSet, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Predicted and true classes, `(B, S, S)` each, batch by batch."""
    device = next(model.parameters()).device
    for images, masks in zip(data.images.split(batch_size), data.masks.split(batch_size), strict=True):
        yield model(images.to(device)).argmax(dim=1).cpu().numpy(), masks.numpy()


@torch.no_grad()
def _tokens_in_batches(model: Segmenter, images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    for batch in images.split(batch_size):
        yield model.tokens(batch)
