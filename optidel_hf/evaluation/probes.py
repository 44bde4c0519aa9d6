"""
Probes of an encoder while it trains: how well its frozen features separate the classes of a small labelled set.

Images with a class each are judged by two classifiers on the mean patch token `z` of the last layer: a linear one
(logistic regression on standardised features), and the vote of the `k` = 20 nearest training images, weighted by
exp(cos(z, z_i) / 0.07) (Wu et al. 2018, as in DINO). Images with masks are judged by the segmentation probe of
[`~optidel_hf.evaluation.protocol`]. Who picks a checkpoint by these scores should keep another set for the test.

Shapes: `N` images, `S` side of a model input, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD

from optidel_hf.errors import UserError, named_by
from optidel_hf.evaluation.backbone import Backbone
from optidel_hf.evaluation.downstream import DownstreamSet, load_downstream
from optidel_hf.evaluation.protocol import score, train_segmenter
from optidel_hf.pretraining.stored import decode
from optidel_hf.sources import find_image_column, image_columns, open_dataset


NEIGHBOURS, TEMPERATURE = 20, 0.07
BATCH = 64
SEED, STEPS, SEGMENTATION_BATCH, LEARNING_RATE = 0, 200, 32, 1e-3  # of the segmentation probe: evaluate's defaults


@dataclass(frozen=True)
class ProbeConfig:
    """The labelled images that judge an encoder while it trains."""

    probe_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Labelled images for --evaluate_every: with class folders or a label column for a k-NN and a "
            "linear probe, with masks (as `optidel evaluate` takes them) for a segmentation probe."
        },
    )
    probe_train_split: str = field(default="train", metadata={"help": "Split on which probes are fitted."})
    probe_test_split: str = field(
        default="test", metadata={"help": "Split on which they are judged; not the one of your final test."}
    )
    probe_label_column: str = field(
        default="label", metadata={"help": "Column with the class; without such a column, the file's folder names it."}
    )
    probe_image_column: str | None = field(default=None, metadata={"help": "Needed where there are several."})
    probe_mask_column: str = field(default="mask", metadata={"help": "Column with the masks, if there are any."})

    def __post_init__(self) -> None:
        if self.probe_train_split == self.probe_test_split:
            raise UserError(f"--probe_train_split and --probe_test_split are both '{self.probe_test_split}'.")


@dataclass
class LabelledSet:
    """
    One split of images with a class each.

    Args:
        images (`torch.Tensor` of shape `(N, 3, S, S)`): RGB, uint8.
        labels (`numpy.ndarray` of shape `(N,)`): classes, as strings.
    """

    images: torch.Tensor
    labels: np.ndarray


def make_probe(config: ProbeConfig, image_size: int, device: torch.device) -> Callable[[ViTModel], dict[str, float]]:
    """
    Read the labelled set, once.

    Args:
        config ([`ProbeConfig`]): with a `probe_dataset`.
        image_size (`int`): side S of the encoder's input.
        device (`torch.device`): where features are computed.

    Returns:
        `Callable[[ViTModel], dict[str, float]]`: gives an encoder's `knn_accuracy` and `linear_accuracy`, or its
        `probe_miou`, as shares of one.

    Raises:
        `UserError`: if the set cannot be read, or the training split has one class only.
    """
    if _has_masks(config):
        columns = {"image_column": config.probe_image_column or "image", "mask_column": config.probe_mask_column}
        masked = _each_split(config, partial(load_downstream, image_size=image_size, **columns))
        return lambda encoder: probe_segmentation(encoder.to(device), *masked)
    image, label = config.probe_image_column, config.probe_label_column
    labelled = _each_split(
        config, partial(load_labelled, image_size=image_size, label_column=label, image_column=image)
    )
    if len(classes := set(labelled[0].labels)) < 2:
        raise UserError(
            f"--probe_dataset {config.probe_dataset}: split '{config.probe_train_split}' has one class only, "
            f"{classes.pop()}."
        )
    return lambda encoder: probe_classes(encoder.to(device), *labelled)


def probe_classes(encoder: ViTModel, train_set: LabelledSet, test_set: LabelledSet) -> dict[str, float]:
    """Accuracies of the two classifiers on an encoder's features."""
    fitted_on, judged_on = features(encoder, train_set.images), features(encoder, test_set.images)
    nearest = KNeighborsClassifier(
        n_neighbors=min(NEIGHBOURS, len(fitted_on)),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),
    )
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return {
        name: float(classifier.fit(fitted_on, train_set.labels).score(judged_on, test_set.labels))
        for name, classifier in (("knn_accuracy", nearest), ("linear_accuracy", linear))
    }


