from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from optidel_hf.errors import UserError
from optidel_hf.pretraining.batches import (
    ResidentImages,
    crop_resize,
    draw_batch,
    image_processor,
    load_resident,
    sample_order,
)


DRAW = {"batch_size": 8, "n_images": 5, "n_tokens": 16}
CPU = torch.device("cpu")


def _noise_images(count: int, side: int) -> torch.Tensor:
    """Smooth noise, `(count, 3, side, side)` uint8, far enough from 0 and 255 for bicubic overshoot to fit in."""
    small = torch.randint(60, 196, (count, 3, side // 3, side // 3), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(small.float(), size=side, mode="bilinear").to(torch.uint8)


def test_draws_are_a_function_of_seed_and_step() -> None:
    first, again = draw_batch(3, 7, **DRAW), draw_batch(3, 7, **DRAW)
    for name in ("index", "box", "flip", "noise"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    for other in (draw_batch(4, 7, **DRAW), draw_batch(3, 8, **DRAW)):
        assert not torch.equal(first.box, other.box)
        assert not torch.equal(first.noise, other.noise)


def test_slices_make_up_the_batch() -> None:
    whole = draw_batch(0, 0, **DRAW)
    parts = [whole.part(number, 4, CPU) for number in range(4)]
    for name in ("index", "box", "flip", "noise"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_every_epoch_is_a_permutation_whatever_the_batches() -> None:
    stream = sample_order(1, 0, 35, 7)
    for epoch in stream.reshape(5, 7):
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in stream.reshape(5, 7)}) > 1
    pieces = [sample_order(1, start, 5, 7) for start in range(0, 35, 5)]
    np.testing.assert_array_equal(np.concatenate(pieces), stream)


def test_crops_follow_the_paper() -> None:
    box = draw_batch(0, 0, batch_size=4000, n_images=9, n_tokens=1).box
    x, y, width, height = box.unbind(1)
    assert box.min() >= 0
    assert max((x + width).max(), (y + height).max()) <= 1 + 1e-6
    area, aspect = width * height, width / height
    assert 0.2 - 1e-6 < area.min() < 0.21
    assert 0.9 < area.max() <= 1
    assert 3 / 4 - 1e-5 <= aspect.min() < 0.76
    assert 1.32 < aspect.max() <= 4 / 3 + 1e-5
    assert torch.equal(draw_batch(0, 0, **DRAW, min_crop_scale=1.0).box, torch.tensor([[0.0, 0, 1, 1]] * 8))


def test_half_of_the_views_are_mirrored_or_none() -> None:
    many = {"batch_size": 4000, "n_images": 9, "n_tokens": 1}
    assert abs(draw_batch(0, 0, **many).flip.float().mean() - 0.5) < 0.03
    assert not draw_batch(0, 0, **many, flip=False).flip.any()


@pytest.mark.parametrize(("side", "size"), [(96, 32), (24, 48), (50, 33)], ids=["shrunk", "enlarged", "mixed"])
def test_crops_equal_pillow(side: int, size: int) -> None:
    images = _noise_images(6, side)
    draws = draw_batch(2, 0, batch_size=6, n_images=6, n_tokens=1)
    views = crop_resize(images, draws.box, draws.flip, size)
    for image, box, flip, view in zip(images.numpy(), draws.box, draws.flip, views):
        x, y, width, height = (box * side).tolist()
        cut = {"size": (size, size), "resample": PILImage.Resampling.BICUBIC, "box": (x, y, x + width, y + height)}
        view = view.flip(-1) if flip else view
        # Pillow's float mode differs by float32 rounding; with 8 bits it rounds after each of its two passes.
        exact = np.stack([np.array(PILImage.fromarray(channel.astype(np.float32)).resize(**cut)) for channel in image])
        np.testing.assert_allclose(view, exact.clip(0, 255), atol=0.01)
        rounded = np.array(PILImage.fromarray(image.transpose(1, 2, 0)).resize(**cut)).transpose(2, 0, 1)
        np.testing.assert_allclose(view, rounded, atol=2)


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    images = _noise_images(2, 30)
    box, flip = torch.tensor([[0.0, 0, 1, 1]] * 2), torch.tensor([False, True])
    views = crop_resize(images, box, flip, 30)
    torch.testing.assert_close(views[0], images[0].float())
    torch.testing.assert_close(views[1], images[1].flip(-1).float())


def test_views_are_what_the_saved_processor_makes() -> None:
    images = _noise_images(3, 32)
    draws = draw_batch(0, 0, batch_size=3, n_images=3, n_tokens=1, min_crop_scale=1.0, flip=False)
    views = ResidentImages(images, CPU).views(draws, 32)
    pictures = [PILImage.fromarray(images[row].permute(1, 2, 0).numpy()) for row in draws.index]
    expected = image_processor(32)(pictures, return_tensors="pt").pixel_values
    torch.testing.assert_close(views, expected, atol=1e-5, rtol=0)


def _png(array: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _dataset(values: list[dict[str, object]]) -> Dataset:
    return Dataset.from_dict({"image": values}, features=Features({"image": Image(decode=False)}))


def test_loading_cuts_centred_squares_and_names_what_it_leaves_out(caplog) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    broken = {"bytes": b"no image", "path": None}
    loaded = load_resident(_dataset([broken, _png(pixels), _png(pixels[:, ::-1].copy())]), "image", 16)
    assert loaded.shape == (2, 3, 16, 16)
    square = PILImage.fromarray(pixels).resize((16, 16), PILImage.Resampling.BICUBIC, box=(10, 0, 40, 30))
    np.testing.assert_array_equal(loaded[0].permute(1, 2, 0).numpy(), np.array(square))
    assert caplog.messages == ["row 0 of column 'image' is left out: not an image that Pillow can read"]


def test_a_dataset_without_a_readable_image_is_refused() -> None:
    with pytest.raises(UserError, match="None of the 1 images in column 'image'"):
        load_resident(_dataset([{"bytes": b"", "path": None}]), "image", 16)
