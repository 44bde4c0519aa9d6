"""Contrastive V-information: cases worked by hand, and scores that know nothing of batches and order."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_reference import picture, save_mae, tiny_mae, tiny_patches
from torch.nn.functional import normalize
from transformers import ViTConfig, ViTModel

from optidel_hf.curation import contrastive_scoring
from optidel_hf.curation.contrastive import (
    COLDEST,
    CandidateBank,
    candidates_in_batch,
    fit_temperature,
    info_nce,
    information,
)
from optidel_hf.curation.contrastive_scoring import (
    COLUMNS,
    ContrastiveScorer,
    calibrate_contrastive,
    draw_view,
    embed_views,
    load_contrastive,
    load_encoder,
)
from optidel_hf.curation.selection import select
from optidel_hf.errors import UserError
from optidel_hf.pretraining.batches import image_processor


# By hand


def test_what_is_told_among_as_many_as_a_batch_has() -> None:
    assert candidates_in_batch(256) == 511
    # All alike: a guess, log C nats and no bit. The right one alone stands out: all of log2 C bits.
    alike = info_nce(torch.zeros(1), torch.zeros(1, 7), 0.1)
    assert alike.item() == pytest.approx(math.log(8))
    assert information(alike, 8).item() == pytest.approx(0, abs=1e-12)
    assert information(info_nce(torch.ones(1), -torch.ones(1, 7), 0.05), 8).item() == pytest.approx(3)
    # Certain of a wrong one: worse than a guess, so below nothing.
    assert information(info_nce(-torch.ones(1), torch.ones(1, 7), 0.5), 8).item() < 0


def test_a_loss_worked_by_hand() -> None:
    # Odds of 4 : 1 : 1 : 2 at temperature 1/ln 2: similarities 2, 0, 0, 1, so half the probability: one bit of two.
    loss = info_nce(torch.tensor([2.0]), torch.tensor([[0.0, 0.0, 1.0]]), 1 / math.log(2))
    assert loss.item() == pytest.approx(math.log(2))
    assert information(loss, 4).item() == pytest.approx(1.0)


def test_the_temperature_is_that_of_the_softmax_that_drew_the_answers() -> None:
    """Answers drawn from softmax(s / 0.2): no other temperature codes them better."""
    generator = torch.Generator().manual_seed(0)
    similar = torch.rand(20_000, 8, generator=generator) * 2 - 1
    answer = torch.multinomial(torch.softmax(similar / 0.2, dim=1), 1, generator=generator)
    right = similar.gather(1, answer).squeeze(1)
    wrong = similar.scatter(1, answer, float("-inf"))
    assert fit_temperature(right, wrong) == pytest.approx(0.2, rel=0.03)


def test_without_mistakes_a_temperature_is_taken_at_which_nothing_is_left_to_gain() -> None:
    right, wrong = torch.ones(4), torch.zeros(4, 3)
    temperature = fit_temperature(right, wrong)
    assert temperature >= COLDEST
    assert info_nce(right, wrong, temperature).max() < 1e-9


def test_information_is_estimated_from_few_candidates_up_to_their_logarithm() -> None:
    """Correlated Gaussian pairs that share 6 x 1/2 log2(1 / (1 - r^2)) = 3.5 bits: C = 4 shows at most 2 of them."""
    generator, r = torch.Generator().manual_seed(1), 0.745
    x, noise, others = torch.randn(3, 3000, 6, generator=generator)
    y = r * x + math.sqrt(1 - r**2) * noise
    known = 6 * 0.5 * math.log2(1 / (1 - r**2))

    # The optimal critic of this pair, log p(y|x) / p(y), in place of a cosine.
    def critic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (-((b - r * a) ** 2) / (2 * (1 - r**2)) + b**2 / 2).sum(-1)

    right, wrong = critic(x, y)[:1000], critic(x[:1000, None], others[None, :1023])
    found = {c: information(info_nce(right, wrong[:, : c - 1], 1.0), c).mean().item() for c in (4, 64, 1024)}
    assert found[4] < found[64] < found[1024] < known + 0.05
    assert found[4] < 2
    assert found[1024] == pytest.approx(known, abs=0.25)  # InfoNCE is a lower bound


def test_a_patchs_own_group_is_no_candidate() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = CandidateBank(normalize(torch.randn(4, 5, generator=generator), dim=1), ("a", "b", "c", "spare"))
    view = normalize(torch.randn(3, 5, generator=generator), dim=1)
    similar = view @ bank.embeddings.T
    found = bank.similarities(view, ["b", "elsewhere", "spare"])
    assert bank.candidates == 4
    expected = torch.stack([similar[0, [0, 3, 2]], similar[1, :3], similar[2, :3]])
    torch.testing.assert_close(found, expected)


# The scorer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT of 32 px with a projection head beside it, as a SimCLR training leaves them."""
    folder = tmp_path_factory.mktemp("simclr")
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    model = ViTModel(ViTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2), add_pooling_layer=False)
    model.save_pretrained(folder / "backbone")
    image_processor(32).save_pretrained(folder / "backbone")
    weights = {"0.weight": torch.randn(32, 32) / 6, "0.bias": torch.zeros(32), "2.weight": torch.randn(16, 32) / 6}
    save_file(weights, folder / "projection_head.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def calibrated(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrate_contrastive(tiny_patches(96), tmp_path_factory.mktemp("contrastive"), backbone, device="cpu")


def test_the_folder_says_how_much_of_what_there_is_was_found(calibrated: Path) -> None:
    facts = json.loads((calibrated / "contrastive.json").read_text())
    # 24 groups: 2 calibrate, 22 are candidates, all but the spare and the right one wrong.
    assert (facts["candidates"], facts["patches"]) == (22, 8)
    assert facts["ceiling"] == pytest.approx(math.log2(22))
    assert facts["saturation"] == pytest.approx(facts["information"] / math.log2(22))
    assert load_contrastive(str(calibrated))[1].embeddings.shape == (22, 16)


def test_the_calibration_part_has_the_information_that_is_written(calibrated: Path, backbone: str) -> None:
    patches, (facts, bank) = tiny_patches(96), load_contrastive(str(calibrated))
    held = [row for row, group in enumerate(patches["group"]) if group not in bank.groups]
    scored = ContrastiveScorer(str(calibrated), "cpu")(patches[held])
    assert len(held) == facts.patches
    assert scored["contrastive_pvi"].mean() == pytest.approx(facts.information, abs=1e-5)
    np.testing.assert_allclose(
        scored["contrastive_pvi"] + scored["contrastive_entropy"], math.log2(bank.candidates), rtol=1e-6
    )


@pytest.mark.parametrize("change", ["map batch", "device batch", "row order"])
def test_batches_and_order_change_scores_by_rounding_alone(calibrated: Path, change: str) -> None:
    patches = tiny_patches(20)
    expected = ContrastiveScorer(str(calibrated), "cpu")(patches[:])
    rows = np.random.default_rng(0).permutation(20) if change == "row order" else np.arange(20)
    size = 3 if change == "map batch" else 20
    other = ContrastiveScorer(str(calibrated), "cpu", patches_per_batch=4 if change == "device batch" else 64)
    parts = [other(patches[rows[start : start + size]]) for start in range(0, 20, size)]
    for name in COLUMNS:
        np.testing.assert_allclose(np.concatenate([p[name] for p in parts]), expected[name][rows], atol=1e-4)
    assert np.ptp(expected["contrastive_pvi"]) > 0.1


def test_the_bank_does_not_depend_on_row_order(calibrated: Path, backbone: str, tmp_path: Path) -> None:
    again = calibrate_contrastive(tiny_patches(96).shuffle(seed=3), tmp_path, backbone, device="cpu")
    first, second = (load_contrastive(str(folder)) for folder in (calibrated, again))
    assert first[0].groups == second[0].groups
    torch.testing.assert_close(first[1].embeddings, second[1].embeddings)
    assert first[0].temperature == pytest.approx(second[0].temperature, rel=1e-3)


def test_it_maps_over_a_dataset_and_pickles_to_its_configuration(calibrated: Path) -> None:
    patches, scorer = tiny_patches(6), ContrastiveScorer(str(calibrated), "cpu")
    scored = patches.map(
        scorer, batched=True, with_rank=True, features=scorer.features, remove_columns=patches.column_names
    )
    assert scored.features == scorer.features
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert len(pickle.dumps(scorer)) < 1000
    chosen = select(scored, 1 / 6, "hardest", score="contrastive_pvi", tiles_per_mosaic=1, images=6).rows
    assert chosen.tolist() == [np.argmin(scored["contrastive_pvi"])]


def test_two_processes_score_as_one_does(calibrated: Path) -> None:
    patches, scorer = tiny_patches(6), ContrastiveScorer(str(calibrated), "cpu")
    options = {"batched": True, "features": scorer.features, "remove_columns": patches.column_names}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # forked from a parent with several threads, a child with as many waits for ever
    try:
        alone = patches.map(scorer, load_from_cache_file=False, **options)
        together = patches.map(scorer, load_from_cache_file=False, num_proc=2, **options)
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(together["contrastive_pvi"], alone["contrastive_pvi"], atol=1e-4)


def test_other_weights_of_the_backbone_are_another_scorer(backbone: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(backbone, tmp_path / "backbone"))
    scorer = ContrastiveScorer(
        calibrate_contrastive(tiny_patches(96), tmp_path / "out", str(own), device="cpu"), "cpu"
    )
    before = Hasher.hash(scorer)
    assert before == Hasher.hash(scorer)
    model = ViTModel.from_pretrained(own / "backbone", add_pooling_layer=False)
    model.layernorm.weight.data += 1
    model.save_pretrained(own / "backbone")
    assert Hasher.hash(scorer) != before


class Lazy(dict[str, Any]):
    """As a batch in `map`, which makes a column when it is first asked for: not by two threads."""

    def __getitem__(self, name: str) -> Any:
        assert threading.current_thread() is threading.main_thread(), f"{name} is asked for by a thread"
        return super().__getitem__(name)


def test_a_batch_is_read_by_one_thread(calibrated: Path) -> None:
    patches, scorer = tiny_patches(6), ContrastiveScorer(str(calibrated), "cpu")
    np.testing.assert_array_equal(scorer(Lazy(patches[:]))["contrastive_pvi"], scorer(patches[:])["contrastive_pvi"])


def test_embeddings_are_the_projected_class_token_or_the_mean_token(backbone: str) -> None:
    images = torch.from_numpy(np.stack([np.asarray(picture(i)) for i in range(3)]))
    projected, plain = load_encoder(backbone, "cpu"), load_encoder(f"{backbone}/backbone", "cpu")
    assert plain.head is None
    pixels = image_processor(32)([picture(i) for i in range(3)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = plain.model(pixels).last_hidden_state
    torch.testing.assert_close(plain(images), normalize(tokens[:, 1:].mean(1), dim=1), atol=1e-5, rtol=0)
    first, _, second = projected.head
    by_hand = torch.relu(tokens[:, 0] @ first.weight.T + first.bias) @ second.weight.T
    torch.testing.assert_close(projected(images), normalize(by_hand.detach(), dim=1), atol=1e-5, rtol=0)


def test_views_are_seeded_squares_of_the_patch() -> None:
    image = picture(0, side=48)
    first, again, other = (np.asarray(draw_view(image, np.random.default_rng(seed), 32)) for seed in (0, 0, 1))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_what_cannot_be_scored_is_refused(backbone: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The pool has 3 group\(s\): contrastive scores need at least 4"):
        calibrate_contrastive(tiny_patches(12), tmp_path / "few", backbone, device="cpu")
    with pytest.raises(UserError, match="is no contrastive folder"):
        ContrastiveScorer(str(tmp_path), "cpu")(tiny_patches(2)[:])
    with pytest.raises(UserError, match="is a 'vit_mae' model, not a 'vit'"):
        load_encoder(save_mae(tmp_path / "mae", tiny_mae()), "cpu")


def test_few_candidates_are_told(backbone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibrate_contrastive(tiny_patches(24), tmp_path, backbone, device="cpu")
    assert "5 candidates instead of 511" in caplog.text


def test_views_are_simclrs_drawn_milder() -> None:
    """On a patch whose red is the column, whose green is the row and whose blue is their middle."""
    y, x = np.mgrid[:64, :64] * 4
    image = Image.fromarray(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8))
    plain = {"COLOUR": 0.0, "GREY": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in plain.items():
            patch.setattr(contrastive_scoring, name, value)
        views = [np.asarray(draw_view(image, np.random.default_rng(seed), 32)).astype(int) for seed in range(600)]
    across = np.array([view[16, -1, 0] - view[16, 0, 0] for view in views])
    assert np.mean(across < 0) == pytest.approx(0.5, abs=0.07)  # mirrored
    area = (np.abs(across) / np.abs(across).max()) ** 2
    assert 0.18 < area.min() < 0.25
    assert area.mean() == pytest.approx(0.6, abs=0.03)  # evenly from a fifth to all


def test_colours_change_both_ways_and_a_fifth_of_the_views_have_none() -> None:
    image = Image.new("RGB", (32, 32), (150, 100, 80))
    views = np.array([np.asarray(draw_view(image, np.random.default_rng(seed), 8))[4, 4] for seed in range(800)])
    spread = views.max(axis=1) - views.min(axis=1)
    assert np.mean(spread == 0) == pytest.approx(0.2, abs=0.05)
    light = views.mean(axis=1) / 110
    assert light.min() == pytest.approx(0.6, abs=0.03)
    assert light.max() == pytest.approx(1.4, abs=0.03)


def test_no_more_patches_calibrate_than_are_asked_for_whatever_their_order(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrastive_scoring, "MOST_PATCHES", 3)
    told = []
    for name, patches in (("a", tiny_patches(96)), ("b", tiny_patches(96).shuffle(seed=1))):
        folder = calibrate_contrastive(patches, tmp_path / name, backbone, device="cpu")
        told.append(json.loads((folder / "contrastive.json").read_text()))
    assert told[0]["patches"] == told[1]["patches"] == 3
    assert told[0]["information"] == pytest.approx(told[1]["information"], abs=1e-4)


def test_two_crops_of_one_image_have_other_views(backbone: str) -> None:
    batch = {"image": [picture(0)] * 2, "source": ["a", "a"], "crop": [[0, 0, 32], [8, 0, 32]]}
    first, _ = embed_views(load_encoder(backbone, "cpu"), batch, 0)
    assert (first[0] - first[1]).abs().max() > 1e-2


def test_another_head_is_another_scorer(backbone: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(backbone, tmp_path / "backbone"))
    folder = calibrate_contrastive(tiny_patches(96), tmp_path / "out", str(own), device="cpu")
    before = Hasher.hash(ContrastiveScorer(folder, "cpu"))
    head = load_file(own / "projection_head.safetensors")
    save_file({name: 2 * weight for name, weight in head.items()}, own / "projection_head.safetensors")
    assert Hasher.hash(ContrastiveScorer(folder, "cpu")) != before
