"""Cross-fitting: who trains on what, who scores whom, and what calibration says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image as PILImage
from scipy.stats import spearmanr
from tiny_reference import save_mae, tiny_config, tiny_mae, tiny_patches
from transformers import ViTConfig, ViTMAEForPreTraining, ViTModel

from optidel_hf.curation import reference
from optidel_hf.curation.calibration import Calibration, Reference, load_folds, load_reference, open_reference
from optidel_hf.curation.folds import assign_folds, held_out
from optidel_hf.curation.reference import calibrate_checkpoint, fit_scorer, training_config
from optidel_hf.curation.reliability import fewest_partitions, spearman_brown
from optidel_hf.curation.scoring import ScoreConfig, VInformationScorer, load_pixels, measure_patches
from optidel_hf.curation.vinfo import fit_difficulty
from optidel_hf.errors import UserError
from optidel_hf.images import encode_png, open_image
from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding


SCORE = ScoreConfig(partitions=1)


def images_of(folds: dict[str, int], groups: list[str], sources: list[str]) -> list[int]:
    return [len({s for g, s in zip(groups, sources) if folds[g] == fold}) for fold in (0, 1)]


# Folds


def test_whole_groups_are_dealt_largest_first_by_images() -> None:
    # Images: a 5, b 4, c 3, d 3, e 1. a | b | c joins b (4 < 5) | d joins a (5 < 7) | e joins b (7 < 8).
    sizes = {"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}
    # Ten patches of each image of e: patches do not weigh.
    rows = [(g, f"{g}{i}") for g, n in sizes.items() for i in range(n) for _ in range(10 if g == "e" else 1)]
    groups, sources = map(list, zip(*rows))
    folds = assign_folds(groups, sources)
    assert folds["a"] != folds["b"]
    assert images_of(folds, groups, sources) == [8, 8]


def test_a_group_that_outweighs_all_others_is_not_alone_in_its_fold() -> None:
    for others in (1, 2, 3, 9):
        groups = ["big"] * 9 + [f"g{i}" for i in range(others)]
        folds = assign_folds(groups, [str(i) for i in range(len(groups))])
        with_big = sum(fold == folds["big"] for fold in folds.values())
        assert with_big == (2 if others > 2 else 1)


def test_folds_do_not_depend_on_row_order() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(30, size=300)]
    sources = [f"{g}-{i % 7}" for i, g in enumerate(groups)]
    expected = assign_folds(groups, sources, seed=1)
    for _ in range(5):
        order = rng.permutation(300)
        assert assign_folds([groups[i] for i in order], [sources[i] for i in order], seed=1) == expected
    assert assign_folds(groups, sources, seed=2) != expected
    first, second = images_of(expected, groups, sources)
    assert abs(first - second) <= 2


# Fitting


class Spy:
    """Stands in for training: notes what each fold was given, and trains as asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[dict[str, Any]] = []
        real, runs = reference.Pretrainer, self.runs

        class Noted(real):  # type: ignore[valid-type, misc]
            def __init__(self, config: Any, images: torch.Tensor, **options: Any) -> None:
                super().__init__(config, images, **options)
                weights = {name: w.detach().clone() for name, w in self.model.state_dict().items()}
                runs.append({"config": config, "images": images, "weights": weights})

        monkeypatch.setattr(reference, "Pretrainer", Noted)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset, Spy]:
    """Both folds of 48 patches, 24 images, 12 groups."""
    patches = tiny_patches(48)
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy = Spy(monkeypatch)
        folder = fit_scorer(patches, tmp_path_factory.mktemp("fitted"), tiny_config(), SCORE, device="cpu")
    return folder, patches, spy


def groups_trained_on(images: torch.Tensor, patches: Dataset) -> set[str]:
    known = {np.asarray(open_image(v)).tobytes(): group for v, group in zip(patches["image"], patches["group"])}
    return {known[image.permute(1, 2, 0).numpy().tobytes()] for image in images}


