"""
What spoils a key patch, whatever it shows: flat borders, burned-in text, saturation and defocus, each in [0, 1].

Measured on the 8-bit patch as it is stored, by shifts, comparisons and, for letters, a network of 21,000 weights, so
that a batch costs little beside one forward pass and runs on the same device. The thresholds were set by eye on
contact sheets, without masks.

Shapes: `B` patches, `S` their side, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from optidel_hf.curation.letters import letters


NUISANCES = ("border", "text", "saturation", "defocus")
FLAT = 8  # levels of 255 about a border's own, which JPEG spreads it by
FLAT_SPREAD = 1.5  # standard deviation of a border's levels: a shaded surface has more
DRAWN = 2  # range of levels in a window of a drawn box: the smoothest surface has more
WHITE = 250  # level at which a channel counts as clipped
COLOURED = 40  # levels between the channels of what is coloured
WINDOW = 7  # pixels
BLUR = 9  # pixels: the low-pass filter of Crete et al.


@torch.inference_mode()
def nuisances(images: Tensor) -> dict[str, Tensor]:
    """
    The nuisance columns of `(B, S, S, C)` uint8 patches, float32 of shape `(B,)` on their device.

    - `border`: share of the pixels in a flat frame of any level (black, white, grey) around the picture.
    - `text`: share of the pixels in or beside burned-in letters, or in a drawn box of one colour, whichever is more.
      Above 0.02 it is text or an overlay more often than not. Letters below some 5 pixels, and single ones at a
      patch's edge, are often not found.
    - `saturation`: share of the pixels at which all channels are clipped at white.
    - `defocus`: the blur effect, 0 for sharp and 1 for blurred; also high where a small crop was enlarged.
    """
    pixels = images.permute(0, 3, 1, 2).contiguous()
    level = pixels.float().mean(1)
    return {
        "border": border(pixels, level),
        "text": text(pixels, level),
        "saturation": (pixels.amin(1) >= WHITE).float().mean((1, 2)),
        "defocus": torch.maximum(blur_effect(level), blur_effect(level.mT)),
    }


def border(pixels: Tensor, level: Tensor) -> Tensor:
    """
    Share of each patch in a flat frame: `(B, C, S, S)` uint8 and its mean over channels to `(B,)`.

    The picture inside a frame is convex (a rectangle, a disc, an octagon), so a frame that enters a square patch
    covers one of its corners, and from each of its pixels a straight line along a row or a column leaves the patch
    without crossing the picture. So: pixels near a corner's colour, in unbroken runs from an edge.
    """
    frame = torch.zeros_like(level, dtype=torch.bool)
    for corner in (pixels[..., :3, :3], pixels[..., :3, -3:], pixels[..., -3:, :3], pixels[..., -3:, -3:]):
        colour = corner.flatten(2).median(-1).values[..., None, None].int()
        lowest, highest = (colour - FLAT).clamp(0, 255).byte(), (colour + FLAT).clamp(0, 255).byte()
        red, green, blue = (pixels - lowest <= highest - lowest).unbind(1)  # 8 bits wrap: what is lower becomes high
        near = red & green & blue
        frame |= near & (_variance(level, near) <= FLAT_SPREAD**2)[:, None, None]
    runs = [_run(frame), _run(frame.mT).mT, _run(frame.flip(2)).flip(2), _run(frame.mT.flip(2)).flip(2).mT]
    return torch.stack(runs).any(0).float().mean((1, 2))


def _variance(level: Tensor, where: Tensor) -> Tensor:
    """Variance of each patch's `level` over the pixels `where`: `(B, S, S)` twice to `(B,)`."""
    weight, offset = where.flatten(1).float(), level.flatten(1) - 128
    count = weight.sum(1).clamp_min(1)
    mean = torch.linalg.vecdot(weight, offset) / count
    return torch.linalg.vecdot(weight, offset.square()) / count - mean.square()


def _run(flat: Tensor) -> Tensor:
    """Where no pixel before this one in its row is anything but flat: `(B, S, S)` bool, the same."""
    first = torch.where(flat.all(-1), flat.shape[-1], flat.byte().argmin(-1))
    return torch.arange(flat.shape[-1], device=flat.device) < first.unsqueeze(-1)


def text(pixels: Tensor, level: Tensor) -> Tensor:
    """Share of each patch in letters or in boxes that were drawn on it: arguments and result as for [`border`]."""
    return torch.maximum(letters(pixels), _boxes(pixels, level.round().byte()))


def _boxes(pixels: Tensor, level: Tensor) -> Tensor:
    """Share of each patch in windows of one colour that is none of grey."""
    chroma = pixels.amax(1) - pixels.amin(1)
    least = _erode(chroma)
    flat = (_dilate(level) - _erode(level) <= DRAWN) & (_dilate(chroma) - least <= DRAWN)
    return _dilate((flat & (least >= COLOURED)).byte()).float().mean((1, 2))


def _dilate(values: Tensor) -> Tensor:
    """Largest value in windows of 7 x 7 pixels: `(B, S, S)` uint8, the same."""
    return _extreme(values, torch.maximum, 0)


def _erode(values: Tensor) -> Tensor:
    """Smallest value in windows of 7 x 7 pixels: `(B, S, S)` uint8, the same."""
    return _extreme(values, torch.minimum, 255)


def _extreme(values: Tensor, extreme: Callable[[Tensor, Tensor], Tensor], outside: int) -> Tensor:
    """Windows of 2, 4 and then 7 pixels, down the columns and then along the rows."""
    padded = pad(values, [WINDOW // 2] * 4, value=outside)
    for dim in (1, 2):
        for shift in (1, 2, 3):
            length = padded.shape[dim] - shift
            padded = extreme(padded.narrow(dim, 0, length), padded.narrow(dim, shift, length))
    return padded


def blur_effect(level: Tensor) -> Tensor:
    """
    The blur effect along rows of Crete et al. ("The blur effect", SPIE 2007): `(B, S, S)` to `(B,)`.

    What share of the differences between neighbours a strong low-pass filter leaves: a blurred patch loses little. It
    is 1 for a patch without any difference.
    """
    reach = min(BLUR // 2, (level.shape[-1] - 2) // 2)  # of the filter, which is shorter on the smallest patches
    smooth = avg_pool2d(level, (1, 2 * reach + 1), stride=1)  # only where the whole filter lies inside
    before = level[..., reach:-reach].diff(dim=-1).abs()
    lost = (before - smooth.diff(dim=-1).abs()).clamp_min(0)
    total = before.sum((1, 2))
    return torch.where(total > 0, 1 - lost.sum((1, 2)) / total.clamp_min(1e-6), 1.0)
