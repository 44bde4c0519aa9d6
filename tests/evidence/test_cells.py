"""One cell with its real arm, from flags to rows: judged on what is held out, and confusions sum to the score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_grid import SIDE, SIZES, TRAINING, tiny_experiment, write_squares
from transformers import ViTConfig, ViTModel

from optidel_hf.cli import main
from optidel_hf.curation.heldout import judge
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.evaluation.backbone import Backbone
from optidel_hf.evaluation.downstream import load_downstream
from optidel_hf.evaluation.protocol import Segmenter, image_confusions, score
from optidel_hf.evidence.arm_data import ArmData
from optidel_hf.evidence.cells import Cell, Judges, cell_pretraining
from optidel_hf.evidence.cells import judge as judge_cell
from optidel_hf.evidence.config import ReproduceConfig


def tiny_encoder() -> Backbone:
    sizes = {name: SIZES[name] for name in ("image_size", "patch_size", "hidden_size", "num_attention_heads")}
    return Backbone(ViTModel(ViTConfig(**sizes, num_hidden_layers=1), add_pooling_layer=False))


def test_image_confusions_sum_to_the_score(tmp_path: Path) -> None:
    data = load_downstream(str(write_squares(tmp_path)), "train", SIDE)
    model = Segmenter(tiny_encoder(), SIDE)
    confusions = image_confusions(model.eval(), data, batch_size=5)
    assert confusions.sum(0).tolist() == score(model, data, batch_size=12)["confusion_matrix"]
    assert confusions[:, 1].sum(1).tolist() == data.masks.sum((1, 2)).tolist()


def test_a_grid_from_a_file_with_a_real_arm(image_folder: Path, tmp_path: Path) -> None:
    pretrain = "\n".join(f"pretrain_{name}: {value}" for name, value in {**SIZES, **TRAINING}.items())
    (tmp_path / "grid.yaml").write_text(
        f"arms: [random_images]\nseeds: 1\nlabels: [4]\nbudgets: [0.2]\nheld_out: 0.2\nmeasured: false\n{pretrain}\n"
        "finetune_steps: 2\nprobe_steps: 2\nnear_distance: 0\nmin_image_side: 16\ndevice: cpu\nmodes: [probe]\n"
    )
    downstream, output = write_squares(tmp_path / "squares"), tmp_path / "out"
    places = ["--pool", str(image_folder), "--downstream", str(downstream), "--output_dir", str(output)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["reproduce", "--config", str(tmp_path / "grid.yaml"), *places]) == 0
    (row,) = pq.read_table(output / "results.parquet").to_pylist()
    assert (row["images"], row["sources"], row["stored_pixels"]) == (4, 4, 4 * SIDE**2)  # of 19 or 20 that are seen
    # The curation of whole images holds out the same, and `optidel information` judges on that.
    judged = judge({"cell": output / "models" / "0000_random_images_0.2"}, output / "curation" / "image", "cpu")
    torch.set_num_threads(threads)
    assert row["vinfo_held_out"] == pytest.approx(judged["cell"]["v_information"], abs=1e-6)
    assert judged["cell"]["frames"] == 24 - round(0.8 * 24)
    assert np.isfinite(row["miou"])


@pytest.mark.parametrize(
    ("arm", "start", "own"),
    [
        ("optidel", None, {}),
        ("optidel_tile_augmentation", None, {"tile_augmentation": True}),
        ("optidel_half", None, {}),
        ("optidel_last_whole", None, {"last_share": 0.2}),
        ("random_equal_compute", None, {"steps": 4 + 20, "checkpoint_every": 12, "keep_checkpoints": 24}),
        (
            "full_equal_compute_from_scorer",
            "scorer",
            {"model": "scorer", "steps": 4 + 20 - 8, "checkpoint_every": 8, "keep_checkpoints": 16},
        ),
    ],
)
def test_arms_are_pretrained_alike_but_for_what_they_are_there_to_show(
    arm: str, start: str | None, own: dict[str, Any], tmp_path: Path
) -> None:
    experiment = replace(
        tiny_experiment(tmp_path, tmp_path, tmp_path / "out", curation_steps=20),
        reference=ReferenceConfig(reference_steps=8, reference_batch_size=8),  # as many images as 8 steps of the grid
    )
    output = str(tmp_path / "out" / "models" / f"0003_{arm}_0.05")
    shared = {"seed": 3, "output_dir": output, "checkpoint_every": 2, "keep_checkpoints": 4, "device": "cpu"}
    expected = replace(experiment.pretrain, **{**shared, **own})
    assert cell_pretraining(Cell(arm, 0.05, 3), ArmData("data", {}, start=start), experiment) == expected


@pytest.mark.parametrize("mode", ["finetune", "probe"])
@pytest.mark.usefixtures("one_thread")
def test_draws_of_labels_are_runs_of_their_own_put_together(mode: str, tmp_path: Path) -> None:
    folder = str(write_squares(tmp_path))
    judges = Judges(load_downstream(folder, "train", SIDE), load_downstream(folder, "validation", SIDE))
    grid = ReproduceConfig(finetune_steps=2, probe_steps=2, downstream_batch_size=4, device="cpu")
    encoder = tiny_encoder()

    def confusion(seed: int, draws: int) -> np.ndarray:
        row = judge_cell(encoder, judges, replace(grid, label_draws=draws), seed, 4, mode)
        return np.array(row["confusion"]).reshape(-1, 2, 2)

    single = [confusion(seed, 1) for seed in (2, 3)]
    assert (single[0] != single[1]).any()
    assert (confusion(1, 2) == single[0] + single[1]).all()