def test_no_model_trains_on_what_it_scores_or_is_calibrated_on(fitted: tuple[Path, Dataset, Spy]) -> None:
    folder, patches, spy = fitted
    scorers = load_folds(str(folder))
    assert set(scorers) == set(patches["group"])
    for fold, run in enumerate(spy.runs):
        own = {group for group, scorer in scorers.items() if scorer == 1 - fold}
        trained = groups_trained_on(run["images"], patches)
        calibration = Calibration.load(folder / f"fold-{fold}" / "calibration.json")
        assert trained < own
        assert len(own - trained) == calibration.groups >= 1
        assert len(run["images"]) == 4 * len(trained)  # every patch of the groups
        # A tenth of a fold's 12 images is more than none of its groups of 2 images, and less than two.
        assert calibration.patches == 4


def test_both_folds_start_alike_and_train_as_long(fitted: tuple[Path, Dataset, Spy]) -> None:
    first, second = fitted[2].runs
    assert first["weights"].keys() == second["weights"].keys()
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())
    assert first["config"].steps == second["config"].steps == 2
    ended = [ViTMAEForPreTraining.from_pretrained(fitted[0] / f"fold-{fold}").state_dict() for fold in (0, 1)]
    assert any(not torch.equal(weight, ended[1][name]) for name, weight in ended[0].items())


def test_a_fold_holds_what_scoring_reads_and_nothing_else(fitted: tuple[Path, Dataset, Spy]) -> None:
    folder = fitted[0]
    whole = ["fold-0", "fold-1", "folds.parquet", "reliability.json", "settings.json"]
    assert sorted(path.name for path in folder.iterdir()) == whole
    for fold in (0, 1):
        names = {path.name for path in (folder / f"fold-{fold}").iterdir()}
        assert names == {"config.json", "model.safetensors", "preprocessor_config.json", "calibration.json"}


def test_the_calibration_is_the_closed_form(fitted: tuple[Path, Dataset, Spy]) -> None:
    for fold in (0, 1):
        facts = json.loads((fitted[0] / f"fold-{fold}" / "calibration.json").read_text())
        (null,), (model,) = facts["family"]["null_variance"], facts["family"]["model_variance"]
        assert facts["v_information_held_out"] == pytest.approx(0.5 * np.log2(null / model))


def test_scores_of_the_held_out_patches_average_to_the_calibration(fitted: tuple[Path, Dataset, Spy]) -> None:
    folder, patches, spy = fitted
    own = {group for group, scorer in load_folds(str(folder)).items() if scorer == 1}
    held = own - groups_trained_on(spy.runs[0]["images"], patches)
    rows = [i for i, group in enumerate(patches["group"]) if group in held]
    # Under a name that no fold knows they are scored by fold 0's model, which kept them from its training.
    scored = VInformationScorer(str(folder), SCORE, "cpu")({**patches[rows], "group": ["new"] * len(rows)})
    family = Calibration.load(folder / "fold-0" / "calibration.json").family
    assert scored["recon_error"].mean() == pytest.approx(family.model_variance[0], rel=1e-4)
    assert scored["pvi"].mean() == pytest.approx(family.information, abs=1e-4)
    assert scored["difficulty"].mean() == pytest.approx(0, abs=1e-4)


