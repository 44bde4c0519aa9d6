"""
NormDEL, how much segmentation quality a share of the data buys (MedDEL, arXiv 2401.17542).

    DEL = mIoU * exp(-alpha * R),      NormDEL = 1 / (1 + exp(-DEL))

with mIoU as a fraction, R the share of the pre-training data that was used (0 to 1) and alpha = 1. NormDEL stays
between 0.5 and 0.731, and falls with R even where mIoU does not: it rewards small sets by construction, so give the
mIoU beside it. The published 68.03 (mIoU 79.38 at R = 0.05) and 57.28 (79.70 at R = 1) are 100 x NormDEL.

Works offline: import `normdel`, or `evaluate.load(<this folder>)`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np


_DESCRIPTION = "NormDEL = sigmoid(mIoU * exp(-alpha * R)), mIoU discounted by the share R of the data."

_INPUTS_DESCRIPTION = """
Args:
    miou (`list` of `float`): mIoU as fractions, 0 to 1.
    data_ratio (`list` of `float`): shares of the data that were used, 0 to 1.
    alpha (`float`, *optional*, defaults to 1.0): weight of the discount.
Returns:
    `dict` with `normdel` (`list` of `float`), aligned with the inputs.
"""

_CITATION = """
@inproceedings{yang2024dataeffective,
  title={A Medical Data-Effective Learning Benchmark for Highly Efficient Pre-training of Foundation Models},
  author={Yang, Wenxuan and Tan, Weimin and Sun, Yuqi and Yan, Bo},
  booktitle={ACM Multimedia},
  note={arXiv:2401.17542},
  year={2024}
}
"""


class NormDEL(evaluate.Metric):
    """
    [`normdel`] as an `evaluate` metric on lists.

    Example:

    ```py
    >>> NormDEL().compute(miou=[0.7938, 0.7970], data_ratio=[0.05, 1.0])
    {'normdel': [0.6803..., 0.5727...]}
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"miou": number, "data_ratio": number}),
        )

    def _compute(self, miou: Any, data_ratio: Any, alpha: float = 1.0) -> dict[str, list[float]]:
        return {"normdel": [normdel(score, ratio, alpha) for score, ratio in zip(miou, data_ratio, strict=True)]}


def normdel(miou: float, data_ratio: float, alpha: float = 1.0) -> float:
    """
    sigmoid(mIoU * exp(-alpha * R)).

    Args:
        miou (`float`): mIoU as a fraction, 0 to 1.
        data_ratio (`float`): share R of the data that was used, 0 to 1.
        alpha (`float`, *optional*, defaults to 1.0): weight of the discount, 1 in the paper.

    Returns:
        `float` in [0.5, 0.731].

    Raises:
        `ValueError`: if mIoU or the ratio is not a fraction (a percentage, most often).
    """
    if not (0.0 <= miou <= 1.0 and 0.0 <= data_ratio <= 1.0):
        raise ValueError(f"mIoU and the data ratio are fractions from 0 to 1, got {miou} and {data_ratio}.")
    return float(1.0 / (1.0 + np.exp(-miou * np.exp(-alpha * data_ratio))))
