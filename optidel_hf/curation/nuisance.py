"""
What spoils a key patch, whatever it shows: flat borders, burned-in text, saturation and defocus, each in [0, 1].

Measured on the 8-bit patch as it is stored, by shifts and comparisons alone, so that a batch costs little beside one
forward pass and runs on the same device. The thresholds were set by eye on contact sheets, without masks.

Shapes: `B` patches, `S` their side, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad


NUISANCES = ("border", "text", "saturation", "defocus")
FLAT = 8  # levels of 255 about a border's own, which JPEG spreads it by
FLAT_SPREAD = 1.5  # standard deviation of a border's levels: a shaded surface has more
DRAWN = 2  # range of levels in a window of a drawn box: the smoothest surface has more
WHITE = 250  # level at which a channel counts as clipped
INK = 60  # levels by which a stroke stands out, or a gap between strokes stands back
PAGE = 0.35  # of a patch, in letters: glints hardly ever lie so densely
GREY = 16  # levels between the channels of what is colourless
MOSTLY = 0.9  # of a window's pixels
COLOURED = 40  # levels between the channels of what is coloured
COLOURLESS = 2  # at most as many of a patch without any colour, such as a radiograph's
BLACK = 24  # highest level of a ground on which strokes without colour are letters
WINDOW = 7  # pixels: letters are thinner
BLUR = 9  # pixels: the low-pass filter of Crete et al.


@torch.inference_mode()
def nuisances(images: Tensor) -> dict[str, Tensor]:
    """
    The nuisance columns of `(B, S, S, C)` uint8 patches, float32 of shape `(B,)` on their device.

    - `border`: share of the pixels in a flat frame of any level (black, white, grey) around the picture.
    - `text`: share of the pixels in or beside thin bright strokes on a flat colourless ground, or in a drawn box of
      one colour; or, on any ground, beside bright strokes and dark gaps at once, if that is over a third of the patch.
      Above 0.02 it is text or an overlay more often than not. Dark letters, few letters on the picture itself, and
      in a picture without colour those on anything but black, are not found.
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
    """
    Share of each patch in strokes and boxes that were drawn on it: arguments and result as for [`border`].

    A glint is as bright and as thin as a stroke. What tells letters on the picture is that they lie so closely that
    there are gaps between them as thin and as deep as they are, all over the patch. In a patch without any colour
    grey says nothing: there strokes count on a black ground alone, where scanners burn their letters in.
    """
    level = level.round().byte()
    chroma = pixels.amax(1) - pixels.amin(1)
    darkest, brightest = _erode(level), _dilate(level)
    ground = _dilate(darkest)  # the opening: of strokes thinner than the window it leaves what is around them
    bright, dark = level - ground >= INK, _erode(brightest) - level >= INK
    grey = _window_mean((chroma <= GREY).float())
    plain = (ground <= BLACK) | (chroma.amax((1, 2)) > COLOURLESS)[:, None, None]
    strokes = bright & plain & (_dilate(ground) - _erode(ground) <= FLAT) & (grey >= MOSTLY)
    dullest = _erode(chroma)
    boxes = (brightest - darkest <= DRAWN) & (_dilate(chroma) - dullest <= DRAWN) & (dullest >= COLOURED)
    drawn = _dilate((strokes | boxes).byte()).float().mean((1, 2))
    page = (_dilate(bright.byte()) & _dilate(dark.byte())).float().mean((1, 2))
    return torch.where(page >= PAGE, torch.maximum(drawn, page), drawn)


def _window_mean(values: Tensor) -> Tensor:
    """Mean over windows of 7 x 7 pixels, of those inside the patch: `(B, S, S)` float32, the same."""
    for _ in range(2):  # along the rows, then down the columns
        values = avg_pool2d(values, (1, WINDOW), stride=1, padding=(0, WINDOW // 2), count_include_pad=False).mT
    return values


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
