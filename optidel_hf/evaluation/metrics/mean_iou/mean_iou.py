"""
Mean intersection over union (mIoU) of label maps, over a whole data set.

All pixels of all images are counted in one confusion matrix C (rows: reference, columns: prediction), so that memory
does not grow with the number of images. For class c

    IoU_c = C_cc / (sum_j C_cj + sum_i C_ic - C_cc),      mIoU = mean over the classes that occur,

where a class occurs if it is in a reference or in a prediction.

Works offline: import `MeanIoU`, or `evaluate.load(<this folder>)`. A module that is loaded by path may hold only one
module name per `import` line.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "IoU per class and mIoU from a confusion matrix accumulated over all pixels of all images."

_INPUTS_DESCRIPTION = """
Args:
    predictions (array of integers, any shape): predicted label maps, values below `num_labels`; a list of arrays where
        images differ in size.
    references (array of integers, the same shapes): true label maps; pixels equal to `ignore_index` are left out.
Returns:
    `dict` with `mean_iou` (`float`), `per_category_iou` (`list` of `float`, NaN for a class that occurs nowhere)
    and `confusion_matrix` (`list` of `list` of `int`, rows are references).
"""

_CITATION = ""


class MeanIoU(evaluate.Metric):
    """
    The metric with state: [`add_batch`] as often as there are batches, [`compute`] once, which also resets it.

    Args:
        num_labels (`int`, *optional*, defaults to 2): number of classes.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels that do not count.
        kwargs (`Any`): passed on to `evaluate.Metric`.

    Example:

    ```py
    >>> metric = MeanIoU(num_labels=2)
    >>> metric.add_batch(predictions=[[[0, 1], [1, 1]]], references=[[[0, 0], [1, 255]]])
    >>> metric.compute()["mean_iou"]
    0.5
    ```
    """

    def __init__(self, num_labels: int = 2, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.confusion = np.zeros((num_labels, num_labels), dtype=np.int64)

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Count the pixels of one image."""
        self.add_batch(predictions=prediction, references=reference)

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count the pixels of a batch of images, of one size or each of its own."""
        of_one_size = len(_sizes(predictions)) <= 1
        batch = [(predictions, references)] if of_one_size else zip(predictions, references, strict=True)
        for prediction, reference in batch:
            self.confusion += confusion_matrix(prediction, reference, self.num_labels, self.ignore_index)

    def compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        """The scores of everything added since the last call, and of the arguments if they are given."""
        if (predictions is None) != (references is None):
            raise ValueError("compute takes predictions and references together, or neither after add_batch.")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        confusion, self.confusion = self.confusion, np.zeros_like(self.confusion)
        per_class = class_iou(confusion)
        return {
            "mean_iou": float(np.nanmean(per_class)),
            "per_category_iou": per_class.tolist(),
            "confusion_matrix": confusion.tolist(),
        }


def _sizes(images: Any) -> set[tuple[int, ...]]:
    """The shapes that the images of a list have."""
    return {np.shape(image) for image in images} if isinstance(images, (list, tuple)) else set()


def confusion_matrix(predictions: Any, references: Any, num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """
    Count the pixels of every (reference, prediction) pair of labels.

    Args:
        predictions (array of integers): predicted labels, any shape.
        references (array of integers): true labels, the same shape.
        num_labels (`int`): number of classes.
        ignore_index (`int`, *optional*, defaults to 255): reference value of pixels that do not count.

    Returns:
        `numpy.ndarray` of shape `(num_labels, num_labels)`, int64, rows are references.

    Raises:
        `ValueError`: if labels are no integers, the shapes differ or a label is out of range.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    for name, labels in (("Predictions", predicted), ("References", true)):
        if labels.size and labels.dtype.kind not in "biu":
            raise ValueError(f"{name} are {labels.dtype}, but labels are integers: round them, or take their argmax.")
    if predicted.shape != true.shape:
        raise ValueError(f"Predictions have shape {predicted.shape} but references have shape {true.shape}.")
    counted = true != ignore_index
    predicted, true = predicted[counted].astype(np.int64), true[counted].astype(np.int64)
    for name, labels in (("prediction", predicted), ("reference", true)):
        if labels.size and not 0 <= labels.min() <= labels.max() < num_labels:
            raise ValueError(
                f"A {name} has label {labels.max() if labels.max() >= num_labels else labels.min()}, "
                f"but labels go from 0 to {num_labels - 1}."
            )
    pairs = np.bincount(true * num_labels + predicted, minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """
    IoU of every class from confusion matrices `(..., C, C)`; NaN for a class in neither references nor predictions.

    Returns:
        `numpy.ndarray` of shape `(..., C)`, float64.
    """
    intersection, union = overlap(confusion)
    return np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)


def overlap(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Pixels in both and pixels in either of reference and prediction, by class, from confusion matrices `(..., C, C)`.

    Returns:
        `tuple` of two `numpy.ndarray` of shape `(..., C)`, float64: intersections and unions.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return intersection, confusion.sum(axis=-2) + confusion.sum(axis=-1) - intersection
