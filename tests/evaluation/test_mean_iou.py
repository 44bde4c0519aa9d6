"""mIoU: values counted by hand, accumulation, and loading by path with no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest

from optidel_hf.evaluation.metrics.mean_iou import mean_iou
from optidel_hf.evaluation.metrics.mean_iou.mean_iou import MeanIoU, class_iou, confusion_matrix


REFERENCE = [[[0, 0, 1], [1, 1, 255]]]
PREDICTION = [[[0, 1, 1], [1, 0, 1]]]


def test_values_counted_by_hand() -> None:
    result = MeanIoU().compute(predictions=PREDICTION, references=REFERENCE)
    # background: 1 hit, union 3; object: 2 hits, union 4; the pixel with 255 counts nowhere
    assert result["confusion_matrix"] == [[1, 1], [1, 2]]
    assert result["per_category_iou"] == pytest.approx([1 / 3, 1 / 2])
    assert result["mean_iou"] == pytest.approx(5 / 12)


def test_accumulated_equals_at_once_and_compute_resets() -> None:
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 3, (2, 10, 7, 5))
    metric, at_once = MeanIoU(num_labels=3), MeanIoU(num_labels=3)
    for start in range(0, 9, 3):
        metric.add_batch(predictions=predictions[start : start + 3], references=references[start : start + 3])
    metric.add(prediction=predictions[9], reference=references[9])
    expected = at_once.compute(predictions=predictions, references=references)
    assert metric.compute() == expected
    assert metric.compute(predictions=predictions, references=references) == expected


@pytest.mark.parametrize("kind", [list, np.asarray])
def test_images_of_different_sizes_are_taken_at_once(kind: Callable[[Any], Any]) -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 2, (2, height, 4)) for height in (3, 5, 3)]
    one_by_one = MeanIoU()
    for prediction, reference in pairs:
        one_by_one.add(prediction=prediction, reference=reference)
    predictions, references = ([kind(labels.tolist()) for labels in maps] for maps in zip(*pairs))
    assert MeanIoU().compute(predictions=predictions, references=references) == one_by_one.compute()
    with pytest.raises(ValueError, match="shorter"):
        MeanIoU().compute(predictions=predictions, references=references[:2])


def test_memory_does_not_grow_with_the_images() -> None:
    metric = MeanIoU()
    for _ in range(3):
        metric.add_batch(predictions=PREDICTION, references=REFERENCE)
    assert metric.confusion.shape == (2, 2)
    assert metric.confusion.sum() == 15
    assert metric.writer is None


def test_a_class_that_occurs_nowhere_is_left_out_and_one_that_is_only_predicted_counts_zero() -> None:
    iou = class_iou(confusion_matrix([0, 0, 1, 2], [0, 0, 1, 1], num_labels=4))
    assert iou[:3] == pytest.approx([1.0, 0.5, 0.0])
    assert np.isnan(iou[3])
    result = MeanIoU(num_labels=4).compute(predictions=[0, 0, 1, 2], references=[0, 0, 1, 1])
    assert result["mean_iou"] == pytest.approx(0.5)


def test_wrong_labels_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction has label 2, but labels go from 0 to 1"):
        confusion_matrix([2], [0], num_labels=2)
    with pytest.raises(ValueError, match="reference has label -1"):
        confusion_matrix([0], [-1], num_labels=2)
    with pytest.raises(ValueError, match="shape"):
        confusion_matrix([[0, 1]], [0, 1], num_labels=2)


def test_what_is_no_label_map_is_refused() -> None:
    with pytest.raises(ValueError, match="Predictions are float64, but labels are integers"):
        confusion_matrix(0.9 * np.ones((2, 2)), np.ones((2, 2), int), 2)
    for given in ("predictions", "references"):
        with pytest.raises(ValueError, match="predictions and references together"):
            MeanIoU().compute(**{given: [[[0, 1]]]})


@pytest.mark.parametrize("path", [Path(mean_iou.__file__), Path(mean_iou.__file__).parent], ids=["file", "folder"])
def test_evaluate_loads_it_by_path(path: Path) -> None:
    metric = evaluate.load(str(path), num_labels=2)
    metric.add_batch(predictions=PREDICTION, references=REFERENCE)
    assert metric.compute()["mean_iou"] == pytest.approx(5 / 12)
