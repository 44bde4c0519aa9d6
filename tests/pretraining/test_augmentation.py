"""Each step against Pillow on the same image, and against a float reference where Pillow rounds or approximates."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter1d

from optidel_hf.pretraining.augmentation import BLUR_RADIUS, augment, blur, colour, crop_resize
from optidel_hf.pretraining.draws import Augmentation, draw


NEUTRAL = torch.tensor([1.0, 1, 1, 0])
SIMCLR = Augmentation(views=2, min_scale=0.08, jitter=1.0, grey=0.2, blur=0.5)


def smooth(count: int, side: int, low: int = 60, high: int = 196) -> torch.Tensor:
    """Smooth noise, `(count, 3, side, side)` uint8; by default bicubic overshoot fits in 0 to 255."""
    small = torch.randint(low, high, (count, 3, side // 3, side // 3), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small.float(), size=side, mode="bilinear").to(torch.uint8)


def _pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _array(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize(("side", "size"), [(96, 32), (24, 48), (50, 33)], ids=["shrunk", "enlarged", "mixed"])
def test_crops_equal_pillow(side: int, size: int) -> None:
    images = smooth(6, side)
    draws = draw(2, 0, 0, 6, augmentation=Augmentation(), n_tokens=1)
    views = crop_resize(images, draws.box[:, 0, 0], draws.flip[:, 0, 0], size)
    assert draws.flip.any()
    for image, box, flip, view in zip(images, draws.box[:, 0, 0], draws.flip[:, 0, 0], views):
        x, y, width, height = (box * side).tolist()
        cut = {"size": (size, size), "resample": Image.Resampling.BICUBIC, "box": (x, y, x + width, y + height)}
        view = view.flip(-1) if flip else view
        # Pillow's float mode differs by float32 rounding; with 8 bits it rounds after each of its two passes.
        exact = np.stack([np.array(Image.fromarray(channel.float().numpy()).resize(**cut)) for channel in image])
        np.testing.assert_allclose(view, exact.clip(0, 255), atol=0.01)
        np.testing.assert_allclose(view, _array(_pillow(image).resize(**cut)), atol=2)


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    images = smooth(2, 30)
    box, flip = torch.tensor([[0.0, 0, 1, 1]] * 2), torch.tensor([False, True])
    views = crop_resize(images, box, flip, 30)
    torch.testing.assert_close(views[0], images[0].float())
    torch.testing.assert_close(views[1], images[1].flip(-1).float())


@pytest.mark.parametrize("place", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_enhancement_equals_pillow(place: int) -> None:
    enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[place]
    images = smooth(5, 24, 0, 256)
    factors = NEUTRAL.repeat(5, 1)
    factors[:, place] = torch.tensor([0.2, 0.7, 1.0, 1.4, 1.8])
    changed = colour(images.float(), factors, torch.zeros(5, dtype=torch.bool))
    for image, factor, view in zip(images, factors[:, place], changed):
        np.testing.assert_allclose(view, _array(enhance(_pillow(image)).enhance(factor.item())), atol=1.5)


def test_hue_equals_colorsys() -> None:
    images = smooth(4, 9, 0, 256)
    images[:, :, 0, 0] = torch.tensor([[0], [90], [255], [7]])  # greys, black and white have no hue
    factors = NEUTRAL.repeat(4, 1)
    factors[:, 3] = torch.tensor([-0.2, -0.05, 0.1, 0.2])
    changed = colour(images.float(), factors, torch.zeros(4, dtype=torch.bool))
    for image, turn, view in zip(images, factors[:, 3].tolist(), changed):
        for pixel, found in zip(image.flatten(1).T.tolist(), view.flatten(1).T):
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
            np.testing.assert_allclose(found, 255 * np.array(expected), atol=0.01)


def test_grey_equals_pillow() -> None:
    images = smooth(2, 24, 0, 256)
    changed = colour(images.float(), NEUTRAL.repeat(2, 1), torch.tensor([True, False]))
    np.testing.assert_allclose(changed[0], _array(_pillow(images[0]).convert("L").convert("RGB")), atol=1)
    torch.testing.assert_close(changed[1], images[1].float(), atol=0.01, rtol=0)


def test_blur_equals_a_gaussian_in_units_of_pillow() -> None:
    sigma = torch.tensor([0.0, 0.1, 0.6, 1.3, 2.0])
    images = smooth(5, 30, 0, 256)
    blurred = blur(images.float(), sigma)
    torch.testing.assert_close(blurred[0], images[0].float())
    for image, width, view in zip(images[1:], sigma[1:].tolist(), blurred[1:]):
        expected = image.numpy().astype(np.float64)
        for axis in (1, 2):
            expected = gaussian_filter1d(expected, width, axis=axis, mode="nearest", radius=BLUR_RADIUS)
        np.testing.assert_allclose(view, expected, atol=0.01)
        # Pillow approximates a Gaussian by three box filters.
        pillow = _array(_pillow(image).filter(ImageFilter.GaussianBlur(width)))
        assert np.abs(view - pillow).mean() <= 0.2 * np.abs(pillow - image.numpy()).mean() + 0.01


def test_images_are_augmented_alone_as_in_a_batch() -> None:
    images = smooth(6, 40)
    draws = draw(0, 0, 0, 6, augmentation=SIMCLR, n_tokens=1)
    together = augment(images, draws, SIMCLR, 32)
    assert [view.shape for view in together] == [(6, 3, 32, 32)] * 2
    assert (together[0] - together[1]).abs().mean() > 10
    for place in range(6):
        alone = augment(images[place : place + 1], draw(0, 0, place, 1, augmentation=SIMCLR, n_tokens=1), SIMCLR, 32)
        for view, one in zip(together, alone):
            torch.testing.assert_close(view[place], one[0], atol=1e-3, rtol=0)


def test_views_differ_by_what_was_asked_for_alone() -> None:
    images = smooth(6, 40)
    plain = Augmentation(min_scale=1.0, flip=False)
    draws = draw(0, 0, 0, 6, augmentation=plain, n_tokens=1)
    (view,) = augment(images, draws, plain, 40)
    torch.testing.assert_close(view, images.float())


def test_crops_overshoot_no_pixel() -> None:
    squares = (torch.arange(24) // 3 % 2).bool()
    images = 255 * (squares ^ squares[:, None]).to(torch.uint8).expand(1, 3, 24, 24)
    view = crop_resize(images, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([False]), 72)
    assert (view.min(), view.max()) == (0, 255)  # bicubic weights alone give -30 to 285