def test_a_finished_fold_is_not_fitted_again(
    fitted: tuple[Path, Dataset, Spy], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, patches, _ = fitted
    monkeypatch.setattr(reference, "Pretrainer", None)
    before = (folder / "fold-1" / "model.safetensors").stat()
    assert fit_scorer(patches, folder, tiny_config(), SCORE, device="cpu") == folder
    assert (folder / "fold-1" / "model.safetensors").stat() == before


def test_models_that_were_fitted_anew_score(tmp_path: Path) -> None:
    patches, folder, scores = tiny_patches(16), tmp_path / "reference", []
    for seed in (0, 1):
        fit_scorer(patches, folder, tiny_config(reference_seed=seed), SCORE, device="cpu")
        scores.append(VInformationScorer(str(folder), SCORE, "cpu")(patches[:])["pvi"].tolist())
        shutil.rmtree(folder)
    assert scores[0] != scores[1]


def test_models_of_other_images_are_not_taken_for_these(fitted: tuple[Path, Dataset, Spy]) -> None:
    with pytest.raises(UserError, match="holds models of other images, or of another seed: give a new folder"):
        fit_scorer(tiny_patches(52), fitted[0], tiny_config(), SCORE, device="cpu")


def test_row_order_does_not_matter(fitted: tuple[Path, Dataset, Spy], tmp_path: Path) -> None:
    folder, patches, _ = fitted
    again = fit_scorer(patches.shuffle(seed=5), tmp_path, tiny_config(), SCORE, device="cpu")
    for name in ("folds.parquet", "fold-0/model.safetensors", "fold-1/calibration.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_training_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    fit_scorer(tiny_patches(48), tmp_path, tiny_config(max_reference_patches=7), SCORE, device="cpu")
    assert [len(run["images"]) for run in spy.runs] == [7, 7]


def test_the_largest_group_trains() -> None:
    groups = ["large"] * 20 + ["small"] + ["other"] * 2
    patches = Dataset.from_dict({"group": groups, "source": [f"{i}" for i in range(23)]})
    for seed in range(20):
        held = held_out({"large", "small", "other"}, patches, share=0.1, seed=seed)
        assert held in ({"other"}, {"small", "other"})  # 2.3 images are wanted


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_too_few_groups_are_refused(groups: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too few to train and calibrate .* or a checkpoint with --reference"):
        fit_scorer(tiny_patches(4 * groups), tmp_path, tiny_config(), SCORE, device="cpu")
    assert not any(tmp_path.iterdir())  # refused before a fold was fitted


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_holdout_is_below_half(share: float) -> None:
    with pytest.raises(UserError, match=f"holdout is {share}"):
        tiny_config(holdout=share)


def test_sizes_that_no_model_has_are_refused() -> None:
    with pytest.raises(UserError, match="reference_width is 96: it is a multiple of 64"):
        tiny_config(reference_width=96)
    for name in ("reference_steps", "reference_token", "max_reference_patches"):
        with pytest.raises(UserError, match="at least 1"):
            tiny_config(**{name: 0})
    for rate in (0.0, float("nan")):
        with pytest.raises(UserError, match=f"reference_learning_rate is {rate}"):
            tiny_config(reference_learning_rate=rate)


def test_models_of_other_settings_are_not_handed_out(fitted, tmp_path: Path) -> None:
    folder, patches = fitted[0], tiny_patches(48)
    with pytest.raises(UserError, match="reference_steps was 2, now 7"):
        fit_scorer(patches, folder, tiny_config(reference_steps=7), SCORE, device="cpu")
    with pytest.raises(UserError, match="masks was 4, now 8"):
        fit_scorer(patches, folder, tiny_config(), replace(SCORE, masks=8), device="cpu")


# A given checkpoint


@pytest.mark.parametrize("n", [48, 4])
def test_a_checkpoint_is_calibrated_on_a_tenth_and_scores_all(tmp_path: Path, n: int) -> None:
    name = save_mae(tmp_path / "mae", tiny_mae(seed=7))
    patches = tiny_patches(n)
    folder = calibrate_checkpoint(patches, tmp_path / "out", tiny_config(reference=name), SCORE, device="cpu")
    assert sorted(path.name for path in folder.iterdir()) == ["fold-0", "reliability.json", "settings.json"]
    calibration = Calibration.load(folder / "fold-0" / "calibration.json")
    # 24 images of 12 groups: two groups hold 2.4 of them; a single group is all there is.
    assert (calibration.model, calibration.patches) == (name, 8 if n == 48 else 4)
    scored = VInformationScorer(str(folder), SCORE, "cpu")(patches[:])
    assert scored["fold"].tolist() == [0] * n
    assert np.isfinite(scored["pvi"]).all()
    shutil.rmtree(name)
    assert calibrate_checkpoint(patches, folder, tiny_config(reference=name), SCORE, device="cpu") == folder
    with pytest.raises(UserError, match=r"models of other settings \(reference was '.*mae', now 'other'\)"):
        calibrate_checkpoint(patches, folder, tiny_config(reference="other"), SCORE, device="cpu")


def one_group(n: int = 24) -> Dataset:
    """Patches that a given checkpoint is calibrated on as a whole."""
    return tiny_patches(n, sources_per_group=n)


def ranked_difficulty(errors: np.ndarray, variance: torch.Tensor, patches: Dataset) -> np.ndarray:
    """What contrast and side leave of log error, by least squares."""
    sides = np.array([crop[2] for crop in patches["crop"]], dtype=np.float64)
    design = np.c_[np.ones(len(sides)), np.log(variance.double().numpy() + 1e-3), np.log(sides)]
    target = np.log(errors)
    return target - design @ np.linalg.lstsq(design, target, rcond=None)[0]


def test_a_checkpoint_is_not_fitted_anew_in_silence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="given is not to be fitted: calibrate_checkpoint"):
        fit_scorer(tiny_patches(), tmp_path / "out", tiny_config(reference="given"), SCORE, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_calibration_of_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no checkpoint to calibrate"):
        calibrate_checkpoint(tiny_patches(4), tmp_path / "out", tiny_config(), SCORE, device="cpu")


def test_partitions_are_the_fewest_that_order_patches_reliably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, patches = save_mae(tmp_path / "mae", tiny_mae(seed=7)), one_group()
    config = tiny_config(reference=name)
    measured = measure_patches(open_reference(name, None, "cpu"), patches, ScoreConfig(), range(3))
    errors = measured.errors[..., 0].double().numpy()
    # By hand: what contrast and size leave of two partitions' errors, and how its ranks correlate.
    sides = torch.tensor([float(crop[2]) for crop in patches["crop"]])
    fit = fit_difficulty(measured.errors[:, :2].mean((1, 2)), measured.variance, sides)
    rho = spearmanr(*(fit.difficulty(measured.errors[:, p, 0], measured.variance, sides) for p in (0, 1))).statistic

    def calibrated(folder: str, partitions: int | None = None) -> Calibration:
        written = calibrate_checkpoint(patches, tmp_path / folder, config, ScoreConfig(partitions=partitions), "cpu")
        return Calibration.load(written / "fold-0" / "calibration.json")

    automatic, given = calibrated("automatic"), calibrated("given", partitions=3)
    assert automatic.partitions == fewest_partitions(rho)
    monkeypatch.setattr(reference, "fewest_partitions", lambda rho: 3)
    assert given == calibrated("three")
    for calibration in (automatic, given):
        assert calibration.mask_correlation == pytest.approx(rho)
        assert calibration.reliability == pytest.approx(spearman_brown(rho, calibration.partitions))
        # The variance is that of the partitions that will be scored, no more and no fewer.
        expected = errors[:, : calibration.partitions].mean()
        assert calibration.family.model_variance[0] == pytest.approx(expected, rel=1e-5)


def test_folds_agree_as_far_as_is_written(fitted: tuple[Path, Dataset, Spy]) -> None:
    folder, patches, spy = fitted
    unseen = set(patches["group"])
    for run in spy.runs:
        unseen -= groups_trained_on(run["images"], patches)
    held = patches.filter(lambda row: row["group"] in unseen)
    facts = json.loads((folder / "reliability.json").read_text())
    assert (facts["score"], facts["patches"], facts["between_models"]) == ("difficulty", len(held), None)
    difficulty = []
    for fold in (0, 1):
        measured = measure_patches(load_reference(str(folder), fold, "cpu"), held, SCORE, range(1))
        difficulty.append(ranked_difficulty(measured.errors[:, 0, 0].double().numpy(), measured.variance, held))
    assert facts["between_folds"] == pytest.approx(spearmanr(*difficulty).statistic)


def test_another_reference_is_compared(tmp_path: Path) -> None:
    name, other = (save_mae(tmp_path / f"mae-{seed}", tiny_mae(seed=seed)) for seed in (7, 8))
    agreement = []
    for second in (name, other):
        config = tiny_config(reference=name, second_reference=second)
        folder = calibrate_checkpoint(one_group(), tmp_path / f"with-{Path(second).name}", config, SCORE, "cpu")
        agreement.append(json.loads((folder / "reliability.json").read_text()))
    assert agreement[0]["between_models"] == pytest.approx(1)
    assert -1 <= agreement[1]["between_models"] < 1
    assert agreement[1]["second_reference"] == other
    assert agreement[1]["between_folds"] is None


# The target that a checkpoint predicts


def ruled_patches() -> Dataset:
    """24 patches that are lighter or darker, and ruled alike: every token rises from left to right."""
    patches = one_group()
    ramp = np.tile(np.linspace(60, 120, 8), 4)[None, :, None]
    shades = np.random.default_rng(0).uniform(-10, 10, 24)
    images = [np.broadcast_to(ramp + shade, (32, 32, 3)).round().astype(np.uint8) for shade in shades]
    values = [{"bytes": encode_png(PILImage.fromarray(image)), "path": None} for image in images]
    return Dataset.from_dict({**patches[:], "image": values}, features=patches.features)


@pytest.fixture(params=[False, True], ids=["raw", "normalised"])
def ruler(request: pytest.FixtureRequest) -> tuple[ViTMAEForPreTraining, bool]:
    """A ViT-MAE that predicts the mean token of those patches, and whether of their normalised pixels."""
    model = tiny_mae(norm_pix_loss=request.param)
    reference = Reference(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        tokens = MaskedAutoencoding(model).target(load_pixels(ruled_patches()["image"], reference))
        model.decoder.decoder_pred.weight.zero_()
        model.decoder.decoder_pred.bias.copy_(tokens.mean((0, 1)))
    return model, request.param


def test_the_target_is_recorded(ruler: tuple[ViTMAEForPreTraining, bool], tmp_path: Path) -> None:
    model, normalised = ruler
    config = tiny_config(reference=save_mae(tmp_path / "mae", model))
    folder = calibrate_checkpoint(ruled_patches(), tmp_path / "out", config, SCORE, device="cpu")
    calibration = Calibration.load(folder / "fold-0" / "calibration.json")
    assert calibration.normalised_target is normalised
    assert calibration.family.information > 1
    # Normalised tokens have a mean square of 191/192 by definition, whatever the pictures.
    mean_square = calibration.family.null_variance[0] + np.square(calibration.family.null_mean).mean()
    assert (abs(mean_square - 191 / 192) < 1e-3) == normalised


def test_a_checkpoint_that_says_the_wrong_target_is_refused(
    ruler: tuple[ViTMAEForPreTraining, bool], tmp_path: Path
) -> None:
    model, normalised = ruler
    name = save_mae(tmp_path / "mae", model)
    stored = json.loads((tmp_path / "mae" / "config.json").read_text())
    (tmp_path / "mae" / "config.json").write_text(json.dumps({**stored, "norm_pix_loss": not normalised}))
    with pytest.raises(UserError, match=f"says norm_pix_loss {not normalised}, but its predictions fit the other"):
        calibrate_checkpoint(ruled_patches(), tmp_path / "out", tiny_config(reference=name), SCORE, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_predicts_normalised_pixels_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = save_mae(tmp_path / "mae", tiny_mae(norm_pix_loss=True))
    calibrate_checkpoint(tiny_patches(), tmp_path / "out", tiny_config(reference=name), SCORE, device="cpu")
    assert "predicts normalised pixels" in caplog.text


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    config = tiny_config(reference=str(tmp_path / "vit"))
    with pytest.raises(UserError, match="is a 'vit', not a 'vit_mae'"):
        calibrate_checkpoint(tiny_patches(), tmp_path / "out", config, SCORE, device="cpu")


def test_a_reference_model_is_trained_as_it_is_told(tmp_path: Path) -> None:
    told = tiny_config(reference_seed=5, reference_learning_rate=0.2, reference_width=128, reference_layers=3)
    config = training_config(told, tmp_path, tiny_patches(2), "cpu")
    assert (config.steps, config.batch_size, config.base_learning_rate, config.seed) == (2, 4, 0.2, 5)
    assert (config.image_size, config.patch_size) == (32, 8)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (128, 2, 3)
    assert (config.norm_pix_loss, config.min_crop_scale, config.mixed_precision) == (False, 0.5, "no")


def test_what_a_capped_training_sees_is_drawn_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    for name, most in (("all", 50), ("few", 7)):
        fit_scorer(tiny_patches(48), tmp_path / name, tiny_config(max_reference_patches=most), SCORE, device="cpu")
    whole, capped = ([image.numpy().tobytes() for image in run["images"]] for run in spy.runs[::2])
    rows = [whole.index(image) for image in capped]
    assert rows == sorted(rows) != list(range(7))  # in order, and not the first ones
