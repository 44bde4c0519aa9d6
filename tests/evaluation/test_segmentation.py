"""The whole evaluation: its grid, its files, resuming, refusals, and the same numbers twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, ViTModel

from optidel_hf.errors import UserError
from optidel_hf.evaluation import segmentation
from optidel_hf.evaluation.backbone import Backbone, fresh_backbone, load_backbone
from optidel_hf.evaluation.downstream import DownstreamSet, load_downstream
from optidel_hf.evaluation.metrics.normdel.normdel import normdel
from optidel_hf.evaluation.protocol import Segmenter, labelled_rows
from optidel_hf.evaluation.segmentation import EvaluateConfig, evaluate_segmentation


@pytest.fixture
def settings(vit_folder: Path, squares_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Two arms, two modes, one seed, four steps."""
    return {
        "models": [f"given={vit_folder}", "none"],
        "dataset": str(squares_folder),
        "output_dir": str(tmp_path / "out"),
        "steps": 4,
        "batch_size": 4,
        "labels": 6,
        "seeds": 1,
        "device": "cpu",
    }


def scores(rows: list[dict[str, Any]]) -> dict[tuple[str, str, int], float]:
    return {(row["arm"], row["mode"], row["seed"]): row["miou"] for row in rows}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


def test_grid_and_files(settings: dict[str, Any], vit_folder: Path) -> None:
    rows = evaluate_segmentation(EvaluateConfig(**settings | {"data_ratio": [0.05, 0.0], "seeds": 2, "seed": 3}))
    grid = [(arm, mode, seed) for arm in ("given", "none") for mode in ("finetune", "probe") for seed in (3, 4)]
    assert list(scores(rows)) == grid
    results = json.loads((Path(settings["output_dir"]) / "results.json").read_text())
    assert results["rows"] == rows
    assert results["config"]["image_size"] == 32
    assert {key: rows[0][key] for key in ("model", "steps", "labels")} == {
        "model": str(vit_folder),
        "steps": 4,
        "labels": 6,
    }
    assert rows[0]["miou"] == pytest.approx(sum(rows[0]["iou"]) / 2)
    line = results["summary"][0]
    assert (line["arm"], line["mode"], line["seeds"]) == ("given", "finetune", 2)
    assert line["miou_low"] <= line["miou_mean"] <= line["miou_high"]
    assert line["normdel"] == normdel(line["miou_mean"], 0.05)
    assert "| none |" in (Path(settings["output_dir"]) / "results.md").read_text()


def test_same_seed_same_numbers_and_the_callers_random_state_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = evaluate_segmentation(EvaluateConfig(**settings))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = evaluate_segmentation(EvaluateConfig(**settings | {"output_dir": str(tmp_path / "again")}))
    assert scores(first) == scores(again)
    other = evaluate_segmentation(EvaluateConfig(**settings | {"output_dir": str(tmp_path / "other"), "seed": 1}))
    assert set(scores(other).values()).isdisjoint(scores(first).values())


def test_splits_that_overlap_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(settings["dataset"], tmp_path / "squares")
    for part in ("images", "masks"):
        first = min((folder / part).glob("train_*"))
        shutil.copy(first, folder / part / f"train_val_1{first.suffix}")
    overlapping = {**settings, "dataset": str(folder), "test_split": "train_val"}
    with pytest.raises(UserError, match="'train_val_1' is in split 'train' and in 'train_val': name two that are"):
        evaluate_segmentation(EvaluateConfig(**overlapping))
    excluded = {**settings, "dataset": str(folder), "exclude": ["train_val_1"], "seeds": 1}
    evaluate_segmentation(EvaluateConfig(**excluded))


def test_excluding_a_name_that_is_not_there_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--exclude tets_0: no image of .* has this name; one is called 't"):
        evaluate_segmentation(EvaluateConfig(**settings | {"exclude": ["tets_0"]}))


