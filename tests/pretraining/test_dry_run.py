from __future__ import annotations

import pytest
import torch
from tiny_sizes import TINY_SIZES

from optidel_hf import cli
from optidel_hf.pretraining.dry_run import describe, rehearse
from optidel_hf.pretraining.rates import flops_per_image
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


def test_a_rehearsal_counts_what_the_training_needs_and_writes_nothing(images, tmp_path) -> None:
    config = tiny_config(tmp_path / "out", steps=100, gradient_accumulation_steps=2)
    pretrainer = Pretrainer(config, images)
    model = pretrainer.model
    frozen = (17 + 17) * 32  # two position tables
    rehearsal = rehearse(pretrainer)
    assert rehearsal.parameters == model.num_parameters()
    assert rehearsal.encoder_parameters == model.vit.num_parameters()
    assert rehearsal.state_bytes == 16 * rehearsal.parameters - 12 * frozen
    assert rehearsal.image_bytes == 40 * 3 * 40 * 40
    # 8 images in a part, of which each layer keeps some activations: more than its input, less than 30 of them.
    inputs = 4 * 8 * 32 * (2 * 5 + 17)  # two encoder layers see 4 tokens of 16 and the class token, the decoder all
    assert inputs < rehearsal.activation_bytes < 60 * inputs
    assert rehearsal.images_per_second == pytest.approx(16 / rehearsal.seconds_a_step)
    assert 0 < rehearsal.fraction_of_peak < 1
    assert not (tmp_path / "out").exists()
    text = describe(pretrainer, rehearsal)
    assert "16 = 1 process(es) x 2 part(s) x 8 images" in text
    assert "40, seen 40.0 times each" in text


def test_operations_are_those_of_the_layers() -> None:
    config = tiny_config("unused", objective="simclr", num_hidden_layers=1, device="cpu")
    objective = Pretrainer(config, torch.zeros(2, 3, 40, 40, dtype=torch.uint8)).objective
    tokens, width, mlp = 17, 32, 64
    patches = 16 * (3 * 8 * 8) * width
    layer = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    # Two for a multiplication and an addition; backward costs twice as much, but an image needs no gradient.
    assert flops_per_image(objective) == 2 * 2 * (3 * layer + 2 * patches)  # two views


def test_the_command_rehearses(image_folder, tmp_path, capsys) -> None:
    sizes = [f"--{name}={value}" for name, value in TINY_SIZES.items()]
    command = ["pretrain", "--dataset", str(image_folder), "--output_dir", str(tmp_path / "out"), *sizes, "--dry_run"]
    assert cli.main([*command, "--device=cpu", "--batch_size=8"]) == 0
    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("parameters", "memory", "speed", "time ", "of peak"))
