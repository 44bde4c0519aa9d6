"""The commands after `curate`, in the order in which a user runs them, on tiny images and models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from transformers import AutoModel, ViTMAEForPreTraining

from optidel_hf import cli


def flags(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


WIDTHS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
VIT = flags(image_size=32, device="cpu", **WIDTHS, **DECODER)
LOOSE = {"max_area": 0.9, "min_area": 0.001, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}
REFERENCE = {"reference_steps": 4, "reference_width": 64, "reference_layers": 1, "reference_batch_size": 8}
SMALL = flags(patch_size=32, image_size=32, device="cpu", **LOOSE, **REFERENCE)


pytestmark = pytest.mark.usefixtures("one_thread")


def downstream(folder: Path) -> Path:
    """Bright squares on noise, with their masks, split by the prefix of the name."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(16):
        pixels, mask = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8), np.zeros((40, 40), np.uint8)
        y, x = rng.integers(0, 20, 2)
        pixels[y : y + 16, x : x + 16], mask[y : y + 16, x : x + 16] = 220, 255
        name = f"{'train' if number < 8 else 'test'}_{number:02d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        Image.fromarray(mask).save(folder / "masks" / name)
    return folder


def test_load_dataset_tells_curated_folders_apart(image_folder: Path, tiny_sam: str, tmp_path: Path) -> None:
    # Both folders are named `curated`; a card that declares configs made `load_dataset` take one for the other.
    for name, budget in (("one", "0.1"), ("two", "0.15")):
        chosen = ["--dataset", str(image_folder), "--sam", tiny_sam, "--budget", budget, "--strategy", "random"]
        assert cli.main(["curate", *chosen, "--output_dir", str(tmp_path / name), *SMALL]) == 0
    lengths = [len(load_dataset(str(tmp_path / name / "curated"), split="train")) for name in ("one", "two")]
    assert lengths == [2, 4]


def test_from_images_to_report(
    image_folder: Path, tiny_sam: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, vit, evaluation = tmp_path / "out", tmp_path / "vit", tmp_path / "evaluation"
    chosen = ["--dataset", str(image_folder), "--sam", tiny_sam, "--budget", "0.15", "--output_dir", str(out)]
    assert cli.main(["curate", *chosen, *SMALL]) == 0
    assert len(load_dataset(str(out / "curated"), split="train")) == 4

    (tmp_path / "training.yaml").write_text("steps: 3\n")
    training = ["--dataset", str(out / "curated"), "--output_dir", str(vit), "--batch_size", "4"]
    training += ["--config", str(tmp_path / "training.yaml")]
    assert cli.main(["pretrain", *training, *VIT]) == 0
    assert ViTMAEForPreTraining.from_pretrained(vit).config.image_size == 32
    assert AutoModel.from_pretrained(vit / "backbone").config.hidden_size == 32
    card = (vit / "README.md").read_text()
    assert "strategy `optidel`" in card
    assert f"optidel pretrain --dataset={out / 'curated'} " in card
    assert "--steps=3" in card  # the file's values, and not its name
    assert "training.yaml" not in card

    models = ["--models", f"optidel={vit}", "none", "--dataset", str(downstream(tmp_path / "set"))]
    protocol = ["--seeds", "2", "--steps", "2", "--batch_size", "4", "--data_ratio", "0.15", "0", "--device", "cpu"]
    assert cli.main(["evaluate", *models, *protocol, "--output_dir", str(evaluation)]) == 0
    summary = json.loads((evaluation / "results.json").read_text())["summary"]
    assert {(row["arm"], row["mode"], row["seeds"]) for row in summary} == {
        (arm, mode, 2) for arm in ("optidel", "none") for mode in ("finetune", "probe")
    }
    assert "2 seeds" in capsys.readouterr().out

    report = ["--curation_dir", str(out), "--pretrain_dirs", f"optidel={vit}"]
    assert cli.main(["report", *report, "--results", str(evaluation / "results.json")]) == 0
    page = (out / "report.html").read_text()
    assert "No evaluation was given" not in page
    assert "95 %" in page
    assert cli.main(["status", "--output_dir", str(out)]) == 0
    assert "published" in capsys.readouterr().out