def probe_segmentation(encoder: ViTModel, train_set: DownstreamSet, test_set: DownstreamSet) -> dict[str, float]:
    """Mean IoU of a small head on an encoder's frozen tokens."""
    model = train_segmenter(
        Backbone(encoder.eval()),
        train_set,
        "probe",
        seed=SEED,
        steps=STEPS,
        batch_size=SEGMENTATION_BATCH,
        learning_rate=LEARNING_RATE,
        device=encoder.device,
    )
    return {"probe_miou": score(model, test_set, BATCH)["mean_iou"]}


@torch.no_grad()
def features(encoder: ViTModel, images: torch.Tensor) -> np.ndarray:
    """Mean patch tokens `(N, D)` of images `(N, 3, S, S)` uint8, float32."""
    device = encoder.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    encoder.eval()
    batches = ((batch.to(device).float() / 255 - mean) / std for batch in images.split(BATCH))
    tokens = [encoder(batch).last_hidden_state[:, 1:].mean(dim=1) for batch in batches]
    return torch.cat(tokens).float().cpu().numpy()


def load_labelled(
    dataset: str, split: str, image_size: int, label_column: str = "label", image_column: str | None = None
) -> LabelledSet:
    """
    Read one split of images with a class each.

    Args:
        dataset (`str`): what [`~optidel_hf.sources.open_dataset`] opens.
        split (`str`): name of the split.
        image_size (`int`): side S of the centred squares that are cut out.
        label_column (`str`, *optional*, defaults to `"label"`): without it, the file's folder is the class.
        image_column (`str`, *optional*): needed where there are several.

    Raises:
        `UserError`: if the split is missing, or an image cannot be read.
    """
    rows = open_dataset(dataset, split)
    column = find_image_column(rows, image_column)
    labels = rows[label_column] if label_column in rows.column_names else _folders(rows["source"], label_column)
    images = [_decode(value, source, image_size) for value, source in zip(rows[column], rows["source"])]
    return LabelledSet(torch.stack(images), np.array([str(label) for label in labels]))


def _has_masks(config: ProbeConfig) -> bool:
    folder = Path(str(config.probe_dataset))
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        return True
    with named_by(dataset="probe_dataset", split="probe_train_split"):
        columns = image_columns(open_dataset(str(folder), config.probe_train_split))
    if config.probe_mask_column not in (*columns, ProbeConfig.probe_mask_column):
        raise UserError(
            f"--probe_mask_column {config.probe_mask_column}: no such image column; the image columns are {columns}."
        )
    return config.probe_mask_column in columns


def _each_split(config: ProbeConfig, load: Callable[[str, str], Any]) -> list[Any]:
    """What `load` makes of the training and of the test split, whose mistakes name the flags that were given."""
    loaded = []
    for flag in ("probe_train_split", "probe_test_split"):
        columns = {name: f"probe_{name}" for name in ("image_column", "mask_column")}
        with named_by(dataset="probe_dataset", split=flag, **columns):
            loaded.append(load(str(config.probe_dataset), getattr(config, flag)))
    return loaded


def _folders(sources: list[str], label_column: str) -> list[str]:
    folders = [Path(source).parent.name for source in sources]
    if not all(folders) or any("#" in source for source in sources):
        raise UserError(f"--probe_label_column {label_column}: no such column, and '{sources[0]}' lies in no folder.")
    return folders


def _decode(value: object, source: str, size: int) -> torch.Tensor:
    if isinstance(image := decode(value, size), str):
        raise UserError(f"--probe_dataset: '{source}' cannot be used ({image}): remove it.")
    return image
