from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sizes import TINY_SIZES
from transformers import ViTModel

from optidel_hf import cli
from optidel_hf.errors import Preempted
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


def _careless(encoder: ViTModel) -> dict[str, float]:
    """Draws from every generator, seeds them, trains what it was given and leaves it so."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    encoder.train()
    encoder(torch.rand(2, 3, 32, 32)).last_hidden_state.mean().backward()
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.zero_()
    return {"score": 0.5}


def _run(images: torch.Tensor, out: Path, evaluation: Any = None, **changes: Any) -> list[tuple[float, float]]:
    Pretrainer(tiny_config(out, steps=6, **changes), images, evaluation=evaluation).train()
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "with dropout, which draws from the global generator"])
def test_looking_at_a_training_changes_no_bit_of_it(images, tmp_path, monkeypatch, dropout: float) -> None:
    if dropout:
        _run(images, tmp_path / "start")
        Pretrainer(tiny_config(tmp_path / "start", steps=6), images).save()
        path = tmp_path / "start" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_dropout_prob": dropout}))
    start = {"model": str(tmp_path / "start")} if dropout else {}
    runs = []
    for looked_at in ({}, {"evaluation": _careless, "evaluate_every": 2, "reconstruct_every": 3}):
        torch.manual_seed(0)
        runs.append(_run(images, tmp_path / str(bool(looked_at)), **looked_at, **start))
    assert runs[0] == runs[1]
    scores = read_metrics(tmp_path / "True" / "evaluations.jsonl")
    assert scores == [{"step": step, "score": 0.5} for step in (0, 2, 4, 6)]
    assert not (tmp_path / "False" / "evaluations.jsonl").exists()
    pictures = sorted((tmp_path / "True" / "reconstructions").iterdir())
    assert [path.name for path in pictures] == [f"step-{step:06d}.png" for step in (0, 3, 6)]
    assert Image.open(pictures[0]).size == (3 * 32 + 4, 8 * 32 + 14)


def test_the_encoder_that_is_judged_is_the_one_of_that_step(images, tmp_path) -> None:
    norms = []

    def norm(encoder: ViTModel) -> dict[str, float]:
        norms.append(sum(weight.double().norm().item() for weight in encoder.parameters()))
        assert not encoder.training
        return {"norm": norms[-1]}

    pretrainer = Pretrainer(tiny_config(tmp_path, steps=4, evaluate_every=4), images, evaluation=norm)
    before = sum(w.double().norm().item() for w in pretrainer.whole().backbone().parameters())
    pretrainer.train()
    after = sum(w.double().norm().item() for w in pretrainer.whole().backbone().parameters())
    assert norms == [before, after]
    assert before != after


def test_a_run_stopped_at_an_evaluation_has_it_once_all_the_same(images, tmp_path, monkeypatch) -> None:
    changes = {"evaluate_every": 2, "evaluation": lambda encoder: {"score": 1.0}}
    monkeypatch.setattr("optidel_hf.pretraining.termination.Termination.reached", lambda self, together: True)
    for _ in range(3):  # each goes one step on: two are stopped at step 2 or on the way there
        with pytest.raises(Preempted):
            _run(images, tmp_path, **changes)
    assert [line["step"] for line in read_metrics(tmp_path / "evaluations.jsonl")] == [0, 2]
    monkeypatch.undo()
    _run(images, tmp_path, **changes)
    assert [line["step"] for line in read_metrics(tmp_path / "evaluations.jsonl")] == [0, 2, 4, 6]


def test_the_command_judges_by_a_labelled_set(image_folder, tmp_path) -> None:
    labelled = tmp_path / "classes"
    for number, file in enumerate(sorted(image_folder.iterdir())[:12]):
        folder = labelled / ("train" if number < 8 else "test") / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    out, sizes = tmp_path / "out", [f"--{name}={value}" for name, value in TINY_SIZES.items()]
    command = ["pretrain", "--dataset", str(image_folder), "--output_dir", str(out), *sizes, "--device=cpu"]
    command += ["--steps=2", "--batch_size=4", "--evaluate_every=2"]
    assert cli.main(command) == 2  # without a labelled set
    assert cli.main([*command, "--probe_dataset", str(labelled)]) == 0
    scores = read_metrics(out / "evaluations.jsonl")
    assert [line["step"] for line in scores] == [0, 2]
    assert all(0 <= line[name] <= 1 for line in scores for name in ("knn_accuracy", "linear_accuracy"))


def test_a_mistaken_place_is_told_by_its_own_flag(image_folder, tmp_path, capsys) -> None:
    def refused(*flags: str) -> str:
        assert cli.main(["pretrain", "--dataset", str(image_folder), *flags]) == 2
        return capsys.readouterr().err

    out, nowhere = ["--output_dir", str(tmp_path)], str(tmp_path / "nowhere.parquet")
    assert f"{nowhere}: no such file" in refused(*out, "--last_dataset", nowhere, "--last_share", "0.5")
    others = ["--last_dataset", "no/such", "--last_share", "0.5"]
    assert "--last_dataset no/such is neither" in refused(*out, *others)
    probed = ["--probe_dataset", "no/such", "--evaluate_every", "1"]
    assert "--probe_dataset no/such is neither" in refused(*out, *probed)
    for place in (image_folder, image_folder / "vit"):
        assert f"lies among the images of {image_folder}" in refused("--output_dir", str(place))
    assert not (image_folder / "vit").exists()


def test_pictures_are_for_what_reconstructs() -> None:
    with pytest.raises(ValueError, match="reconstruct_every is for mae: simclr reconstructs nothing"):
        tiny_config("out", objective="simclr", reconstruct_every=5)
