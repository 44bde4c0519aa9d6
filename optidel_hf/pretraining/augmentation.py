"""
Augmentation of a whole batch on the device it lies on, as Pillow would do it image by image.

A random resized crop is two matrix products,

    out = R_y x R_x^T

where the rows of `R_y` and `R_x` are Pillow's antialiased bicubic weights for that image's own crop; a Gaussian blur
is two more, with that image's own width. Colour (Chen et al. 2020, appendix A) is brightness, contrast, saturation and
hue in this order, then grey. Which crop, colour and blur an image gets is told by
[`~optidel_hf.pretraining.draws.Draws`].

A mosaic's tiles may be cut one by one: each is cropped, mirrored and resized within itself, so that no crop runs over
a seam and every seam of a view lies where the grid has it; or one tile alone fills the view. Colours come after that.

Shapes: `B` images, `M` tiles of each (1: the image itself), `S` side of a stored tile, `T` side of a view. Pixels are
float32 in 0 to 255.
"""

from __future__ import annotations

import math

import torch

from optidel_hf.pretraining.draws import SIGMA, Augmentation, Draws


GREY_WEIGHTS = 0.299, 0.587, 0.114  # ITU-R 601-2 luma, Pillow's mode "L"
BLUR_RADIUS = round(4 * SIGMA[1])  # pixels; what lies farther out weighs under 1e-4


def augment(images: torch.Tensor, draws: Draws, augmentation: Augmentation, size: int) -> list[torch.Tensor]:
    """
    Make the views of a batch.

    Args:
        images (`torch.Tensor` of shape `(B * M, 3, S, S)`): RGB, uint8; an image's tiles follow one another.
        draws ([`~optidel_hf.pretraining.draws.Draws`]): on the images' device.
        augmentation ([`~optidel_hf.pretraining.draws.Augmentation`]): what they were drawn for.
        size (`int`): side `T` of a view.

    Returns:
        `list[torch.Tensor]`: the `V` views, each `(B, 3, T, T)`, float32 in 0 to 255.
    """
    views = []
    for v in range(augmentation.views):
        view = crop_tiles(images, draws.box[:, v], draws.flip[:, v], draws.alone, size)
        if augmentation.jitter or augmentation.grey:
            view = colour(view, draws.factors[:, v], draws.grey[:, v])
        if augmentation.blur:
            view = blur(view, draws.sigma[:, v])
        views.append(view)
    return views


