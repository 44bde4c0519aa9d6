from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import ViTConfig, ViTModel

from optidel_hf.errors import UserError
from optidel_hf.evaluation import probes
from optidel_hf.evaluation.probes import LabelledSet, ProbeConfig, features, load_labelled, make_probe, probe_classes


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> ViTModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes), add_pooling_layer=False).eval()


def _stripes(count: int, seed: int) -> LabelledSet:
    """Horizontal or vertical stripes of random contrast on random greys."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, count)
    wave = 60 * np.sign(np.sin(np.arange(16) * np.pi / 2 + 0.1))
    flat = rng.uniform(80, 170, (count, 1, 1)) + rng.uniform(0.5, 1, (count, 1, 1)) * wave[None, None]
    pixels = np.where(kinds[:, None, None] == 1, np.broadcast_to(flat, (count, 16, 16)).swapaxes(1, 2), flat)
    images = torch.from_numpy(pixels.astype(np.uint8))[:, None].expand(-1, 3, -1, -1).contiguous()
    return LabelledSet(images, np.array(["across", "down"])[kinds])


def test_separable_classes_are_told_apart_as_they_were_named(encoder: ViTModel) -> None:
    train, test = _stripes(60, 0), _stripes(60, 1)
    assert min(probe_classes(encoder, train, test).values()) > 0.95
    swapped = LabelledSet(train.images, np.where(train.labels == "down", "across", "down"))
    assert max(probe_classes(encoder, swapped, test).values()) < 0.05


def test_the_neighbours_vote_by_cosine(encoder: ViTModel) -> None:
    train, test = _stripes(30, 0), _stripes(10, 1)
    labels = np.random.default_rng(1).choice(["a", "b", "c"], 30)
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (features(encoder, s.images) for s in (train, test))]
    votes = []
    for cosines in unit[1] @ unit[0].T:
        nearest = np.argsort(-cosines)[:20]
        weights = np.exp(cosines[nearest] / 0.07)
        votes.append(max("abc", key=lambda name: weights[labels[nearest] == name].sum()))
    truth = np.array([*votes[:7], "x", "y", "z"])  # the last three are wrong by construction
    accuracy = probe_classes(encoder, LabelledSet(train.images, labels), LabelledSet(test.images, truth))
    assert accuracy["knn_accuracy"] == pytest.approx(0.7)


def _class_folder(root: Path) -> Path:
    for split, count in (("train", 8), ("test", 4)):
        part = _stripes(count, count)
        for number, (image, label) in enumerate(zip(part.images, part.labels)):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return root


def test_classes_come_from_folders_or_from_a_column(encoder: ViTModel, tmp_path) -> None:
    folder = _class_folder(tmp_path / "classes")
    loaded, expected = load_labelled(str(folder), "train", 16), _stripes(8, 8)
    assert sorted(loaded.labels) == sorted(expected.labels)
    for image, label in zip(loaded.images, loaded.labels):
        twin = next(row for row in range(8) if torch.equal(expected.images[row], image))
        assert expected.labels[twin] == label
    config = ProbeConfig(probe_dataset=str(folder))
    assert make_probe(config, 16, CPU)(encoder).keys() == {"knn_accuracy", "linear_accuracy"}

    rows = {"image": [str(p) for p in sorted(folder.rglob("train/*/*.png"))], "label": [0, 1] * 4}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}))
    table.save_to_disk(str(tmp_path / "table"))
    assert load_labelled(str(tmp_path / "table"), "train", 16).labels.tolist() == ["0", "1"] * 4
    with pytest.raises(UserError, match="--probe_label_column kind: no such column"):
        load_labelled(str(tmp_path / "table"), "train", 16, "kind")


def test_masks_are_probed_by_segmentation(encoder: ViTModel, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("optidel_hf.evaluation.probes.STEPS", 3)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(4):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[4:12, 2 * number : 2 * number + 8] = 255
        name = f"{'train' if number < 2 else 'test'}_{number}.png"
        for part in ("images", "masks"):
            PILImage.fromarray(pixels).save(tmp_path / part / name)
    probe = make_probe(ProbeConfig(probe_dataset=str(tmp_path)), 16, CPU)
    score = probe(encoder)["probe_miou"]
    assert 0 < score < 1
    assert probe(encoder)["probe_miou"] == score  # its seed is its own


def test_columns_are_named_by_the_probes_flags(tmp_path) -> None:
    kinds = Features({"picture": Image(), "truth": Image(), "label": Value("int64")})
    columns = {name: [str(tmp_path / "0.png")] * 4 for name in ("picture", "truth")}
    PILImage.new("RGB", (16, 16), "white").save(tmp_path / "0.png")
    table = Dataset.from_dict({**columns, "label": [0, 1] * 2}, features=kinds)
    for split in ("train", "test"):
        table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    given = {"probe_dataset": str(tmp_path / "set")}
    with pytest.raises(UserError, match="name one with --probe_image_column"):
        make_probe(ProbeConfig(**given), 16, CPU)
    make_probe(ProbeConfig(**given, probe_image_column="picture"), 16, CPU)
    with pytest.raises(UserError, match="--probe_image_column image: no such image column"):
        make_probe(ProbeConfig(**given, probe_mask_column="truth"), 16, CPU)
    make_probe(ProbeConfig(**given, probe_image_column="picture", probe_mask_column="truth"), 16, CPU)
    with pytest.raises(UserError, match="--probe_mask_column thruth: no such image column"):
        make_probe(ProbeConfig(**given, probe_image_column="picture", probe_mask_column="thruth"), 16, CPU)
    with pytest.raises(UserError, match="--probe_test_split night: "):
        make_probe(ProbeConfig(**given, probe_image_column="picture", probe_test_split="night"), 16, CPU)


def test_one_class_is_refused(tmp_path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        PILImage.new("RGB", (16, 16)).save(tmp_path / split / "only" / "0.png")
    with pytest.raises(UserError, match="split 'train' has one class only, only"):
        make_probe(ProbeConfig(probe_dataset=str(tmp_path)), 16, CPU)
    with pytest.raises(UserError, match="are both 'train'"):
        ProbeConfig(probe_dataset=str(tmp_path), probe_test_split="train")


def test_features_are_the_mean_patch_tokens_of_normalised_pixels(encoder: ViTModel) -> None:
    images = _stripes(5, 0).images
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = encoder((images / 255 - mean) / std).last_hidden_state[:, 1:].mean(1)
    np.testing.assert_allclose(features(encoder, images), expected.numpy(), atol=1e-5)


def test_the_linear_probe_sees_features_of_any_scale(encoder: ViTModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 200)
    values = rng.normal(size=(200, 6)) * [1e-4, 1, 1, 1, 1, 1]
    values[:, 0] += 1e-3 * kinds  # what tells the classes apart is small
    monkeypatch.setattr(probes, "features", lambda encoder, images: values[images])
    train, test = (LabelledSet(torch.arange(*part), kinds[slice(*part)]) for part in ((0, 100), (100, 200)))
    assert probe_classes(encoder, train, test)["linear_accuracy"] > 0.95


def test_a_segmentation_probe_is_fitted_on_one_split_and_judged_on_the_other(
    encoder: ViTModel, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in ("train_0", "train_1", "test_2"):
            PILImage.new("L", (16, 16), 255).save(tmp_path / part / f"{name}.png")
    told: list[list[str]] = []
    monkeypatch.setattr(probes, "train_segmenter", lambda backbone, data, *rest, **more: told.append(data.names))
    monkeypatch.setattr(probes, "score", lambda model, data, size: told.append(data.names) or {"mean_iou": 0.5})
    make_probe(ProbeConfig(probe_dataset=str(tmp_path)), 16, CPU)(encoder)
    assert told == [["train_0", "train_1"], ["test_2"]]
