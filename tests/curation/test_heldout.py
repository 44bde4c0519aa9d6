"""Held-out images and the V-information that is measured on them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_reference import picture, save_mae, tiny_mae

from optidel_hf.cli import main
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.heldout import Moments, hold_out, information, judge, measure_frames
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.masking import mask_partition
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import CurationConfig, curate
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError


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
    # Resampled, both frames are the first (null 3, error 1), the second (3 and 3), or one each.
    assert (figures["low"], figures["high"]) == (pytest.approx(0.0), pytest.approx(0.5 * np.log2(3)))
    assert information(moments, ["a", "a"])["low"] is None


def test_the_interval_is_over_groups_and_not_over_frames() -> None:
    rng = np.random.default_rng(0)
    error = np.repeat(rng.uniform(0.2, 0.8, 20), 10)
    moments = Moments(error, np.zeros((200, 3)), np.ones((200, 3)))
    apart = information(moments, [str(i) for i in range(200)])
    together = information(moments, [str(i // 10) for i in range(200)])
    assert together["high"] - together["low"] > 2 * (apart["high"] - apart["low"])


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_errors_are_those_of_the_stock_model(norm_pix_loss: bool) -> None:
    """Each token is hidden by three of a partition's four masks: a frame's error is the mean of stock's losses."""
    model = tiny_mae(norm_pix_loss=norm_pix_loss)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
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


def test_without_held_out_images_nothing_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="held no image out: curate into another folder with --held_out"):
        judge({"a": tmp_path}, tmp_path)
    assert main(["information", "--models", f"a={tmp_path}", "--curation_dir", str(tmp_path)]) == 2
    assert "held no image out" in capsys.readouterr().err
