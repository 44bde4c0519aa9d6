"""Held-out images and the V-information that is measured on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image
from safetensors.torch import save_file
from tiny_reference import picture, save_mae, tiny_mae
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ViTConfig, ViTModel

from optidel_hf.cli import main
from optidel_hf.curation import heldout
from optidel_hf.curation.calibration import open_reference
from optidel_hf.curation.contrastive_scoring import _key, embed_views, load_encoder
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.frames import downstream_frames, hold_out
from optidel_hf.curation.heldout import (
    Moments,
    information,
    interval,
    judge,
    measure_frames,
)
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.masking import mask_partition
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import curate
from optidel_hf.curation.scoring import load_pixels
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError
from optidel_hf.evaluation.statistics import mean_interval
from optidel_hf.images import open_image
from optidel_hf.pretraining.batches import image_processor


def test_whole_groups_are_held_out_whatever_the_order() -> None:
    groups = [f"video-{i // 3}" for i in range(60)]
    held = hold_out(groups, 0.1)
    assert len(held) == 2  # 6 of 60 images
    assert hold_out(groups[::-1], 0.1) == held
    assert hold_out(groups, 0.0) == set()
    sizes = Counter({"large": 50, **{f"small-{i}": 1 for i in range(10)}})
    assert "large" not in hold_out(list(sizes.elements()), 0.4)
    with pytest.raises(UserError, match="at least two groups"):
        hold_out(["one"] * 9, 0.1)


def test_information_by_hand() -> None:
    # Two frames of one channel: values of mean +-1 and mean square 4, so the null's variance is 4; error 1 and 3.
    moments = Moments(np.array([1.0, 3.0]), np.array([[1.0], [-1.0]]), np.array([[4.0], [4.0]]))
    figures = information(moments, ["a", "b"])
    assert figures["v_information"] == pytest.approx(0.5 * np.log2(4 / 2))
    assert figures["null_entropy"] == pytest.approx(0.5 * np.log2(2 * np.pi * np.e * 4))
    assert figures["low"] is figures["high"] is None  # of two groups


def test_the_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, 12)
    groups = [f"{i:02d}" for i in range(12)]
    low, high = interval(lambda weight: float(weight @ values / weight.sum()), groups)
    expected = mean_interval(values)
    assert (low, high) == pytest.approx(expected[1:], abs=0.1)
    assert interval(lambda weight: 0.0, groups[:9]) == (None, None)


def test_a_black_frame_alone_holds_nothing() -> None:
    # normalised, its variance is below 0 by rounding
    moments = Moments(np.array([1e-9]), np.full((1, 3), 0.1), np.full((1, 3), 0.1**2 - 1e-17))
    assert information(moments, ["black"])["v_information"] == 0


def test_the_interval_is_over_groups_and_not_over_frames() -> None:
    rng = np.random.default_rng(0)
    error = np.repeat(rng.uniform(0.2, 0.8, 20), 10)
    moments = Moments(error, np.zeros((200, 3)), np.ones((200, 3)))
    apart = information(moments, [str(i) for i in range(200)])
    together = information(moments, [str(i // 10) for i in range(200)])
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_errors_are_those_of_the_stock_model(norm_pix_loss: bool, no_float64: TorchDispatchMode) -> None:
    """Each token is hidden by three of a partition's four masks: a frame's error is the mean of stock's losses."""
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with no_float64:
        measured = measure_frames(model, pixels)
    with torch.inference_mode():
        for row in range(3):
            losses = [
                model(pixels[row : row + 1], noise=noise[None]).loss.item()
                for seed in range(2)
                for noise in mask_partition(16, 4, seed)
            ]
            assert measured.error[row] == pytest.approx(np.mean(losses), rel=1e-5)
    if not norm_pix_loss:
        assert measured.mean == pytest.approx(pixels.mean((2, 3)).numpy(), abs=1e-6)
        assert measured.square == pytest.approx(pixels.square().mean((2, 3)).numpy(), abs=1e-6)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(20):
        picture(i, 48).save(folder / f"frame-{i:02d}.png")
    return folder


