"""Scores against ViTMAE's own loss and backbone, and what they must not depend on."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from PIL import Image
from tiny_reference import picture, save_mae, tiny_mae, tiny_patches
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ViTModel

from optidel_hf.curation.calibration import FITTED_HERE, Calibration, Reference, open_reference
from optidel_hf.curation.folds import write_folds
from optidel_hf.curation.masking import mask_partition, mask_ratio
from optidel_hf.curation.nuisance import NUISANCES, nuisances
from optidel_hf.curation.reference import (
    ReferenceConfig,
    calibrate_checkpoint,
    write_settings,
)
from optidel_hf.curation.scoring import (
    KEY_FEATURES,
    SCORES,
    VARIANCES,
    ScoreConfig,
    VInformationScorer,
    embed,
    load_pixels,
    measure,
    normalise,
)
from optidel_hf.curation.vinfo import DifficultyFit, GaussianFamily
from optidel_hf.errors import UserError


NOISE = mask_partition(16, 4, seed=0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = (GaussianFamily((0.5,), (1.1,), ((0.1, -0.2, 0.3),)), GaussianFamily((0.8,), (1.3,), ((0.0, 0.1, 0.2),)))
FITS = (DifficultyFit(-0.5, 0.6, 0.2), DifficultyFit(-0.4, 0.7, 0.1))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cross-fitted reference folder: two different models, and the fold that scores each group."""
    folder = tmp_path_factory.mktemp("reference")
    write_settings(folder, ReferenceConfig(), ScoreConfig())
    for fold in (0, 1):
        save_mae(folder / f"fold-{fold}", tiny_mae(seed=fold + 1))
        facts = {"patches": 4, "groups": 2, "partitions": 2}
        calibration = Calibration(FITTED_HERE, None, False, FAMILIES[fold], FITS[fold], **facts)
        calibration.save(folder / f"fold-{fold}" / "calibration.json")
    write_folds({f"video-{g:02d}": g % 2 for g in range(6)}, folder)
    return str(folder)


def pixels(n: int = 5, seed: int = 0) -> torch.Tensor:
    return load_pixels([picture(seed + i) for i in range(n)], Reference(tiny_mae(), MEAN, STD))


def columns(rows: Dataset | dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(rows[name], dtype=np.float64) for name in (*SCORES, *NUISANCES, "fold", "embedding")}


def test_pixels_are_the_processors(tmp_path: Path) -> None:
    from transformers import ViTImageProcessorPil

    images = [picture(i) for i in range(3)]
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)
    expected = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(3), expected, atol=1e-5, rtol=0)


