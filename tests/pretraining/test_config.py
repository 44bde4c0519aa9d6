from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, ViTConfig

from optidel_hf.commands import pretrain
from optidel_hf.pretraining.config import FREE_FIELDS, PretrainConfig, at_checkpoint_sizes
from optidel_hf.pretraining.draws import Augmentation


def test_the_parser_reads_it_and_every_field_has_help() -> None:
    line = "--output_dir out --steps 50 --no_flip --warmup_steps 7 --base_learning_rate 1e-3"
    (config,) = HfArgumentParser(PretrainConfig).parse_args_into_dataclasses(line.split())
    assert (config.steps, config.flip, config.warmup, config.base_learning_rate) == (50, False, 7, 1e-3)
    assert all(field.metadata["help"].endswith(".") for field in fields(PretrainConfig))


def test_the_peak_follows_the_batch_and_the_warm_up_the_steps() -> None:
    config = PretrainConfig("out", batch_size=64, steps=400)
    assert config.peak_learning_rate == pytest.approx(3.75e-5)  # 1.5e-4 * 64 / 256
    assert config.warmup == 40


def test_views_are_the_papers_but_for_what_is_asked_for() -> None:
    assert PretrainConfig("out").augmentation() == Augmentation(views=1, min_scale=0.2)
    simclr = Augmentation(views=2, min_scale=0.08, jitter=1.0, grey=0.2, blur=0.5)
    assert PretrainConfig("out", objective="simclr").augmentation() == simclr
    asked = PretrainConfig("out", objective="simclr", color_jitter=0.0, flip=False, min_crop_scale=0.3).augmentation()
    assert asked == replace(simclr, jitter=0.0, flip=False, min_scale=0.3)


def test_what_determines_the_result_leaves_out_where_and_how_often() -> None:
    told = PretrainConfig("out").determining()
    assert {"steps", "seed", "mask_ratio", "mixed_precision"} <= told.keys()
    assert not told.keys() & set(FREE_FIELDS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 60}, "image_size 60 must be a multiple of patch_size 8"),
        ({"num_attention_heads": 5}, "hidden_size 192 must be a multiple of num_attention_heads 5"),
        (
            {"decoder_hidden_size": 6, "decoder_num_attention_heads": 1},
            "decoder_hidden_size 6 must be",
        ),
        ({"mask_ratio": 1.0}, "mask_ratio must lie between 0 and 1"),
        ({"mask_ratio": 0.99}, "some of 64 patches visible"),
        ({"min_crop_scale": 0.0}, "min_crop_scale must be a share"),
        ({"steps": 0}, "steps must be positive"),
        ({"base_learning_rate": float("nan")}, "base_learning_rate must be positive, not nan"),
        ({"seed": -1}, "seed must not be negative"),
        ({"warmup_steps": 500}, r"warmup_steps must lie between 0 and steps \(400\)"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be one of no, bf16, auto"),
        ({"objective": "dino"}, "objective must be one of mae, simclr"),
        ({"objective": "simclr", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1, not 2"),
        ({"objective": "simclr", "temperature": 0.0}, "temperature must be positive"),
        ({"blur": 1.5}, "blur must lie between 0 and 1"),
        ({"tiles_per_mosaic": 4}, "tiles_per_mosaic is for tile_augmentation"),
        ({"resume": "yes"}, "resume must be one of auto, never"),
    ],
)
def test_a_field_out_of_range_is_named(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PretrainConfig("out", **changes)


def test_a_checkpoints_sizes_replace_those_given(tmp_path: Path) -> None:
    ViTConfig(image_size=96, patch_size=16, hidden_size=48, num_attention_heads=4).save_pretrained(tmp_path)
    config = PretrainConfig("out", objective="simclr", model=str(tmp_path), steps=7, decoder_hidden_size=64)
    found = at_checkpoint_sizes(config)
    assert (found.image_size, found.patch_size, found.hidden_size, found.num_hidden_layers) == (96, 16, 48, 12)
    assert (found.steps, found.decoder_hidden_size) == (7, 64)  # an encoder has no decoder
    for config in (PretrainConfig("out"), PretrainConfig("out", model=str(tmp_path / "nowhere"))):
        assert at_checkpoint_sizes(config) == config


def test_images_are_opened_at_the_checkpoints_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened(Exception):
        pass

    def opened(dataset: str, size: int, **told: Any) -> None:
        raise Opened(size)

    ViTConfig(image_size=96, patch_size=16).save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").touch()
    monkeypatch.setattr("optidel_hf.pretraining.stored.open_images", opened)
    with pytest.raises(Opened, match="96"):
        pretrain(
            [
                "--dataset",
                str(tmp_path / "images"),
                "--model",
                str(tmp_path / "vit"),
                "--output_dir",
                str(tmp_path / "out"),
            ]
        )
