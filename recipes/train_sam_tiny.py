"""Train the embedded small SAM from scratch on procedural scenes, export it and score it on held-out ones.

python recipes/train_sam_tiny.py                         # into runs/sam-tiny; goes on where it stopped
torchrun --nproc_per_node 2 recipes/train_sam_tiny.py    # the same scenes and points, shared by two processes
python recipes/train_sam_tiny.py --images photos         # also count the key patches of real images
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import distributed
from transformers import HfArgumentParser, SamModel

from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import cut_patches
from optidel_hf.errors import UserError
from optidel_hf.images import Opened
from optidel_hf.sample.sam_evaluation import HELD_OUT_SERIES, evaluate_sam
from optidel_hf.sample.sam_export import export_sam, scale_logits
from optidel_hf.sample.sam_training import SamTrainer, SamTrainingConfig
from optidel_hf.sample.scenes import make_scene


logger = logging.getLogger(__name__)


@dataclass
class ExportConfig:
    """How the trained model is exported and judged."""

    logit_scale: float = field(default=3.0, metadata={"help": "Factor folded into the mask logits at export."})
    points_per_side: int = field(default=16, metadata={"help": "Side of the point grid in the preset."})
    pred_iou_thresh: float = field(default=0.5, metadata={"help": "Least predicted IoU in the preset."})
    stability_score_thresh: float = field(default=0.8, metadata={"help": "Least stability in the preset."})
    stability_score_offset: float = field(
        default=1.0, metadata={"help": "Logit offset of the stability in the preset."}
    )
    evaluation_scenes: int = field(default=100, metadata={"help": "Held-out scenes to score on."})
    images: str | None = field(default=None, metadata={"help": "Folder of images whose key patches are counted."})

    def __post_init__(self) -> None:
        if self.evaluation_scenes < 2:
            raise ValueError(f"evaluation_scenes must be at least 2, got {self.evaluation_scenes}.")
        if self.images and not self.image_paths():
            raise UserError(f"--images {self.images} is no folder with .jpg or .png files: give one.")

    def image_paths(self) -> list[Path]:
        """The images of that folder."""
        return sorted(path for path in Path(self.images or "").glob("*") if path.suffix.lower() in {".jpg", ".png"})

    def preset(self) -> dict[str, float]:
        """What automatic mask generation should use with this model."""
        names = ("points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset")
        return {name: getattr(self, name) for name in names} | {"box_nms_thresh": 0.7}


def patches_kept(folder: Path, images: list[Image.Image]) -> dict[str, float]:
    """Quartiles, least and most of the key patches that an image gives with the exported model and its preset."""
    config = PatchConfig(sam=str(folder))
    generator = MaskGenerator(config, device="cpu")
    wholes = [Opened.whole(image) for image in images]
    counts = [len(cut_patches(whole, generator([whole])[0], config)) for whole in wholes]
    low, first, median, third, high = np.percentile(counts, [0, 25, 50, 75, 100])
    return {"images": len(images), "min": low, "p25": first, "median": median, "p75": third, "max": high}


def export_and_evaluate(trainer: SamTrainer, export: ExportConfig) -> None:
    """Write `output_dir/model` and `output_dir/evaluation.json`."""
    folder = trainer.folder / "model"
    export_sam(scale_logits(trainer.average, export.logit_scale), folder, export.preset())
    scores = evaluate_sam(SamModel.from_pretrained(folder, dtype="float32").eval(), export.evaluation_scenes)
    held_out = [Image.fromarray(make_scene(HELD_OUT_SERIES, i)[0]) for i in range(export.evaluation_scenes)]
    results = {"scores": scores, "patches_of_scenes": patches_kept(folder, held_out)}
    if export.images:
        images = [Image.open(path).convert("RGB") for path in export.image_paths()]
        results["patches_of_images"] = patches_kept(folder, images)
    (trainer.folder / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    logger.info("%s", json.dumps(results, indent=2))


def main() -> None:
    """Train, export, evaluate; a user's mistake is one sentence."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        config, export = HfArgumentParser((SamTrainingConfig, ExportConfig)).parse_args_into_dataclasses()
        if "RANK" in os.environ:
            distributed.init_process_group("gloo")
        trainer = SamTrainer(config)
    except ValueError as error:
        sys.exit(f"train_sam_tiny: {error}")
    for record in trainer.train():
        logger.debug("%s", record)
    if trainer.rank == 0:
        export_and_evaluate(trainer, export)


if __name__ == "__main__":
    main()
