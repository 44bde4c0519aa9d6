"""The columns that strategies see, on rows sorted by (source, bbox), so that ties and seeds fall the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from optidel_hf.errors import UserError
from optidel_hf.sources import is_missing


NUISANCES = ("border", "text", "saturation", "defocus")
LEARNABILITY = "learnability"


@dataclass(frozen=True)
class Candidates:
    """
    `n` eligible patches, sorted by (source, bbox).

    Args:
        rows (`np.ndarray` of shape `(n,)`): row of each in the table that was given.
        source (`np.ndarray` of shape `(n,)`, int64): code of the source image.
        group (`np.ndarray` of shape `(n,)`, int64): code of the near-duplicate group.
        hardness (`np.ndarray` of shape `(n,)`): within-fold rank of the score, above 0 (easiest) to 1 (hardest);
            without a score 0 for all.
        score (`np.ndarray` of shape `(n,)`): the score itself, larger is harder, in its fold's standard deviations.
        embedding (`np.ndarray` of shape `(n, width)`, float32, or `None`).
        nuisances (`dict[str, np.ndarray]`): what spoils each patch, by column, where the table says so.
        learning (`np.ndarray` of shape `(n, 2)`, *optional*): where the table has learnability, that over its fold's
            median, and the within-fold rank of the raw error.
    """

    rows: np.ndarray
    source: np.ndarray
    group: np.ndarray
    hardness: np.ndarray
    score: np.ndarray
    embedding: np.ndarray | None
    nuisances: dict[str, np.ndarray] = field(default_factory=dict)
    learning: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_candidates(
    columns: Mapping[str, np.ndarray], score: str | None, eligible: np.ndarray, embeddings: bool
) -> Candidates:
    """
    Take what a strategy needs out of a table's columns.

    Args:
        columns (`Mapping[str, np.ndarray]`): column name to values.
        score (`str`, *optional*): column to rank by; without one every hardness is 0.
        eligible (`np.ndarray` of bool): rows to choose from.
        embeddings (`bool`): whether to read the `embedding` column.
    """
    sources = columns["source"]
    order = np.lexsort((*columns["bbox"].T[::-1], sources.astype(str)))
    rows = order[eligible[order]]
    hardness, standard, learning = np.zeros(len(rows)), np.zeros(len(rows)), None
    if score is not None and len(rows):
        values = columns[score][rows].astype(np.float64)
        if np.isnan(values).any():
            row = int(rows[np.isnan(values).argmax()])
            way_out = "score with two --partitions or more" if score == "pvi_std" else "score the patches again"
            raise UserError(f"Column '{score}' is NaN in row {row} ('{sources[row]}'): {way_out}.")
        sign = -1.0 if score in ("pvi", "contrastive_pvi") else 1.0  # little usable information is hard
        fold = columns["fold"][rows]
        hardness, standard = rank_within(sign * values, fold), standardize_within(sign * values, fold)
        if {LEARNABILITY, "recon_error"} <= set(columns):
            gain, error = (columns[name][rows].astype(np.float64) for name in (LEARNABILITY, "recon_error"))
            learning = np.stack([over_median_within(gain, fold), rank_within(error, fold)], axis=1)
    embedding = columns["embedding"][rows].astype(np.float32) if embeddings else None
    nuisances = {name: columns[name][rows] for name in NUISANCES if name in set(columns)}
    named = zip(columns["group"][rows], sources[rows])  # a row without a group is its source's
    group = _codes(np.array([source if is_missing(group) else group for group, source in named]))
    return Candidates(rows, _codes(sources[rows]), group, hardness, standard, embedding, nuisances, learning)


def rank_within(values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Ranks in (0, 1] within each fold, so that two models' scores are never compared; ties keep row order."""
    ranks = np.empty(len(values))
    for model in np.unique(fold):
        rows = np.flatnonzero(fold == model)
        ranks[rows[np.argsort(values[rows], kind="stable")]] = np.arange(1, len(rows) + 1) / len(rows)
    return ranks


def standardize_within(values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Values less their fold's mean, over its standard deviation; 0 where a fold's values are all equal."""
    standard = np.zeros(len(values))
    for model in np.unique(fold):
        rows = fold == model
        offset = values[rows] - values[rows].mean()
        standard[rows] = offset / (offset.std() or 1.0)
    return standard


def over_median_within(values: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Values over their fold's median; infinite where that is not positive, so that none is small beside it."""
    relative = np.full(len(values), np.inf)
    for model in np.unique(fold):
        rows = fold == model
        if (median := np.median(values[rows])) > 0:
            relative[rows] = values[rows] / median
    return relative


def hardest_first(candidates: Candidates) -> np.ndarray:
    """Candidate indices by falling hardness; equal ranks of two folds keep row order."""
    return np.argsort(-candidates.hardness, kind="stable")


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values.astype(str), return_inverse=True)[1]