def test_runs_of_another_precision_are_not_put_together(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_segmentation(EvaluateConfig(**settings))
    monkeypatch.setattr("optidel_hf.evaluation.segmentation.resolve_precision", lambda told, device: "bf16")
    with pytest.raises(UserError, match=r"another configuration \(mixed_precision was 'no', now "):
        evaluate_segmentation(EvaluateConfig(**settings))


def test_only_the_run_that_is_missing_is_done_again(settings: dict[str, Any]) -> None:
    out = Path(settings["output_dir"])
    first = evaluate_segmentation(EvaluateConfig(**settings))
    before = times(out)
    (out / "runs" / "none-probe-seed0.json").unlink()
    assert scores(evaluate_segmentation(EvaluateConfig(**settings))) == scores(first)
    after = times(out)
    assert [name for name in before if before[name] != after[name]] == ["none-probe-seed0.json"]


def test_more_seeds_and_arms_extend_a_folder(settings: dict[str, Any]) -> None:
    out = Path(settings["output_dir"])
    evaluate_segmentation(EvaluateConfig(**settings | {"models": settings["models"][:1], "modes": ["probe"]}))
    before = times(out)
    assert len(before) == 1
    assert len(evaluate_segmentation(EvaluateConfig(**settings | {"modes": ["probe"], "seeds": 2}))) == 4
    assert times(out).items() >= before.items()


def test_another_configuration_or_data_set_is_refused(
    settings: dict[str, Any], squares_folder: Path, tmp_path: Path
) -> None:
    evaluate_segmentation(EvaluateConfig(**settings | {"modes": ["probe"]}))
    with pytest.raises(UserError, match=r"\(labels was 6, now \w+, steps was 4, now "):
        evaluate_segmentation(EvaluateConfig(**settings | {"steps": 5, "labels": 7}))
    copy = tmp_path / "copy"
    shutil.copytree(squares_folder, copy)
    changed = settings | {"modes": ["probe"], "dataset": str(copy), "output_dir": str(tmp_path / "two")}
    evaluate_segmentation(EvaluateConfig(**changed))
    shutil.copy(copy / "images" / "train_000.png", copy / "images" / "train_001.png")
    with pytest.raises(UserError, match=r"another configuration \(train images was "):
        evaluate_segmentation(EvaluateConfig(**changed))


def test_weights_that_changed_under_the_same_path_are_refused(
    settings: dict[str, Any], vit_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(vit_folder, model)
    changed = settings | {"models": [str(model)], "modes": ["probe"]}
    evaluate_segmentation(EvaluateConfig(**changed))
    encoder = ViTModel.from_pretrained(model, add_pooling_layer=False)
    with torch.no_grad():
        encoder.layernorm.bias += 0.1
    encoder.save_pretrained(model)
    with pytest.raises(UserError, match="made with other weights"):
        evaluate_segmentation(EvaluateConfig(**changed))


def test_what_the_data_cannot_give_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--labels 25: split 'train' has 24 images"):
        evaluate_segmentation(EvaluateConfig(**settings | {"labels": 25}))
    with pytest.raises(UserError, match="image_size 30 is no multiple of the 4-pixel patches of arm 'given'"):
        evaluate_segmentation(EvaluateConfig(**settings | {"image_size": 30}))
    assert not Path(settings["output_dir"]).exists()  # a mistake claims no folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": ["none"]}, "at least one path or Hub id"),
        ({"models": ["a=x", "a=y"]}, "same name"),
        ({"models": ["a="]}, "no `name=path`"),
        ({"models": ["a/b=x"]}, "a name has letters"),
        ({"modes": ["linear"]}, "modes must be among finetune, probe"),
        ({"modes": ["probe", "probe"]}, "modes names one twice"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"mixed_precision": "fp16"}, "mixed_precision must be among no, bf16, auto"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1.0"),
        ({"probe_learning_rate": float("nan")}, "probe_learning_rate must be positive, got nan"),
        ({"labels": -1}, "labels must be at least 1"),
        ({"test_split": "train"}, "both 'train'"),
        ({"data_ratio": [0.5]}, "1 values for 2 models"),
        ({"data_ratio": [5, 0]}, "shares from 0 to 1"),
        ({"dataset": ""}, "dataset is needed"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_values_that_cannot_be_meant(settings: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EvaluateConfig(**settings | change)


def test_names_of_arms() -> None:
    config = EvaluateConfig(models=["runs/full", "few=hub/org=x", "none"], dataset="d", output_dir="o")
    assert config.arms() == {"full": "runs/full", "few": "hub/org=x", "none": "none"}


def test_a_folder_with_an_equals_sign_is_no_name(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    config = EvaluateConfig(models=[str(folder), f"slow={folder}"], dataset="d", output_dir="o")
    assert config.arms() == {"lr=0.1": str(folder), "slow": str(folder)}
    with pytest.raises(UserError, match="'a/b=c' is no `name=path`: a name has letters, digits"):
        EvaluateConfig(models=["a/b=c"], dataset="d", output_dir="o")


def test_command_line_arguments_are_parsed() -> None:
    line = "--models a=x none --dataset d --output_dir o --modes probe --data_ratio 0.1 0 --image_size 64"
    (config,) = HfArgumentParser(EvaluateConfig).parse_args_into_dataclasses(line.split())
    assert (config.models, config.modes, config.data_ratio) == (["a=x", "none"], ["probe"], [0.1, 0.0])
    assert (config.image_size, config.steps) == (64, 200)


def test_no_field_that_changes_a_run_changes_unnoticed(settings: dict[str, Any]) -> None:
    plain = settings | {"modes": ["probe"]}
    evaluate_segmentation(EvaluateConfig(**plain))
    changes: dict[str, Any] = {"learning_rate": 0.1, "probe_learning_rate": 0.1, "batch_size": 5, "image_size": 64}
    for name, value in changes.items():
        with pytest.raises(UserError, match=rf"another configuration \({name} was "):
            evaluate_segmentation(EvaluateConfig(**plain | {name: value}))


def test_every_run_starts_from_the_encoder_as_given_with_its_modes_rate_and_its_seeds_labels(
    settings: dict[str, Any], vit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[Any, ...]] = []
    judged: list[list[str]] = []
    plain = segmentation.score

    def note(backbone: Backbone, data: DownstreamSet, mode: str, *, seed: int, **schedule: Any) -> Segmenter:
        rate, precision = schedule["learning_rate"], schedule["mixed_precision"]
        told.append((backbone.fingerprint(), tuple(data.names), mode, seed, rate, precision))
        with torch.no_grad():
            backbone.encoder.layernorm.bias += 1  # as fine-tuning changes what it is given
        return Segmenter(backbone, 32).eval()

    monkeypatch.setattr(segmentation, "train_segmenter", note)
    monkeypatch.setattr(
        segmentation, "score", lambda model, data, *size: judged.append(data.names) or plain(model, data, *size)
    )
    rates = {"learning_rate": 0.1, "probe_learning_rate": 0.2, "mixed_precision": "bf16"}
    evaluate_segmentation(EvaluateConfig(**settings | rates | {"seeds": 2}))
    given, names = load_backbone(str(vit_folder)), load_downstream(settings["dataset"], "train", 32).names
    labels = {seed: tuple(names[row] for row in labelled_rows(24, 6, seed)) for seed in (0, 1)}
    assert told == [
        (start(seed).fingerprint(), labels[seed], mode, seed, rate, "bf16")
        for start in (lambda seed: given, lambda seed: fresh_backbone(given, seed))
        for mode, rate in (("finetune", 0.1), ("probe", 0.2))
        for seed in (0, 1)
    ]
    assert judged == [load_downstream(settings["dataset"], "test", 32).names] * 8
