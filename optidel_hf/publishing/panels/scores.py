"""The panels of the scores: how each is spread, what it merely follows, and whether the folds' models agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optidel_hf.evaluation.statistics import rank_correlation
from optidel_hf.publishing.figures import histogram
from optidel_hf.publishing.measures import chosen_rows
from optidel_hf.publishing.records import CONFOUNDERS, SCORES, CurationRecord


def score_figures(record: CurationRecord) -> list[dict[str, Any]]:
    """
    A histogram of each score, the chosen over all.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One a score that has any finite value: `name`, `svg`, `mean` and `chosen_mean` (or `None`).
    """
    figures, rows = [], chosen_rows(record)
    for name in SCORES.keys() & record.columns.keys():
        everything = record.columns[name]
        chosen = everything[rows]
        if np.isfinite(everything).any():
            svg = histogram(everything, chosen, f"{name} ({SCORES[name]})")
            figures.append({"name": name, "svg": svg, "mean": _mean(everything), "chosen_mean": _mean(chosen)})
    return sorted(figures, key=lambda figure: list(SCORES).index(figure["name"]))


def confounder_correlations(record: CurationRecord) -> dict[str, list[float | None]]:
    """Rank correlation (Spearman) of each score with what it should not merely repeat, the `CONFOUNDERS` in order."""
    columns = record.columns
    return {
        name: [rank_correlation(columns[name], columns[one]) for one in CONFOUNDERS]
        for name in SCORES
        if name in columns
    }


def fold_means(record: CurationRecord) -> list[dict[str, Any]]:
    """
    What each fold's reference model gave, side by side.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One a fold: `fold`, `patches`, `means` (by score), `v_information` (held out, or
        `None`), `calibration` (mean of (y - mu)^2 / s^2 over all its patches, s fitted on the held-out ones, or
        `None`) and `reliability` of the ranks under other masks (or `None`).
    """
    if not record.columns:
        return []
    folds = record.columns["fold"]
    calibration = dict(enumerate(record.calibration))
    return [
        {
            "fold": int(fold),
            "patches": int((folds == fold).sum()),
            "means": {name: _mean(record.columns[name][folds == fold]) for name in SCORES if name in record.columns},
            "v_information": calibration.get(int(fold), {}).get("v_information_held_out"),
            "calibration": _calibration(record.columns["cond_entropy"][folds == fold], calibration.get(int(fold), {})),
            "reliability": calibration.get(int(fold), {}).get("reliability"),
        }
        for fold in np.unique(folds[np.isfinite(folds)])
    ]


def _calibration(entropies: np.ndarray, calibration: dict[str, Any]) -> float | None:
    """A Gaussian's code length exceeds its entropy by (e / s^2 - 1) / (2 ln 2) bits."""
    expected, mean = calibration.get("conditional_entropy_held_out"), _mean(entropies)
    return None if expected is None or mean is None else 1 + 2 * math.log(2) * (mean - expected)


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
