"""
What a masked autoencoder sees in its holes: a grid of pictures, one image a row.

    input | visible patches | prediction in the hidden patches, beside the visible ones

With normalised targets the model predicts each patch up to its mean and deviation, which the picture takes from the
input, as the authors' own pictures do.

Shapes: `B` images, `L` patches, `D` values in a patch, `T` side of a model input.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD


GAP = 2  # white pixels between pictures


@torch.no_grad()
def reconstruct(model: ViTMAEForPreTraining, views: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    The three columns of the grid.

    Args:
        model (`ViTMAEForPreTraining`): the autoencoder.
        views (`torch.Tensor` of shape `(B, 3, T, T)`): normalised images.
        noise (`torch.Tensor` of shape `(B, L)`): the patches with the smallest values stay visible.

    Returns:
        `torch.Tensor` of shape `(3, B, 3, T, T)`: the input, the input with zeros where it is hidden, and the
        reconstruction, all normalised as `views` are.
    """
    output = model(views, noise=noise)
    patches, predicted = model.patchify(views), output.logits.float()  # (B, L, D)
    if model.config.norm_pix_loss:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    hidden = output.mask[..., None]  # (B, L, 1), 1 where hidden
    visible = patches * (1 - hidden)
    return torch.stack([views, model.unpatchify(visible), model.unpatchify(visible + predicted * hidden)])


def draw_grid(columns: torch.Tensor) -> Image.Image:
    """
    Args:
        columns (`torch.Tensor` of shape `(C, B, 3, T, T)`): pictures, column by column, normalised as for a model.

    Returns:
        `PIL.Image.Image`: `B` rows of `C` pictures.
    """
    mean, std = (torch.tensor(values, device=columns.device).view(3, 1, 1) for values in (MEAN, STD))
    pixels = (255 * (columns * std + mean)).round().clamp(0, 255).to(torch.uint8).cpu()
    framed = torch.nn.functional.pad(pixels, (0, GAP, 0, GAP), value=255)
    count, rows, _, height, width = framed.shape
    grid = framed.permute(1, 3, 0, 4, 2).reshape(rows * height, count * width, 3)
    return Image.fromarray(np.ascontiguousarray(grid[:-GAP, :-GAP]))
