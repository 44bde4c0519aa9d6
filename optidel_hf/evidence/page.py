"""A grid's results for the report, which knows no statistics of its own: they are handed over with the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from optidel_hf.errors import UserError
from optidel_hf.evidence.gate import headroom
from optidel_hf.evidence.inference import (
    minimum_detectable_difference,
    miou_interval,
    paired_interval,
    variance_components,
)
from optidel_hf.publishing.panels.evidence import Evidence


def read_evidence(path: str | Path) -> Evidence:
    """
    Read `results.parquet`, with what judges it.

    Raises:
        `UserError`: if the file is missing, no parquet, or another table.
    """
    try:
        results = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the results.parquet of `optidel reproduce`.") from None
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is no parquet file ({error}): give the results.parquet of `optidel reproduce`."
        ) from None
    if missing := {"arm", "split", "confusion"} - set(results.column_names):
        raise UserError(f"{path} has no column {min(missing)}: give the results.parquet of `optidel reproduce`.")
    gate = headroom(results)
    sentence = gate.sentence.replace("**", "")  # bold in Markdown
    return Evidence(results, miou_interval, paired_interval, detectable, gate.passed, sentence)


def detectable(a: np.ndarray, b: np.ndarray) -> float:
    """The least true difference that the seeds and images of two arms, each `(S, N, C, C)`, show with 95 % power."""
    seeds, images = a.shape[:2]
    return minimum_detectable_difference(variance_components(a, b), seeds, images)
