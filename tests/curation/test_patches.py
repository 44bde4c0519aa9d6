"""Key patches: the same as transformers' stock mask generation finds, cut as the configuration says."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import multiprocess
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from hub_server import HubServer
from PIL import Image
from torch import Tensor
from transformers import SamModel, SamProcessor

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path
from optidel_hf.curation.amg import box_iou
from optidel_hf.curation.masks import MaskGenerator, Masks
from optidel_hf.curation.patch_config import PRESET_FILE, PatchConfig, Thresholds
from optidel_hf.curation.patches import SamPatchExtractor, crop_square, cut_patches
from optidel_hf.errors import UserError
from optidel_hf.images import Opened, open_reduced
from optidel_hf.layout import NO_PATCH
from optidel_hf.sample import FrameConfig, generate_sequence


NEAR_A_THRESHOLD = 0.02
SIZES = [(128, 128), (352, 288), (200, 352), (301, 257)]


def frames() -> list[Image.Image]:
    """One generated frame for each of several sizes, square and not, smaller and larger than SAM's input."""
    pictures = []
    for sequence, size in enumerate(SIZES):
        config = FrameConfig(image_size=128, frames_per_sequence=1)
        frame = generate_sequence(0, sequence, config)[0][0]
        pictures.append(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    return pictures


@torch.inference_mode()
def stock_masks(image: Image.Image, config: PatchConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The boxes that pass the thresholds in the stock pipeline, by its own methods on masks of the image's size, and
    which of them are clear of every threshold.
    """
    path, thresholds = checkpoint_path(config.sam), config.thresholds()
    model = SamModel.from_pretrained(path, dtype=torch.float32).eval()
    processor = SamProcessor.from_pretrained(path).image_processor
    _, points, crop_images, labels = processor.generate_crop_boxes(
        image, processor.size["longest_edge"], points_per_crop=thresholds.points_per_side
    )
    inputs = processor(images=crop_images, return_tensors="pt")
    embeddings = model.get_image_embeddings(inputs["pixel_values"])
    output = model(image_embeddings=embeddings, input_points=points.float(), input_labels=labels)
    masks = processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )[0]
    offset = thresholds.stability_score_offset
    from transformers.models.sam.image_processing_pil_sam import _batched_mask_to_box, _compute_stability_score

    flat, ious = masks.flatten(0, 1), output.iou_scores[0].flatten()
    stability = _compute_stability_score(flat, 0.0, offset)
    area = (flat > 0).float().mean((-1, -2))
    keep = (ious > thresholds.pred_iou_thresh) & (stability > thresholds.stability_score_thresh)
    keep &= (area >= config.min_area) & (area <= config.max_area)
    # Masks within 0.02 of a threshold are counted apart: either side may fall on the other side of it.
    clear = clear_of_thresholds(ious, stability, area, config)
    return _batched_mask_to_box(flat > 0)[keep].float(), clear[keep]


def clear_of_thresholds(ious: Tensor, stability: Tensor, area: Tensor, config: PatchConfig) -> Tensor:
    thresholds = config.thresholds()
    score = torch.stack([ious - thresholds.pred_iou_thresh, stability - thresholds.stability_score_thresh])
    size = torch.stack([area - config.min_area, config.max_area - area])
    return (score.abs() > NEAR_A_THRESHOLD).all(0) & (size.abs() > NEAR_A_THRESHOLD / 10).all(0)


def matched(images: Iterable[Image.Image]) -> tuple[Tensor, Tensor]:
    """
    Whether stock's masks have a box of ours, and ours one of stock's, with IoU 0.9.

    Before suppression, a function of boxes and scores that is tested by itself: a mask near a threshold, which only
    one side keeps, would else decide over others.
    """
    config = PatchConfig(box_nms_thresh=1.0)
    generator = MaskGenerator(config, "cpu")
    best: tuple[list[Tensor], list[Tensor]] = ([], [])
    for image in images:
        stock, stock_clear = stock_masks(image, config)
        found = generator([Opened.whole(image)])[0]
        clear = clear_of_thresholds(found.predicted_iou, found.stability, found.areas, config)
        overlap = box_iou(stock, found.boxes)
        for side, each in zip(best, (overlap[stock_clear].amax(1), overlap[:, clear].amax(0))):
            side.append(each >= 0.9)
    return torch.cat(best[0]), torch.cat(best[1])


def test_stock_and_our_boxes_match_on_generated_frames() -> None:
    # Painted shading leaves specks whose logits are next to 0: stock interpolates twice and we once, and a speck that
    # only one side sees stretches its box.
    for each in matched(frames()):
        assert len(each) >= 80  # else the rate says nothing
        assert each.float().mean() >= 0.95, f"{int(each.sum())} of {len(each)}"


@pytest.mark.realdata
def test_stock_and_our_boxes_match_on_real_frames(realdata: Path) -> None:
    paths = sorted((realdata / "polypgen" / "images").glob("*.jpg"))[::220]
    for each in matched(Image.open(path).convert("RGB") for path in paths):
        assert len(each) >= 200
        assert each.float().mean() >= 0.98, f"{int(each.sum())} of {len(each)}"


def test_masks_do_not_depend_on_the_batch() -> None:
    # Before suppression, and of masks that no rounding lifts over a threshold: one that did would decide over others.
    config = PatchConfig(box_nms_thresh=1.0)
    images = [Opened.whole(image) for image in frames()]
    together = MaskGenerator(config, "cpu")(images)
    alone = MaskGenerator(replace(config, points_per_batch=50), "cpu")
    compared = 0
    for image, masks in zip(images, together):
        pair = masks, alone([image])[0]
        told = [torch.cat([each.boxes, 1000 * each.stability[:, None]], dim=1) for each in pair]
        for each, own, other in zip(pair, told, reversed(told)):
            clear = clear_of_thresholds(each.predicted_iou, each.stability, each.areas, config)
            assert (torch.cdist(own[clear], other, p=float("inf")).amin(1) <= 1).all()
            compared += int(clear.sum())
    assert compared >= 160


def test_runs_of_images_do_not_matter(tiny_sam: str) -> None:
    batch = {"image": [*frames()[:3], None, *frames()[3:]], "source": list("abcde")}
    pixels = max(image.width * image.height for image in frames())
    few, many = (PatchConfig(sam=tiny_sam, max_image_pixels=most, patch_size=16) for most in (pixels, 10 * pixels))
    rows, together = SamPatchExtractor(few, "cpu")(batch), SamPatchExtractor(many, "cpu")(batch)
    # Builds of torch add up in different orders.
    for rounded in ("predicted_iou", "stability_score", "area"):
        assert together.pop(rounded) == pytest.approx(rows[rounded], abs=1e-5)
    assert together == {name: rows[name] for name in together}
    assert [reason for source, reason in zip(rows["source"], rows["rejected"]) if source == "d"] == [
        "no image in this row"
    ]


def test_patches_of_a_reduced_jpeg_are_those_of_the_whole() -> None:
    image = frames()[1].resize((2112, 1728), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95)
    rows = SamPatchExtractor(PatchConfig(points_per_side=8), "cpu")(
        {"image": [{"bytes": content.getvalue(), "path": None}, image], "source": ["reduced", "whole"]}
    )
    assert open_reduced({"bytes": content.getvalue()}, PatchConfig().least_sides(256)).scale == 0.5
    boxes = {
        source: torch.tensor([box for name, box in zip(rows["source"], rows["bbox"]) if name == source])
        for source in ("reduced", "whole")
    }
    for each in boxes.values():
        each[:, 2:] += each[:, :2]
    assert len(boxes["whole"]) >= 3
    assert (box_iou(boxes["whole"], boxes["reduced"]).amax(1) > 0.9).float().mean() >= 0.8


def test_the_embedded_preset_fills_in_and_flags_win() -> None:
    preset = PatchConfig().thresholds()
    assert preset.points_per_side == 16
    assert PatchConfig(points_per_side=4).thresholds() == preset._replace(points_per_side=4)
    assert PatchConfig(sam="facebook/sam-vit-base").thresholds() == (32, 0.88, 0.95, 1.0, 0.7)


@pytest.mark.parametrize(
    ("box", "size", "crop"),
    [
        ([40, 40, 60, 50], (200, 100), (38, 33, 24)),  # 1.2 x 20 around (50, 45)
        ([45, 40, 55, 60], (200, 100), (38, 38, 24)),
        ([50, 50, 54, 54], (200, 100), (44, 44, 15)),  # never under 0.15 x 100
        ([0, 0, 30, 30], (200, 100), (0, 0, 36)),  # shifted to stay inside
        ([170, 70, 199, 99], (200, 100), (165, 65, 35)),
        ([0, 0, 199, 99], (200, 100), (50, 0, 100)),  # never over the shorter side
    ],
)
def test_the_square_around_a_box(box: list[float], size: tuple[int, int], crop: tuple[int, int, int]) -> None:
    assert crop_square(box, size, PatchConfig()) == crop


def masks_at(boxes: list[list[float]], quality: list[float]) -> Masks:
    values = torch.tensor(quality)
    return Masks(torch.tensor(boxes), torch.full_like(values, 0.1), values, torch.ones_like(values))


def test_best_patches_first_no_crop_twice_none_of_black_border() -> None:
    pixels = np.full((100, 100, 3), 120, np.uint8)
    pixels[:, :30] = 0
    image = Image.fromarray(pixels)
    boxes = [[60.0, 60, 80, 80], [61, 61, 80, 80], [0, 40, 25, 60], [40, 10, 60, 30]]
    patches = cut_patches(Opened.whole(image), masks_at(boxes, [0.8, 0.9, 0.99, 0.95]), PatchConfig(patch_size=16))
    assert [patch["bbox"] for patch in patches] == [[40.0, 10.0, 20.0, 20.0], [61.0, 61.0, 19.0, 19.0]]
    first = Image.open(io.BytesIO(patches[0]["image"]["bytes"]))
    assert first.size == (16, 16)
    assert patches[0]["upscale"] == pytest.approx(16 / patches[0]["crop"][2])


def test_no_two_patches_have_one_crop_whatever_the_threshold() -> None:
    image = Image.effect_noise((400, 400), 60).convert("RGB")
    boxes = [[60.0, 60, 70, 70], [61, 61, 69, 69], [62, 60, 72, 70]]  # squares of the least side about these centres
    config = PatchConfig(crop_nms_thresh=1, min_crop=0.5, patch_size=16)
    patches = cut_patches(Opened.whole(image), masks_at(boxes, [0.7, 0.9, 0.8]), config)
    assert [patch["bbox"] for patch in patches] == [[61, 61, 8, 8]]  # so near the corner all have one square
    inner = [[190.0, 190, 210, 210], [191, 191, 209, 209], [192, 190, 212, 210]]
    patches = cut_patches(Opened.whole(image), masks_at(inner, [0.7, 0.9, 0.8]), config)
    assert [patch["crop"] for patch in patches] == [[100, 100, 200], [102, 100, 200]]


def test_a_patch_has_the_figures_of_its_own_mask_and_the_best_product_comes_first() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 30], [60, 60, 80, 80], [10, 60, 30, 80]])
    area, iou, stability = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.5], [0.5, 0.75, 0.25]])
    image = Opened.whole(Image.effect_noise((100, 100), 60).convert("RGB"))
    patches = cut_patches(image, Masks(boxes, area, iou, stability), PatchConfig(patch_size=16))
    told = [[patch[name] for name in ("predicted_iou", "stability_score", "area")] for patch in patches]
    assert told == [pytest.approx(own) for own in ([0.8, 0.75, 0.2], [0.9, 0.5, 0.1], [0.5, 0.25, 0.3])]


def test_a_crop_may_have_as_much_border_and_overlap_as_the_limits_say() -> None:
    pixels = np.full((100, 100, 3), 120, np.uint8)
    pixels[:, :10] = 0
    image = Opened.whole(Image.fromarray(pixels))
    masks = masks_at([[0.0, 0, 40, 40], [0, 20, 40, 60]], [0.9, 0.8])  # squares of 40, two of their rows the same
    limits = {"context": 1.0, "patch_size": 16}
    for border, overlap, count in ((0.25, 0.34, 2), (0.25, 0.33, 1), (0.24, 0.34, 0)):
        config = PatchConfig(max_border=border, crop_nms_thresh=overlap, **limits)
        assert len(cut_patches(image, masks, config)) == count


def test_patches_of_an_image_at_half_its_size_are_those_of_the_whole() -> None:
    image = Image.merge("RGB", [Image.linear_gradient("L").resize((352, 288), box=(64, 64, 256, 256))] * 3)
    image.paste(0, (252, 0, 352, 288))  # a border of black on the right
    boxes = [[270.0, 40, 330, 100], [20, 150, 80, 220], [120, 20, 180, 100]]
    masks, config = masks_at(boxes, [0.9, 0.7, 0.8]), PatchConfig(patch_size=16)
    opened = (Opened.whole(image), Opened(image.reduce(2), image.size))
    whole, half = (cut_patches(each, masks, config) for each in opened)
    assert [patch["bbox"] for patch in whole] == [[120, 20, 60, 80], [20, 150, 60, 70]]
    for one, other in zip(whole, half, strict=True):
        first, second = (np.asarray(Image.open(io.BytesIO(patch.pop("image")["bytes"]))) for patch in (one, other))
        assert np.abs(first.astype(int) - second).mean() < 3
        assert one == other


def test_at_most_so_many_patches_however_many_masks() -> None:
    image = Image.effect_noise((400, 400), 60).convert("RGB")
    boxes = [[float(x), float(y), x + 60.0, y + 60.0] for x in range(0, 320, 20) for y in range(0, 320, 20)]
    quality = np.linspace(0.5, 1, len(boxes)).tolist()
    assert (
        len(cut_patches(Opened.whole(image), masks_at(boxes, quality), PatchConfig(max_patches=7, patch_size=16))) == 7
    )


def test_an_image_without_patches_is_one_row_with_its_reason(tiny_sam: str) -> None:
    extractor = SamPatchExtractor(PatchConfig(sam=tiny_sam, pred_iou_thresh=99.0), "cpu")
    rows = extractor({"image": [frames()[0], {"bytes": b"no image", "path": None}], "source": ["a", "b"]})
    assert rows["image"] == [None, None]
    assert rows["rejected"] == [NO_PATCH, "not an image that Pillow can read"]
    assert rows["group"] == ["a", "b"]


def test_pickles_to_its_configuration(tiny_sam: str) -> None:
    extractor = SamPatchExtractor(PatchConfig(sam=tiny_sam), "cpu")
    extractor({"image": frames()[:1], "source": ["a"]})
    again = pickle.dumps(extractor)
    assert len(again) < 2000
    assert pickle.loads(again) == extractor


def undecoded(paths: list[Path]) -> Dataset:
    columns = {"image": [{"bytes": None, "path": str(path)} for path in paths]}
    return Dataset.from_dict(
        {**columns, "source": [f"s{i}" for i in range(len(paths))]},
        features=Features({"image": ImageFeature(decode=False), "source": Value("string")}),
    )


def test_runs_inside_map_with_declared_features(tiny_sam: str, image_folder: Path) -> None:
    loose = {"max_area": 0.9, "min_area": 0.001, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}
    extractor = SamPatchExtractor(PatchConfig(sam=tiny_sam, patch_size=32, **loose), "cpu")
    images = undecoded(sorted(image_folder.glob("*.png"))[:5])
    options = {"batched": True, "with_rank": True, "features": extractor.features}
    patches = images.map(extractor, remove_columns=images.column_names, **options, batch_size=2)
    assert patches.features == extractor.features
    at_once = images.map(extractor, remove_columns=images.column_names, **options, batch_size=5)
    assert patches["crop"] == at_once["crop"]
    assert set(patches["source"]) == {f"s{i}" for i in range(5)}


@pytest.mark.parametrize("kind", ["numpy", "arrow", "torch", "pandas"])
def test_a_datasets_format_is_followed_or_refused_in_words(image_folder: Path, kind: str) -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16), "cpu")
    images = undecoded(sorted(image_folder.glob("*.png"))[:2]).with_format(kind)
    options = {"batched": True, "features": extractor.features, "remove_columns": images.column_names}
    if kind in ("arrow", "pandas"):
        with pytest.raises(UserError, match="take the dataset's format off, by with_format"):
            images.map(extractor, **options)
        return
    assert images.map(extractor, **options)["source"] == ["s0", "s1"]
    decoded = images.cast_column("image", ImageFeature()).with_format(kind)
    with pytest.raises(UserError, match="An image came as an array: take the dataset's format off"):
        decoded.map(extractor, **options)


def test_images_at_the_limits_of_size_and_shape_are_used() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16), "cpu")
    sizes = [(32, 256), (256, 32), (31, 100), (32, 257), (257, 32), (1, 1)]
    rows = extractor({"image": [Image.new("RGB", size) for size in sizes], "source": list("abcdef")})
    told = [f"{width}x{height} is too small or too thin to cut patches from" for width, height in sizes[2:]]
    assert rows["rejected"] == [None, None, *told]


def test_images_above_the_limit_of_pixels_are_rejected() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16, max_image_pixels=1600), "cpu")
    rows = extractor({"image": [Image.new("RGB", size) for size in ((40, 40), (40, 41))], "source": ["a", "b"]})
    assert rows["rejected"] == [None, "40x41 is over the limit of 1600 pixels"]


def test_an_image_is_called_by_its_path_where_nobody_names_it(image_folder: Path) -> None:
    paths = [str(path) for path in sorted(image_folder.glob("*.png"))[:2]]
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16), "cpu")
    opened = [Image.open(path) for path in paths]
    for images in ([{"bytes": None, "path": path} for path in paths], opened):
        rows = extractor({"image": images})
        assert rows["source"] == rows["group"] == paths
    with pytest.raises(UserError, match=f"Two images of the batch are called '{paths[0]}': add a unique 'source'"):
        extractor({"image": [opened[0], opened[0]]})
    with pytest.raises(UserError, match="Row 1 of the batch has neither a path nor a 'source'"):
        extractor({"image": [opened[0], Image.new("RGB", (40, 40))]})


def test_other_weights_in_the_same_folder_pickle_to_other_bytes(tmp_path: Path) -> None:
    extractor = SamPatchExtractor(PatchConfig(sam=str(tmp_path)), "cpu")
    told = []
    for weights in (b"some", b"others"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        told.append(pickle.dumps(extractor))
    assert told[0] != told[1]


def test_another_commit_on_the_hub_pickles_to_other_bytes(hub: HubServer) -> None:
    repo = hub.put("me/sam", "models", {"config.json": b"{}"})
    extractor = SamPatchExtractor(PatchConfig(sam="me/sam"), "cpu")
    first = pickle.dumps(extractor)
    assert pickle.dumps(extractor) == first
    repo.commit("main", dict(repo.files), "again")
    assert pickle.dumps(extractor) != first


def test_an_image_without_a_group_is_its_own() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16), "cpu")
    rows = extractor({"image": frames()[:3], "source": ["a", "b", "c"], "group": ["video", None, ""]})
    assert rows["group"] == ["video", "b", "c"]


@pytest.fixture(params=["fork", "spawn"])
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """How `map(num_proc=...)` starts its processes: forked by default, spawned where the parent has used CUDA."""
    before = multiprocess.get_start_method()
    multiprocess.set_start_method(request.param, force=True)
    yield request.param
    multiprocess.set_start_method(before, force=True)


def test_two_processes_cut_the_same_patches_as_one(tiny_sam: str, image_folder: Path, start_method: str) -> None:
    extractor = SamPatchExtractor(PatchConfig(sam=tiny_sam, patch_size=16), "cpu")
    images = undecoded(sorted(image_folder.glob("*.png"))[:8])
    options = {"batched": True, "with_rank": True, "features": extractor.features, "load_from_cache_file": False}
    options["remove_columns"] = images.column_names

    def saying_who(batch: dict[str, list], rank: int) -> dict[str, list]:
        rows = extractor(batch, rank)
        return {**rows, "group": [f"rank {rank}, {torch.get_num_threads()} thread"] * len(rows["group"])}

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # forked from a parent with several threads, a child with as many waits for ever
    try:
        alone = images.map(extractor, **options)
        together = images.map(saying_who, num_proc=2, **options)
    finally:
        torch.set_num_threads(threads)
    assert set(together["group"]) == {"rank 0, 1 thread", "rank 1, 1 thread"}
    for name in ("source", "crop", "bbox", "rejected"):
        assert together[name] == alone[name]
    undecode = Features({**extractor.features, "image": ImageFeature(decode=False)})
    assert together.cast(undecode)["image"] == alone.cast(undecode)["image"]


def test_whole_images_are_patches_whose_crop_is_the_image() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=32), "cpu")
    rows = extractor({"image": [frames()[1]], "source": ["a"]})
    assert rows["crop"] == [[32, 0, 288]]
    assert rows["bbox"] == [[0.0, 0.0, 351.0, 287.0]]
    assert rows["area"] == [1.0]


def test_the_declared_features_hold_a_patch_far_out_in_a_wide_image() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image", patch_size=16, max_aspect=2000), "cpu")
    rows = extractor({"image": [Image.new("RGB", (70_000, 36))], "source": ["a"]})
    stored = Dataset.from_dict(rows, features=extractor.features).remove_columns("image")[0]
    assert (stored["crop"], stored["bbox"]) == ([34_982, 0, 36], [0, 0, 69_999, 35])
    assert stored["upscale"] == pytest.approx(16 / 36, rel=1e-6)


@pytest.mark.parametrize("unit", ["tile", ""])
def test_an_unknown_unit_is_refused(unit: str) -> None:
    with pytest.raises(UserError, match="pred_iou_thresh is not a number"):
        PatchConfig(pred_iou_thresh=float("nan"))
    with pytest.raises(UserError, match="unit"):
        PatchConfig(unit=unit)


@pytest.mark.realdata
def test_the_embedded_preset_keeps_patches_of_most_real_frames(realdata: Path) -> None:
    paths = sorted((realdata / "polypgen" / "images").glob("*.jpg"))[::60]
    rows = SamPatchExtractor(PatchConfig(), "cpu")(
        {"image": [str(p) for p in paths], "source": [p.name for p in paths]}
    )
    with_patches = {source for source, reason in zip(rows["source"], rows["rejected"]) if reason is None}
    assert len(with_patches) >= 0.8 * len(paths)


def test_the_preset_for_endoscopy_is_a_configuration() -> None:
    path = Path(__file__).parents[2] / "recipes" / "configs" / "endoscopy.yaml"
    values = yaml.safe_load(path.read_text())
    config = PatchConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


def test_a_preset_is_the_checkpoints_own_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = PatchConfig(sam=EMBEDDED).thresholds()
    assert here != Thresholds()

    def cached(name: str, file: str, revision: str | None) -> str:
        if (name, file, revision) != ("me/sam", PRESET_FILE, "v1"):
            raise OSError("no such file")
        return str(Path(checkpoint_path(EMBEDDED)) / PRESET_FILE)

    monkeypatch.setattr("optidel_hf.checkpoints.cached_file", cached)
    assert PatchConfig(sam="me/sam", sam_revision="v1").thresholds() == here
    assert PatchConfig(sam="me/sam", sam_revision="v1", points_per_side=7).thresholds().points_per_side == 7
    assert PatchConfig(sam="me/other").thresholds() == Thresholds()
