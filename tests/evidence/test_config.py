"""The grid's configurations: those that are shipped can be read, and what cannot be meant is refused in a sentence."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from transformers import ViTMAEConfig

from optidel_hf.arguments import parse
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import ScoreConfig
from optidel_hf.errors import UserError
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.config import DEFAULT_ARMS, FLAGS, Experiment, make_experiment
from optidel_hf.evidence.gate import CONDITIONS


SHIPPED = Path(__file__).parents[2] / "recipes" / "configs"


def read(*arguments: str) -> Experiment:
    return make_experiment(*parse(FLAGS, arguments, "optidel reproduce", ""))


def test_the_default_arms_are_the_core_and_what_the_gate_needs() -> None:
    assert set(DEFAULT_ARMS) == {*(name for name, arm in ARMS.items() if arm.core), "oracle"}
    assert set(itertools.chain(*CONDITIONS)) <= set(DEFAULT_ARMS)


def test_images_have_the_size_of_the_checkpoint_that_arms_start_from(tmp_path: Path) -> None:
    ViTMAEConfig(image_size=96, patch_size=16).save_pretrained(tmp_path)
    experiment = read("--pretrain_model", str(tmp_path))
    assert (experiment.pretrain.image_size, experiment.pool().mosaic.image_size) == (96, 96)


def test_the_shipped_configurations_can_be_read() -> None:
    kvasir = read("--config", str(SHIPPED / "polypgen_kvasir.yaml"))
    assert (kvasir.grid.labels, kvasir.grid.budgets, kvasir.grid.seeds) == ([100], [0.05], 11)
    assert kvasir.grid.names("test_range") == ("train_0200", "train_0799")
    assert kvasir.pretrain.steps % kvasir.grid.checkpoints == 0
    larger = read("--config", str(SHIPPED / "polypgen_kvasir_224.yaml"))
    assert larger.grid.names("label_range") == kvasir.grid.names("label_range")
    assert (larger.grid.exclude, larger.grid.arms) == (kvasir.grid.exclude, kvasir.grid.arms)
    assert (larger.pretrain.image_size, larger.pretrain.hidden_size) == (224, 384)
    sample = read("--config", str(SHIPPED / "sample.yaml"))
    assert set(sample.grid.arms) == set(DEFAULT_ARMS)
    assert sample.patches.points_per_side == 10


def test_the_second_domain_leaves_every_default_of_the_method_alone() -> None:
    cells = read("--config", str(SHIPPED / "cells.yaml"))
    assert (cells.patches, cells.reference, cells.score) == (PatchConfig(), ReferenceConfig(), ScoreConfig())
    sample = read("--config", str(SHIPPED / "sample.yaml"))
    assert cells.pretrain == sample.pretrain
    judged = ("labels", "budgets", "arms", "modes", "finetune_steps", "probe_steps", "held_out", "near_distance")
    assert all(getattr(cells.grid, name) == getattr(sample.grid, name) for name in judged)


def test_training_fields_are_flags_over_the_file() -> None:
    given = ["--pretrain_steps", "8", "--pretrain_norm_pix_loss", "true", "--pretrain_objective", "simclr"]
    changed = read("--config", str(SHIPPED / "polypgen_kvasir.yaml"), *given, "--pool", "there", "--seeds", "2")
    assert (changed.pretrain.steps, changed.pretrain.norm_pix_loss, changed.pretrain.objective) == (8, True, "simclr")
    assert changed.pretrain.base_learning_rate == 4e-3


def test_places_and_the_choice_of_cells_do_not_determine_a_cell() -> None:
    places = ["--pool", "a", "--downstream", "b", "--output_dir", "c", "--curation_dir", "d", "--device", "cpu"]
    cells = ["--arms", "full", "--budgets", "0.2", "--seeds", "3", "--seed", "7", "--merge", "e"]
    assert read(*places, *cells).determining() == read().determining()
    told, other = read().determining(), read("--finetune_steps", "7", "--reference_steps", "9").determining()
    assert [name for name in told if told[name] != other[name]] == ["reference.reference_steps", "grid.finetune_steps"]


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no/such is no folder here and no checkpoint on the Hub"):
        read("--pretrain_model", "no/such").determining()


def test_checkpoints_are_asked_for_at_their_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optidel_hf.evidence.config.checkpoint_fingerprint", lambda name, at=None: f"{name} at {at}")
    reference = ["--reference", "me/mae", "--reference_revision", "v2"]
    told = read(*reference, "--pretrain_model", "me/vit", "--pretrain_model_revision", "v3").determining()
    assert (told["reference.reference"], told["pretrain.model"]) == ("me/mae at v2", "me/vit at v3")


def test_who_pays_for_curation_is_trained_longer() -> None:
    given = ["--curation_steps", "700", "--reference_steps", "30", "--pretrain_batch_size", "32"]
    told = read(*given, "--arms", "full_equal_compute", "full_equal_compute_from_scorer")
    assert [told.steps(arm) for arm in ("full", "full_equal_compute")] == [400, 1100]
    assert told.steps("full_equal_compute_from_scorer") == 1100 - 60  # 30 steps of 64 patches were the scorer's


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--arms full_equal_compute", "curation_steps is 0: give what the table of costs"),
        (
            "--arms full_equal_compute_from_scorer --curation_steps 900 --pretrain_hidden_size 96",
            "reference_width is 192 and pre-training's hidden_size 96",
        ),
        ("--arms random_equal_compute --checkpoints 4 --curation_steps 9", "steps 409 of random_equal_compute"),
        ("--arms full optidel_m9", "optidel_m9 has 3 tiles along a side, which do not divide image_size 64"),
        ("--arms learnable_mosaics", "learnable_mosaics ranks by a column that the scores have with"),
        ("--budgets 0", "budgets are shares of the pool"),
        ("--arms full full", "arms names something twice"),
        ("--modes probed", "modes must be among finetune, probe"),
        ("--finetune_mixed_precision fp16", "finetune_mixed_precision must be among no, bf16, auto"),
        ("--test_split train", "must be three splits"),
        ("--checkpoints 3", "^steps 400 must be a multiple of checkpoints 3"),
        ("--pretrain_mask_ratio 2", "pre-training: mask_ratio must lie between 0 and 1"),
        ("--unit image", "unit and reference_seed are each arm's own and each seed's"),
        ("--reference_seed 7", "unit and reference_seed are each arm's own and each seed's"),
        ("--pretrain_seed 1", "unrecognized arguments: --pretrain_seed"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(*flags.split())
