"""The small SAM can learn (it does not start blind), its loss falls, a run resumes, and the shipped folder loads."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamModel, SamProcessor

from optidel_hf.errors import UserError
from optidel_hf.sample.sam_batches import make_batch, sample_points, scene_pool, target_masks
from optidel_hf.sample.sam_evaluation import evaluate_sam
from optidel_hf.sample.sam_export import export_sam, scale_logits
from optidel_hf.sample.sam_training import (
    SamTrainer,
    SamTrainingConfig,
    affinity_loss,
    boxes_of,
    build_sam,
    initial_model,
    mask_losses,
    true_iou,
)


SHIPPED = Path(str(files("optidel_hf") / "sample" / "sam_tiny"))


@pytest.fixture
def tiny(tmp_path: Path) -> SamTrainingConfig:
    return SamTrainingConfig(
        output_dir=str(tmp_path / "run"),
        steps=6,
        scenes=8,
        scenes_per_batch=2,
        prompts_per_scene=4,
        warmup_steps=2,
        image_size=64,
        hidden_size=32,
        hidden_layers=2,
        decoder_size=32,
        checkpoint_steps=3,
    )


def test_a_fresh_model_sees_the_image_and_the_point(tiny: SamTrainingConfig) -> None:
    model = build_sam(tiny).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings = model.get_image_embeddings(images)
    assert (embeddings[0] - embeddings[1]).abs().mean() > 0.01
    points = torch.tensor([[[[8.0, 8.0]], [[50.0, 40.0]]]])
    masks = model(image_embeddings=embeddings[:1], input_points=points).pred_masks
    assert (masks[0, 0] - masks[0, 1]).abs().mean() > 1e-3


def test_the_fourier_features_are_standard_normal_frozen_and_shared(tiny: SamTrainingConfig) -> None:
    model = build_sam(replace(tiny, decoder_size=128))
    features = model.shared_image_embedding.positional_embedding
    assert features.std().item() == pytest.approx(1, abs=0.25)
    assert not features.requires_grad
    assert torch.equal(features, model.prompt_encoder.shared_embedding.positional_embedding)


def test_losses_and_iou_of_masks_known_by_hand() -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    right, wrong, half = torch.full((3, 4, 4), -20.0)
    right[:, :2] = wrong[:, 2:] = half[:, 0] = 20
    logits = torch.stack([right, wrong, half])[None, None]
    assert true_iou(logits, target).tolist() == [[[1.0, 0.0, 0.5]]]
    losses = mask_losses(logits, target, sharpness=2.0)[0, 0]
    assert losses[0] < 1e-4 < losses[2] < losses[1]
    # Every pixel wrong by 20 nats: focal 10 * 0.25 * 20, dice 1 - 1 / 17, bce 2 * 20.
    assert losses[1].item() == pytest.approx(50 + 16 / 17 + 40, rel=1e-4)


def test_affinity_loss_is_small_where_objects_differ_and_blind_to_the_background() -> None:
    labels = torch.tensor([[[1, 2], [0, 0]]])
    apart = torch.zeros(1, 3, 2, 2)
    apart[0, 0, 0, 0] = apart[0, 1, 0, 1] = apart[0, 2, 1] = 1
    alike = torch.ones(1, 3, 2, 2)
    # Cosines 1 and 0 are the logits 5 and -5: log(1 + exp(-5)) each way.
    assert affinity_loss(apart, labels).item() == pytest.approx(0.0067, abs=1e-4)
    assert affinity_loss(alike, labels).item() == pytest.approx(0.5 * (0.0067 + 5.0067), abs=1e-3)
    apart[0, :, 1, 1] = torch.tensor([0.0, 0.0, -1.0])
    assert affinity_loss(apart, labels).item() == pytest.approx(0.0067, abs=1e-4)


def test_points_fall_inside_the_image_and_targets_are_the_objects_under_them() -> None:
    labels = np.zeros((32, 32), np.uint8)
    labels[8:16, 4:20] = 3
    points = sample_points(labels, 200, np.random.default_rng(0), height=32, width=24)
    assert points[:, 0].max() < 24
    on_object = labels[points[:, 1], points[:, 0]] == 3
    assert on_object.mean() == pytest.approx(0.75 + 0.25 * 128 / (32 * 24), abs=0.1)
    masks = target_masks(labels, points)
    assert masks.shape == (200, 8, 8)
    assert (masks.sum((1, 2)) == on_object * 128 / 16).all()


def test_boxes_surround_the_masks_up_to_a_tenth() -> None:
    masks = torch.zeros(1, 1, 16, 16)
    masks[0, 0, 2:7, 5:15] = 1
    box = boxes_of(masks, torch.Generator().manual_seed(0))[0, 0]
    assert ((box - torch.tensor([20.0, 8, 60, 28])).abs() <= torch.tensor([4.0, 2, 4, 2])).all()


def test_batches_are_pure_functions_of_seed_and_step(tiny: SamTrainingConfig, tmp_path: Path) -> None:
    pool = scene_pool(tmp_path, 0, 4, 64)
    first, again, other = (make_batch(pool, range(2), 3, 0, step) for step in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])
    share = make_batch(pool, range(1, 2), 3, 0, 5)
    assert all(torch.equal(first[name][1:], share[name]) for name in first)


def test_training_reduces_the_loss(tiny: SamTrainingConfig) -> None:
    trainer = SamTrainer(replace(tiny, steps=1000, learning_rate=2e-3))
    batch = make_batch(scene_pool(trainer.folder, 0, 4, 64), range(2), 4, 0, 0)
    losses = [trainer._train_step(batch)[0] for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_stopped_run_goes_on_at_its_step_and_ends_with_the_same_weights(tiny: SamTrainingConfig) -> None:
    straight = SamTrainer(replace(tiny, output_dir=tiny.output_dir + "-straight"))
    list(straight.train())
    stopped = SamTrainer(tiny)
    pool = scene_pool(stopped.folder, tiny.seed, tiny.scenes, tiny.image_size)
    for step in range(3):
        stopped._train_step(make_batch(pool, range(tiny.scenes_per_batch), tiny.prompts_per_scene, tiny.seed, step))
    stopped.save()
    resumed = SamTrainer(tiny)
    assert resumed.step == 3
    list(resumed.train())
    for one, two in zip(straight.average.parameters(), resumed.average.parameters()):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_what_is_done_again_after_a_kill_is_logged_once(
    tiny: SamTrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(trainer: SamTrainer, batch: object) -> tuple[float, float]:
        trainer.step += 1
        return float(trainer.step), 0.5

    monkeypatch.setattr(SamTrainer, "_train_step", step)
    config = replace(tiny, steps=60, checkpoint_steps=40)
    killed = SamTrainer(replace(config, output_dir=tiny.output_dir + "-killed"))
    for record in killed.train():
        if record["step"] == 50:
            break  # ten steps after the checkpoint
    with (killed.folder / "log.jsonl").open("a") as log:
        log.write('{"step": 60, "lo')
    list(SamTrainer(killed.config).train())
    logged = [json.loads(line) for line in (killed.folder / "log.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in logged] == [(25, 13), (50, 38), (60, 55.5)]


def test_a_damaged_checkpoint_other_sizes_and_too_few_steps_are_told(tiny: SamTrainingConfig, tmp_path: Path) -> None:
    trainer = SamTrainer(tiny)
    trainer.step = 5
    trainer.save()
    with pytest.raises(UserError, match="has taken 5 steps: give --steps 5 or more"):
        SamTrainer(replace(tiny, steps=4))
    (trainer.folder / "checkpoint.pt").write_bytes((trainer.folder / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoint.pt is damaged .*: delete it to begin anew"):
        SamTrainer(tiny)
    export_sam(build_sam(tiny), tmp_path / "model", {})
    with pytest.raises(UserError, match=f"has hidden_size {tiny.hidden_size}: give --hidden_size {tiny.hidden_size}"):
        initial_model(replace(tiny, start_from=str(tmp_path / "model"), hidden_size=2 * tiny.hidden_size))
    with pytest.raises(UserError, match="nowhere is no SamModel's folder or Hub id"):
        initial_model(replace(tiny, start_from=str(tmp_path / "nowhere")))


def test_another_run_is_not_taken_for_the_one_that_a_checkpoint_is_of(tiny: SamTrainingConfig) -> None:
    SamTrainer(tiny).save()
    assert SamTrainer(replace(tiny, steps=tiny.steps + 1)).step == 0
    with pytest.raises(UserError, match=r"holds another run \(seed was 0, now 1\): give another --output_dir"):
        SamTrainer(replace(tiny, seed=1))


def test_training_starts_from_an_exported_model_and_leaves_its_fourier_features(
    tiny: SamTrainingConfig, tmp_path: Path
) -> None:
    export_sam(build_sam(replace(tiny, seed=9)), tmp_path / "model", {})
    trainer = SamTrainer(replace(tiny, start_from=str(tmp_path / "model")))
    first = SamModel.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in trainer.model.state_dict().items())
    trainer._train_step(make_batch(scene_pool(trainer.folder, 0, 4, 64), range(2), 4, 0, 0))
    changed = {name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, first[name])}
    assert changed
    assert not any("positional_embedding" in name for name in changed)


def test_an_exported_model_comes_back_with_its_masks_scaled(tiny: SamTrainingConfig, tmp_path: Path) -> None:
    model = build_sam(tiny).eval()
    export_sam(scale_logits(model, 3.0), tmp_path / "model", {"points_per_side": 4})
    loaded = SamModel.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    inputs = SamProcessor.from_pretrained(tmp_path / "model")(Image.new("RGB", (64, 48)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (m(inputs["pixel_values"], input_points=torch.ones(1, 1, 1, 2)) for m in (model, loaded))
    torch.testing.assert_close(3 * ours.pred_masks, theirs.pred_masks, rtol=0.02, atol=0.02)


def test_the_shipped_model_loads_in_float32_and_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8_000_000
    model = SamModel.from_pretrained(SHIPPED, dtype=torch.float32)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    inputs = SamProcessor.from_pretrained(SHIPPED)(Image.new("RGB", (300, 200)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 256, 256)
    preset = json.loads((SHIPPED / "amg_preset.json").read_text())
    assert {"points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset"} <= set(preset)


def test_the_shipped_model_finds_objects_and_ranks_its_masks() -> None:
    model = SamModel.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    # Few scenes and points, so the floors are loose: blobs around the points give 0.53 and -0.02 (on 12 scenes).
    scores = evaluate_sam(model, scenes=4, points_per_side=8)
    assert scores["best_iou"] > 0.6
    assert scores["spearman"] > 0.3
