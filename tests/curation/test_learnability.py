"""What longer training gains on a patch: a pool with planted noise, and the cut worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image as PILImage
from test_outliers import candidates
from tiny_reference import save_mae, tiny_config, tiny_mae, tiny_patches

from optidel_hf.curation.calibration import load_early, load_reference
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import curate
from optidel_hf.curation.reference import fit_scorer
from optidel_hf.curation.scoring import LEARNABILITY, ScoreConfig, VInformationScorer, measure_patches
from optidel_hf.curation.selection import select
from optidel_hf.curation.selection.candidates import over_median_within
from optidel_hf.curation.selection.choice import OUTLIER, UNLEARNT
from optidel_hf.curation.selection.outliers import cut_outliers
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.vinfo import learnability
from optidel_hf.errors import UserError
from optidel_hf.images import encode_png


SCORE = ScoreConfig(partitions=1, learnability=True)
NOISE = np.arange(96) % 12 == 5  # of the pool's patches


def test_bits_by_hand() -> None:
    # A quarter of the error is half a standard deviation: one bit. What neither model knows gains nothing.
    gained = learnability(torch.tensor([3.999, 0.999, 0.499]), torch.tensor([0.999, 0.999, 1.999]))
    assert gained.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-6)
    # Nor does a flat patch, however many times smaller an error below a JPEG's noise becomes.
    assert learnability(torch.tensor(1e-6), torch.tensor(1e-9)).item() == pytest.approx(0, abs=1e-3)
    # Contrast cancels.
    early, late = torch.tensor([0.8]), torch.tensor([0.3])
    assert learnability(9 * early, 9 * late).item() == pytest.approx(learnability(early, late).item(), abs=2e-3)


def stripes(rng: np.random.Generator) -> np.ndarray:
    """The same stripes in every patch, in colours that a few tokens tell."""
    wave = np.sin(2 * np.pi * np.arange(32) / 8)[None, :, None]
    return (128 + wave * rng.choice([-80, -50, 50, 80], 3)).repeat(32, axis=0).astype(np.uint8)


def noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def planted() -> Dataset:
    """96 patches of 24 groups, one in twelve of which no model can learn to predict."""
    rng, patches = np.random.default_rng(0), tiny_patches(96)
    images = [noise(rng) if spoilt else stripes(rng) for spoilt in NOISE]
    values = [{"bytes": encode_png(PILImage.fromarray(image)), "path": None} for image in images]
    columns = {**patches[:], "image": values, "crop": [[i, 0, 32] for i in range(96)]}
    return Dataset.from_dict(columns, features=patches.features)


@pytest.fixture(scope="module")
def reference(planted: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(reference_steps=80, reference_batch_size=8, reference_learning_rate=0.1)
    return fit_scorer(planted, tmp_path_factory.mktemp("reference"), config, SCORE, device="cpu")


@pytest.fixture(scope="module")
def scored(planted: Dataset, reference: Path) -> Dataset:
    scorer = VInformationScorer(str(reference), SCORE, "cpu")
    return planted.map(scorer, batched=True, features=scorer.features, remove_columns=planted.column_names)


def test_longer_training_gains_on_all_but_the_noise(scored: Dataset) -> None:
    gained = np.array(scored[LEARNABILITY])
    assert np.abs(gained[NOISE]).max() < 0.1 * np.median(gained[~NOISE])
    assert gained[NOISE].max() < np.quantile(gained[~NOISE], 0.05)
    # By raw error the noise is the hardest there is.
    assert np.array(scored["recon_error"])[NOISE].min() > np.array(scored["recon_error"])[~NOISE].max()


def test_the_column_compares_the_two_models_of_a_fold(scored: Dataset, planted: Dataset, reference: Path) -> None:
    for fold in (0, 1):
        rows = np.flatnonzero(np.array(scored["fold"]) == fold)
        models = (load(str(reference), fold, "cpu") for load in (load_early, load_reference))
        early, late = (measure_patches(m, planted.select(rows), SCORE, range(1)).errors.mean((1, 2)) for m in models)
        expected = 0.5 * torch.log2((early + 1e-3) / (late + 1e-3))
        np.testing.assert_allclose(np.array(scored[LEARNABILITY])[rows], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("strategy", ["optidel", "ccs"])
def test_the_cut_takes_the_noise_and_nothing_else(scored: Dataset, strategy: str) -> None:
    # Noise has strokes as text has: without the nuisance columns nothing but learnability tells.
    table = scored.remove_columns(["text", "border", "saturation", "defocus"])
    selection = select(table, 0.2, strategy, explain=True)
    assert np.flatnonzero(selection.reasons == UNLEARNT).tolist() == np.flatnonzero(NOISE).tolist()
    assert selection.facts["cut"][UNLEARNT] == {"limit": None, "count": 8}
    without = select(table.remove_columns(LEARNABILITY), 0.2, strategy, explain=True)
    assert UNLEARNT not in without.facts["cut"]
    assert NOISE[without.rows].any()


def test_the_most_learnable_are_ranked_first(scored: Dataset) -> None:
    chosen = select(scored, 0.25, "hardest", score=LEARNABILITY, tiles_per_mosaic=1)
    assert not NOISE[chosen.rows].any()
    assert NOISE[select(scored, 0.25, "hardest", tiles_per_mosaic=1).rows].mean() > 0.5  # by raw error


# The cut by hand


def test_of_the_quarter_of_highest_error_those_go_on_which_little_was_gained() -> None:
    pool = candidates(np.linspace(0, 1, 8))
    gain = np.array([1.0, 1, 1, 0, 1, 1, 0.0999, 0.1])
    learning = np.stack([gain, np.arange(1, 9) / 8], axis=1)  # the last two have the highest error
    cut = cut_outliers(replace(pool, learning=learning), 4, None)
    assert np.flatnonzero(cut.reasons == UNLEARNT).tolist() == [6]
    assert {reason: figures["count"] for reason, figures in cut.facts["cut"].items()} == {OUTLIER: 0, UNLEARNT: 1}
    assert len(cut_outliers(replace(pool, learning=learning), 8, None).pool) == 8  # the budget takes it back
    assert UNLEARNT not in cut_outliers(replace(pool, learning=learning), 4, 0.0).facts["cut"]


def test_gains_are_compared_within_a_fold_and_only_where_there_are_any() -> None:
    gain, fold = np.array([0.1, 0.2, 0.9, -0.3, 0.0, 0.1]), np.array([0, 0, 0, 1, 1, 1])
    assert over_median_within(gain, fold).tolist() == pytest.approx([0.5, 1, 4.5, np.inf, np.inf, np.inf])


# Only where it is asked for


def test_the_late_model_is_the_same_with_and_without(tmp_path: Path) -> None:
    plain = replace(SCORE, learnability=False)
    for name, score in (("with", SCORE), ("without", plain)):
        fit_scorer(tiny_patches(24), tmp_path / name, tiny_config(), score, device="cpu")
    for file in ("fold-0/model.safetensors", "fold-1/calibration.json"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    names = {path.name for path in (tmp_path / "with" / "fold-0" / "early").iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not (tmp_path / "without" / "fold-0" / "early").exists()
    assert LEARNABILITY not in VInformationScorer(str(tmp_path / "with"), plain, "cpu").features
    with pytest.raises(UserError, match=r"has no early model of fold .: fit it with --learnability"):
        VInformationScorer(str(tmp_path / "without"), SCORE, "cpu")(tiny_patches(2)[:])


def test_what_cannot_be_compared_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    config = CurationConfig(InputConfig(str(tmp_path)), str(tmp_path / "out"), PatchConfig(unit="image"))
    with pytest.raises(UserError, match="--score learnability needs --learnability"):
        curate(replace(config, selection=SelectionConfig(score=LEARNABILITY)))
    given = tiny_config(reference=save_mae(tmp_path / "mae", tiny_mae()))
    with pytest.raises(UserError, match="--reference is a late one alone"):
        curate(replace(config, reference=given, score=SCORE))