def crop_tiles(
    tiles: torch.Tensor, box: torch.Tensor, flip: torch.Tensor, alone: torch.Tensor, size: int
) -> torch.Tensor:
    """
    Cut one crop from each tile and put those of an image together, or enlarge the first one alone.

    Args:
        tiles (`torch.Tensor` of shape `(B * M, 3, S, S)`): uint8 or float, in 0 to 255.
        box (`torch.Tensor` of shape `(B, M, 4)`): x, y, width, height in shares of the tile's side.
        flip (`torch.Tensor` of shape `(B, M)`): bool.
        alone (`torch.Tensor` of shape `(B,)`): which images show their first tile alone, bool.
        size (`int`): side `T` of the result, a multiple of the grid's side.

    Returns:
        `torch.Tensor` of shape `(B, 3, T, T)`, float32 in 0 to 255: as exact as [`crop_resize`].
    """
    side = math.isqrt(box.shape[1])
    cut = crop_resize(tiles, box.flatten(0, 1), flip.flatten(), size // side)  # (B * M, 3, T / side, T / side)
    if side == 1:
        return cut
    rows = cut.unflatten(0, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, side, T / side, side, T / side)
    # Both are made for all images: to choose first, a GPU would have to wait for the choice.
    enlarged = crop_resize(tiles[:: side * side], box[:, 0], flip[:, 0], size)
    return torch.where(alone[:, None, None, None], enlarged, rows.reshape(enlarged.shape))


def crop_resize(images: torch.Tensor, box: torch.Tensor, flip: torch.Tensor, size: int) -> torch.Tensor:
    """
    Cut one crop from each image, resize it and mirror some, as `PIL.Image.resize(box=..., BICUBIC)` does.

    Args:
        images (`torch.Tensor` of shape `(B, 3, S, S)`): uint8 or float, in 0 to 255.
        box (`torch.Tensor` of shape `(B, 4)`): x, y, width, height in shares of the side.
        flip (`torch.Tensor` of shape `(B,)`): bool.
        size (`int`): side `T` of the result.

    Returns:
        `torch.Tensor` of shape `(B, 3, T, T)`, float32 in 0 to 255: within 0.01 of Pillow's float mode, and of its
        8-bit modes within 2 where nothing overshoots, for these round and clip after each of two passes.
    """
    side = images.shape[-1]
    x, y, width, height = (box * side).unbind(dim=1)
    across = _resize_weights(x, width, side, size)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    down = _resize_weights(y, height, side, size)
    # Bicubic weights have negative lobes: beside an edge the product overshoots the range of a pixel.
    return (down[:, None] @ images.float() @ across[:, None].mT).clamp(0, 255)


def colour(images: torch.Tensor, factors: torch.Tensor, grey: torch.Tensor) -> torch.Tensor:
    """
    Change brightness, contrast, saturation and hue, then take the colour from some.

    Args:
        images (`torch.Tensor` of shape `(B, 3, T, T)`): float32 in 0 to 255.
        factors (`torch.Tensor` of shape `(B, 4)`): as in [`~optidel_hf.pretraining.draws.Draws`].
        grey (`torch.Tensor` of shape `(B,)`): bool.

    Returns:
        `torch.Tensor` of shape `(B, 3, T, T)`: brightness, contrast and saturation each within 1.5 of Pillow's
        `ImageEnhance`, which cuts off decimals after each and rounds greys before; hue within 0.01 of `colorsys`.
    """
    brightness, contrast, saturation, hue = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp(0, 255)
    images = _blend(_luma(images).mean(dim=(2, 3), keepdim=True), images, contrast)
    images = _blend(_luma(images), images, saturation)
    images = _turn_hue(images, hue)
    return torch.where(grey[:, None, None, None], _luma(images), images)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """
    Blur each image by its own Gaussian; the border's pixels go on outside.

    Args:
        images (`torch.Tensor` of shape `(B, 3, T, T)`): float32.
        sigma (`torch.Tensor` of shape `(B,)`): standard deviation in pixels; 0 leaves an image as it is.

    Returns:
        `torch.Tensor` of shape `(B, 3, T, T)`: equal within 0.01 to a Gaussian that is cut off at 8 pixels.
        Pillow's `GaussianBlur` approximates one by three box filters and differs from it by 1 on average.
    """
    weights = _blur_weights(sigma, images.shape[-1])[:, None]
    return weights @ images @ weights.mT


def _resize_weights(start: torch.Tensor, length: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """
    Rows `(B, target, source)` of weights that resample `[start, start + length)` of a line of `source` pixels to
    `target` pixels. Where that shrinks, the kernel widens with the scale, which is what keeps out aliasing.
    """
    scale = (length / target)[:, None, None]  # (B, 1, 1)
    middle = start[:, None, None] + (torch.arange(target, device=start.device)[:, None] + 0.5) * scale
    distance = torch.arange(source, device=start.device) + 0.5 - middle
    weights = _bicubic((distance / scale.clamp(min=1)).abs())
    return weights / weights.sum(dim=-1, keepdim=True)


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic kernel with a = -1/2 at distances `x` >= 0, as in Pillow."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _blur_weights(sigma: torch.Tensor, size: int) -> torch.Tensor:
    """Rows `(B, size, size)` of Gaussian weights; those outside are the border pixel's."""
    place = torch.arange(-BLUR_RADIUS, size + BLUR_RADIUS, device=sigma.device)
    distance = place - torch.arange(size, device=sigma.device)[:, None]
    # Far below a pixel's width the Gaussian is 1 in the middle and 0 beside it, which is no blur.
    weights = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None, None]).square())
    weights = weights * (distance.abs() <= BLUR_RADIUS)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    before, within, after = weights.split([BLUR_RADIUS, size, BLUR_RADIUS], dim=-1)
    within[..., 0] += before.sum(dim=-1)
    within[..., -1] += after.sum(dim=-1)
    return within


def _luma(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.unbind(1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue)[:, None]


def _blend(neutral: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(neutral.expand_as(images), images, factor).clamp(0, 255)


def _turn_hue(images: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue by shares of the full circle; value and saturation, as in `colorsys`, stay."""
    value, lightest = images.max(dim=1, keepdim=True)
    chroma = value - images.min(dim=1, keepdim=True).values
    red, green, blue = images.split(1, dim=1)
    ahead = torch.where(lightest == 0, green - blue, torch.where(lightest == 1, blue - red, red - green))
    sector = 2 * lightest + ahead / chroma.clamp(min=1e-6)
    # Channel n of (5, 3, 1) falls from the value by the chroma over two of the circle's six sectors.
    offset = torch.arange(5, 0, -2, device=images.device).view(3, 1, 1)
    k = (offset + sector + 6 * turn) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
