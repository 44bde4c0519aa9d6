"""
Burned-in letters in a patch, of any ink and on any ground, found by a small convolutional network.

Glints are as bright and as thin as strokes, and no rule by brightness, colour or width that we tried tells them apart
on tissue. The network has learnt it from letters that `recipes/train_letters.py` draws over generated pictures, of
which none is real; its weights lie beside this file. It judges a cell of 4 x 4 pixels by the 33 x 33 around it.

Shapes: `B` patches, `S` their side.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d


WEIGHTS = Path(__file__).with_name("letters.safetensors")
CELL = 4  # pixels
SURE = 0.9  # probability from which a cell is counted; set by eye on contact sheets
LEAST_SIDE = 48  # pixels, below which a patch is not halved: letters of up to half a patch are known at 64


class LetterNet(nn.Sequential):
    """`(B, 3, S, S)`, scaled by [`scaled`], to `(B, 1, S / 4, S / 4)` logits of letters in or beside a cell."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )


def scaled(pixels: Tensor) -> Tensor:
    """Levels of 0 to 255 as the network takes them, float32."""
    return (pixels.float() - 128) / 64


@torch.inference_mode()
def letters(pixels: Tensor) -> Tensor:
    """
    Share of each patch in or beside letters: `(B, 3, S, S)` uint8 to `(B,)` float32 on its device.

    A patch is looked at as it is and in halves of its size, and the largest share counts.
    """
    network, levels, shares = _network(pixels.device), scaled(pixels), []
    while True:
        shares.append((network(levels).sigmoid() > SURE).float().mean((1, 2, 3)))
        if levels.shape[-1] < 2 * LEAST_SIDE:
            return torch.stack(shares).amax(0)
        levels = avg_pool2d(levels, 2)


def weights_hash() -> str:
    """sha256 of the weights, on which what is found depends."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


@cache
def _network(device: torch.device) -> LetterNet:
    network = LetterNet()
    network.load_state_dict(load_file(WEIGHTS))
    return network.float().to(device).requires_grad_(False).eval()