def test_no_stage_sees_what_is_held_out_and_models_are_judged_on_it(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    config = CurationConfig(
        inputs=InputConfig(str(frames), held_out=0.2),
        output_dir=str(tmp_path / "out"),
        patches=PatchConfig(unit="image", patch_size=32, min_image_side=16),
        selection=SelectionConfig(budget=1.0, strategy="random", tiles_per_mosaic=1),
        mosaic=MosaicConfig(image_size=32),
        images_per_shard=3,
        device="cpu",
    )
    out = curate(config)
    held = pq.read_table(out / "held_out.parquet")["source"].to_pylist()
    seen = read_columns(out / "patches", ["source"])["source"].to_pylist()
    assert len(held) == 4
    assert sorted([*held, *seen]) == sorted(path.name for path in frames.iterdir())
    assert set(pq.read_table(out / "selection.parquet")["source"].to_pylist()) == set(seen)
    with pytest.raises(UserError, match=r"held_out was 0\.2, now None"):
        curate(replace(config, inputs=InputConfig(str(frames))))
    models = {name: save_mae(tmp_path / name, tiny_mae(seed)) for seed, name in enumerate(("a", "b"))}
    judged = judge(models, out, device="cpu")
    assert {(figures["frames"], figures["groups"], figures["target"]) for figures in judged.values()} == {
        (4, 4, "raw")
    }
    assert judged["a"]["v_information"] != judged["b"]["v_information"]
    assert json.loads((tmp_path / "a" / "held_out.json").read_text()) == judged["a"]
    assert judge({"a": models["a"]}, out, device="cpu")["a"] == judged["a"]
    assert set(json.loads((out / "held_out.json").read_text())) == {"a", "b"}
    (frames / held[0]).unlink()
    with pytest.raises(UserError, match=f"lists 4 images and .* has 3 of them: '{held[0]}' is gone"):
        judge(models, out, device="cpu")
    frames.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{out} was made from it: run this where its images are found"):
        judge(models, out, device="cpu")


def test_without_held_out_images_nothing_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "inputs.parquet").touch()
    with pytest.raises(UserError, match="held no image out: curate into another folder with --held_out"):
        judge({"a": tmp_path}, tmp_path)
    assert main(["information", "--models", f"a={tmp_path}", "--curation_dir", str(tmp_path)]) == 2
    assert "held no image out" in capsys.readouterr().err


# A downstream set, and contrastive models


@pytest.fixture
def downstream(tmp_path: Path) -> Path:
    """24 images of a validation part and others, two of which are alike, beside the masks that go with them."""
    root = tmp_path / "downstream"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
        for i in range(30):
            part = "validation" if i < 24 else "train"
            picture(1 if i == 0 else i, 48).resize((60, 48)).save(root / folder / f"{part}_{i:02d}.png")
    return root


def save_simclr(folder: Path, constant: bool = False) -> str:
    """A ViT with a projection head of random weights, or one that projects everything to the same point."""
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    config = ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder / "backbone")
    image_processor(32).save_pretrained(folder / "backbone")
    first, second = torch.randn(32, 32) * (not constant), torch.randn(16, 32)
    weights = {"0.weight": first, "0.bias": torch.full((32,), float(constant)), "2.weight": second}
    save_file(weights, folder / "projection_head.safetensors")
    return str(folder)


def test_models_are_judged_on_a_downstream_sets_validation_part(downstream: Path, tmp_path: Path) -> None:
    name = save_mae(tmp_path / "mae", tiny_mae(1))
    images = str(downstream / "images")
    with pytest.raises(UserError, match=r"is no output of `optidel curate`: it has no inputs\.parquet"):
        judge({"a": name}, tmp_path, "cpu", images, "validation")
    (tmp_path / "inputs.parquet").touch()
    judged = judge({"a": name}, tmp_path, "cpu", images, "validation")["a"]
    assert (judged["frames"], judged["groups"], judged["target"]) == (24, 23, "raw")
    paths = sorted((downstream / "images").glob("validation_*"))
    reference = open_reference(name, None, "cpu")
    moments = measure_frames(reference.model, load_pixels([open_image(path) for path in paths], reference))
    expected = information(moments, ["0", "0", *map(str, range(2, 24))])
    assert judged["v_information"] == pytest.approx(expected["v_information"], abs=1e-5)
    for folder in (tmp_path, tmp_path / "mae"):
        assert (folder / "downstream.json").exists()
        assert not (folder / "held_out.json").exists()
    judge({"b": name}, tmp_path, "cpu", images, "validation")
    assert list(json.loads((tmp_path / "downstream.json").read_text())) == ["a", "b"]
    # Of other images nothing of before is comparable.
    assert judge({"b": name}, tmp_path, "cpu", images)["b"]["frames"] == 30
    assert list(json.loads((tmp_path / "downstream.json").read_text())) == ["b"]