def test_patches_of_another_size_are_brought_to_the_models() -> None:
    assert load_pixels([picture(0, side=48)], Reference(tiny_mae(), MEAN, STD)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("masks", [2, 4])
def test_a_patchs_error_is_the_mean_of_the_models_own_losses(norm_pix_loss: bool, masks: int) -> None:
    model, batch = tiny_mae(seed=3, norm_pix_loss=norm_pix_loss), pixels()
    errors = measure(model, batch, ScoreConfig(masks=masks, mask_seed=5), range(2)).errors.squeeze(-1)
    assert errors.shape == (5, 2)
    model.config.mask_ratio = mask_ratio(16, masks)
    for i in range(5):
        for p in range(2):
            with torch.no_grad():
                losses = [model(batch[i : i + 1], noise=row[None]).loss for row in mask_partition(16, masks, 5 + p)]
            assert errors[i, p].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_tokens_that_no_mask_shows_count_once_like_all_others() -> None:
    model, batch = tiny_mae(seed=3), pixels()
    noise = mask_partition(16, 3, seed=0)  # one token of 16 is hidden by all three
    model.config.mask_ratio = mask_ratio(16, 3)
    with torch.no_grad():
        squares = [(model(batch, noise=row.expand(5, -1)).logits - model.patchify(batch)) ** 2 for row in noise]
    by_token = [
        torch.stack([s[:, t].mean(-1) for s, row in zip(squares, noise) if row[t] == 1]).mean(0) for t in range(16)
    ]
    errors = measure(model, batch, ScoreConfig(masks=3), range(1)).errors[:, 0, 0]
    torch.testing.assert_close(errors, torch.stack(by_token).mean(0))


def test_moments_are_those_of_the_channels() -> None:
    batch = pixels()
    raw = measure(tiny_mae(), batch, ScoreConfig(), range(1))
    torch.testing.assert_close(raw.mean[:, 0], batch.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.square[:, 0], batch.square().mean((2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(raw.variance, batch.flatten(1).var(1, unbiased=False))
    # Normalised targets have no mean and unit variance whatever the picture; contrast still is that of the picture.
    normalised = measure(tiny_mae(norm_pix_loss=True), batch, ScoreConfig(), range(1))
    torch.testing.assert_close(normalised.mean.mean((1, 2)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.square.mean((1, 2)), torch.full((5,), 191 / 192), atol=1e-3, rtol=0)
    torch.testing.assert_close(normalised.variance, raw.variance)


def test_families_share_variances_over_their_own_index_sets() -> None:
    model, batch = tiny_mae(seed=3), pixels()
    by = {v: measure(model, batch, ScoreConfig(variance=v), range(1)) for v in VARIANCES}
    shapes = {v: (tuple(m.errors.shape[1:]), tuple(m.mean.shape[1:])) for v, m in by.items()}
    assert shapes == {"global": ((1, 1), (1, 3)), "channel": ((1, 3), (3, 1)), "position": ((1, 16), (16, 3))}
    # The same errors and values, cut otherwise: sets are equally large, so their mean is that of all.
    for measured in by.values():
        torch.testing.assert_close(measured.errors.mean(-1), by["global"].errors[..., 0])
        torch.testing.assert_close(measured.square.mean((1, 2)), by["global"].square.mean((1, 2)))
    token = batch[:, :, 8:16, :8]  # the first token of the second row of four
    torch.testing.assert_close(by["position"].mean[:, 4], token.mean((2, 3)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(by["channel"].mean[:, 1, 0], batch[:, 1].mean((1, 2)), atol=1e-6, rtol=1e-5)
    # One channel's errors, from the model's own predictions.
    model.config.mask_ratio = mask_ratio(16, 4)
    with torch.no_grad():
        squares = [(model(batch, noise=row.expand(5, -1)).logits - model.patchify(batch)) ** 2 for row in NOISE]
    hidden = [(s[..., 2::3].mean(-1) * row).sum(1) for s, row in zip(squares, NOISE)]  # channels vary fastest
    torch.testing.assert_close(by["channel"].errors[:, 0, 2], sum(hidden) / (3 * 16))


def test_embeddings_are_the_backbones_mean_patch_token(tmp_path: Path) -> None:
    model, batch = tiny_mae(seed=2), pixels()
    plain = ViTModel.from_pretrained(save_mae(tmp_path, model), add_pooling_layer=False)
    with torch.no_grad():
        tokens = plain(batch).last_hidden_state[:, 1:].mean(1)
    embeddings = embed(model, batch)
    torch.testing.assert_close(embeddings, tokens / tokens.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    assert torch.equal(embeddings, embed(model, batch))  # to the last bit: files are compared by hash


def test_in_bfloat16_models_compute_and_nothing_else() -> None:
    model, batch, errors = tiny_mae(seed=3), pixels(), []
    exact, half = (
        measure(model, batch, ScoreConfig(score_dtype=dtype), range(1)) for dtype in ("float32", "bfloat16")
    )
    model.config.mask_ratio = mask_ratio(16, 4)
    for row in mask_partition(16, 4, seed=0):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            predicted = model(batch, noise=row.expand(5, -1))
        square = (predicted.logits.float() - model.patchify(batch)).square().mean(-1)
        errors.append((square * predicted.mask).sum(1) / predicted.mask.sum(1))
    torch.testing.assert_close(half.errors.flatten(), torch.stack(errors).mean(0))
    assert not torch.equal(half.errors, exact.errors)
    torch.testing.assert_close(half.errors, exact.errors, rtol=2e-2, atol=0)
    for name in ("mean", "square", "variance"):
        assert torch.equal(getattr(half, name), getattr(exact, name))


def test_bfloat16_scores_are_those_of_float32_up_to_its_rounding(reference: str) -> None:
    exact, half = (
        columns(VInformationScorer(reference, ScoreConfig(score_dtype=dtype), "cpu")(tiny_patches()[:]))
        for dtype in ("float32", "bfloat16")
    )
    for name in ("recon_error", "pvi", "difficulty", "embedding"):
        assert not np.array_equal(half[name], exact[name])
        np.testing.assert_allclose(half[name], exact[name], rtol=2e-2, atol=2e-2)
    for name in ("null_entropy", "contrast", *NUISANCES, "fold"):
        np.testing.assert_array_equal(half[name], exact[name])


def test_a_device_without_float64_scores(no_float64: TorchDispatchMode) -> None:
    model, images = tiny_mae(seed=2), torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with no_float64:
        batch = normalise(images, MEAN, STD)
        measure(model, batch, ScoreConfig(), range(2))
        embed(model, batch)
        nuisances(images)


def test_rows_are_scored_by_the_model_that_has_not_seen_them(reference: str) -> None:
    patches = tiny_patches()
    scored = VInformationScorer(reference, device="cpu")(patches[:])
    # Group g trained fold g % 2, so the other one scores it.
    expected = [1 - int(group[-2:]) % 2 for group in patches["group"]]
    assert scored["fold"].tolist() == expected
    for fold in (0, 1):
        rows = np.flatnonzero(np.array(expected) == fold)
        batch = load_pixels([patches["image"][i] for i in rows], Reference(tiny_mae(), MEAN, STD))
        errors = measure(tiny_mae(seed=fold + 1), batch, ScoreConfig(), range(2)).errors
        null_mean = torch.tensor(FAMILIES[fold].null_mean[0])[:, None, None]
        null = (batch - null_mean).square().mean((1, 2, 3)).unsqueeze(1)
        family = FAMILIES[fold]
        error = errors.mean((1, 2))
        expected_scores = {
            "recon_error": error,
            "cond_entropy": family.conditional_entropy(errors.mean(1)),
            "null_entropy": family.null_entropy(null),
            "pvi": family.pointwise(errors.mean(1), null),
            "pvi_std": family.pointwise(errors, null.unsqueeze(1)).std(1),
            "contrast": batch.flatten(1).std(1, unbiased=False),
            "difficulty": FITS[fold].difficulty(
                error,
                batch.flatten(1).var(1, unbiased=False),
                torch.tensor([float(patches["crop"][i][2]) for i in rows]),
            ),
        }
        for name, values in expected_scores.items():
            np.testing.assert_allclose(scored[name][rows], values.numpy(), atol=2e-5, err_msg=name)


def test_all_embeddings_come_from_one_model(reference: str) -> None:
    patches = tiny_patches()
    scored = VInformationScorer(reference, device="cpu")(patches[:])
    batch = load_pixels(patches["image"], Reference(tiny_mae(), MEAN, STD))
    expected = embed(tiny_mae(seed=1), batch)
    np.testing.assert_allclose(np.stack(scored["embedding"]), expected.numpy(), atol=1e-3)


def test_a_group_that_no_model_has_seen_is_scored_by_the_first(reference: str) -> None:
    patches = tiny_patches(4).remove_columns("group").add_column("group", ["new"] * 4)
    assert VInformationScorer(reference, device="cpu")(patches[:])["fold"].tolist() == [0] * 4


def test_nuisances_are_those_of_the_stored_pixels(reference: str) -> None:
    patches = tiny_patches(6)
    scored = VInformationScorer(reference, device="cpu")(patches[:])
    stored = torch.from_numpy(np.stack([np.asarray(picture(i)) for i in range(6)]))
    for name, values in nuisances(stored).items():
        np.testing.assert_array_equal(scored[name], values.numpy(), err_msg=name)


@pytest.mark.parametrize("change", ["map batch", "device batch", "row order"])
def test_batches_and_order_change_scores_by_rounding_alone(reference: str, change: str) -> None:
    patches = tiny_patches()
    scorer = VInformationScorer(reference, device="cpu")
    expected = columns(scorer(patches[:]))
    rows = np.random.default_rng(0).permutation(24) if change == "row order" else np.arange(24)
    size = 5 if change == "map batch" else 24
    config = ScoreConfig(patches_per_batch=3 if change == "device batch" else 64)
    other = VInformationScorer(reference, config, device="cpu")
    shuffled = patches.select(rows)
    parts = [columns(other(shuffled[start : start + size])) for start in range(0, 24, size)]
    for name, values in expected.items():
        tolerance = 1e-3 if name == "embedding" else 1e-5
        found = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(found, values[rows], atol=tolerance, err_msg=name)


def test_it_maps_over_a_dataset_with_declared_features(reference: str) -> None:
    patches = tiny_patches(10)
    scorer = VInformationScorer(reference, device="cpu")
    features = scorer.features
    scored = patches.map(
        scorer, batched=True, batch_size=4, with_rank=True, features=features, remove_columns=patches.column_names
    )
    assert scored.features == features
    assert set(features) == {*KEY_FEATURES, *SCORES, *NUISANCES, "fold", "embedding"}
    assert features["embedding"].feature.dtype == "float16"
    assert features["embedding"].length == 32
    expected = columns(scorer(patches[:]))
    for name in (*SCORES, *NUISANCES, "fold"):
        np.testing.assert_allclose(np.array(scored[name]), expected[name], atol=1e-5)
    for name in KEY_FEATURES:
        assert scored[name][:] == patches[name][:]


def test_one_partition_has_no_spread(reference: str) -> None:
    batch = tiny_patches(4)[:]
    one, two = (VInformationScorer(reference, ScoreConfig(partitions=p), "cpu")(batch) for p in (1, 2))
    assert np.isnan(one["pvi_std"]).all()
    assert (two["pvi_std"] > 0).all()
    assert np.isfinite(one["pvi"]).all()


def test_it_pickles_to_its_configuration(reference: str) -> None:
    scorer = VInformationScorer(reference, ScoreConfig(partitions=3), "cpu")
    scorer(tiny_patches(2)[:])
    pickled = pickle.dumps(scorer)
    assert len(pickled) < 1000
    assert pickle.loads(pickled) == scorer


def test_the_cache_of_map_tells_other_models_from_these(reference: str, tmp_path: Path) -> None:
    shutil.copytree(reference, tmp_path / "reference")
    scorer = VInformationScorer(tmp_path / "reference", ScoreConfig(partitions=3), "cpu")
    before = Hasher.hash(scorer)
    assert Hasher.hash(VInformationScorer(tmp_path / "reference", ScoreConfig(partitions=3), "cpu")) == before
    weights = next((tmp_path / "reference").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b"\0")  # fitted again, into the same folder
    assert Hasher.hash(scorer) != before


def test_calibrations_round_trip(tmp_path: Path) -> None:
    family = GaussianFamily((0.5, 0.4), (1.1, 0.9), ((0.1, 0.2), (0.3, 0.4)))
    calibration = Calibration(
        "some/mae", "abc", True, family, FITS[1], 12, 3, 4, mask_correlation=0.7, reliability=0.9
    )
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored["v_information_held_out"] == pytest.approx(0.25 * np.log2(1.1 / 0.5 * 0.9 / 0.4))


def test_as_many_partitions_are_scored_as_the_calibration_measured(reference: str) -> None:
    batch = tiny_patches(4)[:]
    measured, given = (VInformationScorer(reference, ScoreConfig(partitions=p), "cpu")(batch) for p in (None, 2))
    assert columns(measured)["pvi_std"].tolist() == columns(given)["pvi_std"].tolist()
    assert measured["recon_error"].tolist() == given["recon_error"].tolist()


@pytest.mark.parametrize("other", [{"variance": "channel"}, {"masks": 8}, {"mask_seed": 1}])
def test_scores_are_measured_as_the_calibration_was(tmp_path: Path, other: dict) -> None:
    name, patches = save_mae(tmp_path / "mae", tiny_mae(seed=7)), tiny_patches(16)
    calibrated = ScoreConfig(partitions=2, **other)
    folder = calibrate_checkpoint(patches, tmp_path / "out", ReferenceConfig(reference=name), calibrated, "cpu")
    scorer = VInformationScorer(folder, device="cpu")
    assert scorer.score == calibrated
    assert (
        scorer(patches[:])["pvi"].tolist() == VInformationScorer(folder, calibrated, "cpu")(patches[:])["pvi"].tolist()
    )
    with pytest.raises(UserError, match=rf"{folder} is calibrated otherwise \({next(iter(other))} was "):
        VInformationScorer(folder, ScoreConfig(), "cpu")(patches[:])


def test_a_reference_whose_target_has_changed_is_refused(reference: str, tmp_path: Path) -> None:
    write_settings(tmp_path, ReferenceConfig(), ScoreConfig())
    save_mae(tmp_path / "fold-0", tiny_mae(norm_pix_loss=True))
    shutil.copy(Path(reference) / "fold-0" / "calibration.json", tmp_path / "fold-0")
    with pytest.raises(UserError, match=r"has norm_pix_loss True, but .* was calibrated for False"):
        VInformationScorer(str(tmp_path), device="cpu")(tiny_patches(2)[:])


def test_a_folder_without_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reference folder"):
        VInformationScorer(str(tmp_path), device="cpu")(tiny_patches(2)[:])


def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    tiny_mae().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no preprocessor_config.json"):
        open_reference(str(tmp_path), None, "cpu")


def test_counts_of_masks_are_checked() -> None:
    with pytest.raises(UserError, match="partitions is 0 and masks 4"):
        ScoreConfig(partitions=0)
    with pytest.raises(UserError, match="masks 1"):
        ScoreConfig(masks=1)
    with pytest.raises(UserError, match="masks is 20 and the reference model has 16 tokens"):
        measure(tiny_mae(), pixels(1), ScoreConfig(masks=20), range(1))
    with pytest.raises(UserError, match="variance is 'patch': choose one of global, channel, position"):
        ScoreConfig(variance="patch")
    with pytest.raises(UserError, match="score_dtype is 'fp8': choose one of float32, bfloat16, auto"):
        ScoreConfig(score_dtype="fp8")


def test_patches_are_brought_to_the_models_size_by_bicubic() -> None:
    patch, mean, std = picture(0, side=48), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch.from_numpy(np.asarray(patch.resize((32, 32), Image.Resampling.BICUBIC)) / 255).permute(2, 0, 1)
    found = load_pixels([patch], Reference(tiny_mae(), mean, std))[0]
    colours = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    torch.testing.assert_close(found.double(), (expected - colours[0]) / colours[1], atol=1e-5, rtol=0)
