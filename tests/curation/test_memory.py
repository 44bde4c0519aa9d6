"""Memory: the model, a device batch and one largest image; the number of masks and of images adds nothing."""

from __future__ import annotations

import ctypes
import gc
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import SamPatchExtractor
from optidel_hf.images import Opened


MARK = Path("/proc/self/clear_refs")
SLACK = 32  # MiB: what allocators keep; each test would need several times as much if anything were kept

pytestmark = pytest.mark.skipif(not MARK.exists(), reason="the peak can be set back on Linux only")


def rise(run: Callable[[], object]) -> float:
    """How far resident memory rises at most while `run` runs, in MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    MARK.write_text("5")
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(which: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{which}:")[1].split()[0]) / 1024


def png(width: int, height: int) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_thousand_masks_take_no_more_than_a_few(tiny_sam: str) -> None:
    image = Opened.whole(Image.effect_noise((2400, 2400), 90).convert("RGB"))
    loose = {"box_nms_thresh": 1.0, "stability_score_thresh": 0.0, "min_area": 0.0, "max_area": 1.0}
    many, few = (MaskGenerator(PatchConfig(sam=tiny_sam, points_per_side=side, **loose), "cpu") for side in (20, 2))
    few([image])  # warms up
    ceiling = rise(lambda: few([image]))
    survivors: list[int] = []
    assert rise(lambda: survivors.append(len(many([image])[0].boxes))) < ceiling + SLACK
    assert survivors[0] > 1000


def test_many_images_take_no_more_than_a_few(tiny_sam: str) -> None:
    # 320 here: 10,000 take a minute. If they stayed in memory, decoded, they would be 110 MiB.
    extractor = SamPatchExtractor(PatchConfig(sam=tiny_sam, points_per_side=1, images_per_batch=8), "cpu")
    batch = {"image": [png(300, 300)] * 40, "source": [str(i) for i in range(40)]}
    extractor(batch)
    ceiling = rise(lambda: extractor(batch))
    assert rise(lambda: [extractor(batch) is None for _ in range(8)]) < ceiling + SLACK


@pytest.mark.parametrize("unit", ["patch", "image"])
def test_a_batch_of_large_images_takes_as_much_as_one(tiny_sam: str, unit: str) -> None:
    width, height = 2600, 2000
    config = PatchConfig(sam=tiny_sam, unit=unit, points_per_side=1, max_image_pixels=width * height)
    extractor = SamPatchExtractor(config, "cpu")
    large = png(width, height)
    extractor({"image": [png(300, 300)], "source": ["small"]})
    batch = {"image": [large] * 8, "source": [str(i) for i in range(8)]}
    assert rise(lambda: extractor(batch)) < 4 * width * height / 2**20 + SLACK  # of 8 at once: 160 MiB


def test_boxes_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from optidel_hf.curation import amg

    logits = torch.randn(40, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = amg.pixel_boxes(logits, (7.0, 5.0), (112, 80))
    monkeypatch.setattr(amg, "LOGITS_AT_ONCE", 1)
    assert torch.equal(amg.pixel_boxes(logits, (7.0, 5.0), (112, 80)), whole)