def test_masks_are_never_read(downstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["information", "--models", f"a={save_mae(tmp_path / 'mae', tiny_mae())}", "--device", "cpu"]
    assert main(command) == 2
    assert "give a --curation_dir that held images out, or --images" in capsys.readouterr().err
    command += ["--images"]
    assert main([*command, str(downstream)]) == 2
    said = capsys.readouterr().err
    assert "'masks' that looks like masks, not images" in said
    assert f"--images {downstream / 'images'}" in said
    assert main([*command, str(downstream / "images"), "--split", "validation"]) == 0
    said = capsys.readouterr().out
    assert "24 frames, 23 groups), bits per value, raw pixels" in said
    assert "downstream.json beside each model" in said


def test_of_images_and_masks_in_one_table_a_column_is_named(
    downstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in sorted((downstream / "images").glob("validation_*"))[:3]]
    pairs = Dataset.from_dict({"image": paths, "mask": paths}, features=Features({"image": Image(), "mask": Image()}))
    pairs.to_parquet(tmp_path / "pairs.parquet")
    command = ["information", "--models", f"a={save_mae(tmp_path / 'mae', tiny_mae())}", "--device", "cpu"]
    command += ["--images", str(tmp_path / "pairs.parquet")]
    assert main(command) == 2
    assert "name one with --image_column" in capsys.readouterr().err
    assert main([*command, "--image_column", "image"]) == 0
    assert "3 frames" in capsys.readouterr().out


def test_a_model_that_cannot_be_written_to_is_judged(
    downstream: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {name: save_mae(tmp_path / name, tiny_mae()) for name in ("a", "b")}
    (tmp_path / "a" / "downstream.json").mkdir()  # as it cannot be written on a disk for reading only
    (tmp_path / "inputs.parquet").touch()
    judged = judge(names, tmp_path, "cpu", str(downstream / "images"), "validation")
    assert json.loads((tmp_path / "downstream.json").read_text()) == judged
    assert json.loads((tmp_path / "b" / "downstream.json").read_text()) == judged["b"]
    assert f"{tmp_path / 'a' / 'downstream.json'} is not written" in caplog.text


def test_a_contrastive_model_is_judged_by_its_own_projection(downstream: Path, tmp_path: Path) -> None:
    images = str(downstream / "images")
    models = {name: save_simclr(tmp_path / name, constant=name == "constant") for name in ("random", "constant")}
    judged = judge(models, None, "cpu", images, "validation")
    # One candidate a group. What tells nothing apart has no bit, whatever its temperature.
    assert {figures["candidates"] for figures in judged.values()} == {23}
    assert judged["constant"]["v_information"] == pytest.approx(0, abs=1e-3)  # cosines are rounded
    found = judged["random"]
    assert found["target"] == "other view"
    assert found["low"] < found["v_information"] < found["high"] < np.log2(23)
    assert found["v_information"] > 0
    assert found["null_entropy"] == pytest.approx(np.log2(23))
    # By hand: each view against the other of its frame and one of each other group, the spare for its own.
    frames, encoder = downstream_frames(images, "validation"), load_encoder(models["random"], "cpu")
    batch = {"image": frames.images, "source": frames.sources, "crop": [[0, 0, 0]] * 24}
    views, losses = embed_views(encoder, batch, 0), []
    order = sorted(set(frames.groups), key=lambda group: sha256(group.encode()).hexdigest())
    chosen = {group: frames.groups.index(group) for group in order}
    first = min((0, 1), key=lambda row: _key(0, frames.sources[row], 0, 0, 0))  # of the two that are alike
    chosen[frames.groups[0]] = first
    *others, spare = chosen
    for row, group in enumerate(frames.groups):
        against = [views[0][chosen[spare if other == group else other]] for other in others]
        for view, right in (views, views[::-1]):
            cosines = torch.stack([right[row], *against]) @ view[row] / found["temperature"]
            losses.append(torch.logsumexp(cosines, 0) - cosines[0])
    assert found["conditional_entropy"] == pytest.approx(torch.stack(losses).mean().item() / np.log(2), abs=1e-4)
    pair = downstream / "pair"
    pair.mkdir()
    for i in (0, 1):
        picture(i).save(pair / f"{i}.png")
    with pytest.raises(UserError, match=r"these are of 2 group\(s\): give at least 3"):
        judge(models, None, "cpu", str(pair))
    assert json.loads((tmp_path / "random" / "downstream.json").read_text()) == found


def test_views_of_a_frame_are_those_of_its_centre_square(downstream: Path, tmp_path: Path) -> None:
    encoder = load_encoder(save_simclr(tmp_path / "simclr"), "cpu")
    frames = downstream_frames(str(downstream / "images"), "validation")
    batch = {"source": frames.sources[:3], "crop": [[0, 0, 0]] * 3}
    squares = [open_image(value).crop((6, 0, 54, 48)) for value in frames.images[:3]]
    whole, cut = (embed_views(encoder, {**batch, "image": values}, 0) for values in (frames.images, squares))
    for view in (0, 1):
        torch.testing.assert_close(whole[view], cut[view])


def test_ten_groups_have_an_interval() -> None:
    low, high = interval(lambda weight: float(weight[:5].sum() / weight.sum()), [str(i) for i in range(10)])
    assert low is not None
    assert low < 0.5 < high


def test_images_that_cannot_be_read_judge_nobody(downstream: Path, tmp_path: Path) -> None:
    (downstream / "images" / "validation_99.png").write_bytes(b"no image")
    judged = judge(
        {"a": save_mae(tmp_path / "mae", tiny_mae())}, None, "cpu", str(downstream / "images"), "validation"
    )
    assert (judged["a"]["frames"], judged["a"]["groups"]) == (24, 23)


def test_there_are_at_most_so_many_candidates(
    downstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heldout.CANDIDATES == 511
    monkeypatch.setattr(heldout, "CANDIDATES", 9)
    name = save_simclr(tmp_path / "simclr")
    assert judge({"a": name}, None, "cpu", str(downstream / "images"), "validation")["a"]["candidates"] == 9
