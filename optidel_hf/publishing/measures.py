"""The three numbers of a selection: what its set holds, what the reference model knows of it, and what it taught.

    (i)   H_V(Y|0) of the set, bits per pixel value, under the null of the pool's calibration; and its coverage of the
          pool, as pixel entropy is log variance: copies leave it as it is and contrast raises it
    (ii)  H_V(Y|X) of the set under the reference model: hard patches raise it, and so lower the set's own information
    (iii) the held-out V-information of models that were pre-trained on the set (`optidel information`): the goal

Coverage is the mean cosine distance from a patch of the pool to the nearest chosen one, about the pool's mean
embedding (without centring all are alike), and the near-duplicate groups and source images that were touched. A number
that was not measured says so, and what would measure it.

D width of the embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from optidel_hf.embeddings import nearest_distance, spaced, unit_vectors
from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_schema, read_table
from optidel_hf.publishing.records import CurationRecord, find_rows, patch_key


POOL_SAMPLE = 2048
"""Patches of the pool, evenly spaced, from which the distance to the nearest chosen is averaged."""
NOT_SCORED = "not measured: the key patches were not scored (--reuse an output of optidel score)"
NOT_EMBEDDED = "not measured: the key patches have no embedding"
NOT_HELD_OUT = "not measured: no image was held out (--held_out 0.1)"
NOT_JUDGED = "not measured: no model was judged (optidel information)"


def set_measures(record: CurationRecord) -> list[dict[str, str]]:
    """
    The three numbers of a curation's selection, and the same of its pool.

    Args:
        record (`CurationRecord`): A curation with a selection.

    Returns:
        `list[dict]`: One a number: `name`, `unit`, `chosen` and `pool`, as text; without a selection none.
    """
    if record.selection is None:
        return []
    rows = chosen_rows(record)
    return [
        _entropy_row(record, rows, "null_entropy", "(i) H_V(Y|0) of the set"),
        _distance_row(record, rows),
        *_touched_rows(record),
        _entropy_row(record, rows, "cond_entropy", "(ii) H_V(Y|X) of the set under the reference model"),
        *_held_out_rows(record),
    ]


def chosen_rows(record: CurationRecord) -> np.ndarray:
    """Which rows of the scores were chosen, in order of rank; empty before scoring."""
    if record.selection is None or not record.columns:
        return np.zeros(0, dtype=np.int64)
    keys = [patch_key(row) for row in record.selection.select(["source", "crop"]).to_pylist()]
    where = find_rows(record.folder / "scores", set(keys))
    if len(where) < len(keys):
        raise UserError(
            f"{record.folder / 'scores'} lacks patches that the selection holds: bring back the shards that are "
            "missing, or move the folder away to leave scores out."
        )
    return np.array([record.index(where[key]) for key in keys], dtype=np.int64)


def coverage_distance(record: CurationRecord, rows: np.ndarray) -> float | None:
    """
    Mean cosine distance, 0 to 2, from a patch of the pool to the nearest of `rows`, about the pool's mean embedding.

    Returns:
        `float`, or `None` where the scores hold no embedding.
    """
    paths = existing_shards(record.folder / "scores")
    if not paths or "embedding" not in read_schema(paths[0]).names:
        return None
    sample = spaced(record.offsets[-1], POOL_SAMPLE)
    total: Any = 0.0
    kept: dict[str, list[np.ndarray]] = {"pool": [], "chosen": []}
    for path, start, end in zip(paths, record.offsets, record.offsets[1:]):
        if start == end:
            continue
        column = read_table(path, columns=["embedding"])["embedding"].combine_chunks()
        embedding = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)
        total = total + embedding.sum(axis=0, dtype=np.float64)
        for name, wanted in (("pool", sample), ("chosen", np.sort(rows))):
            kept[name].append(embedding[wanted[(wanted >= start) & (wanted < end)] - start])
    mean = (total / record.offsets[-1]).astype(np.float32)
    return nearest_distance(*(unit_vectors(np.concatenate(parts), mean) for parts in kept.values()))


def _entropy_row(record: CurationRecord, rows: np.ndarray, column: str, name: str) -> dict[str, str]:
    if column not in record.columns:
        return _row(name, "bits per value", NOT_SCORED)
    values = record.columns[column]
    return _row(name, "bits per value", f"{np.nanmean(values[rows]):.3f}", f"{np.nanmean(values):.3f}")


def _distance_row(record: CurationRecord, rows: np.ndarray) -> dict[str, str]:
    distance = coverage_distance(record, rows)
    text = NOT_EMBEDDED if distance is None else f"{distance:.3f}"
    return _row("distance to the nearest chosen", "cosine, mean", text)


def _touched_rows(record: CurationRecord) -> list[dict[str, str]]:
    assert record.selection is not None
    inputs = read_table(record.folder / "inputs.parquet", columns=["source", "group"])
    group = dict(zip(inputs["source"].to_pylist(), inputs["group"].to_pylist()))
    pool: set[str] = set()
    for path in existing_shards(record.folder / "patches"):
        pool.update(pc.unique(read_table(path, columns=["source"])["source"]).to_pylist())
    chosen = pc.unique(record.selection["source"]).to_pylist()
    counts = [(len(sources), len({group[source] for source in sources})) for sources in (chosen, pool)]
    (images, groups), (all_images, all_groups) = counts
    return [
        _row("source images touched", "count", f"{images:,}", f"{all_images:,}" if pool else ""),
        _row("near-duplicate groups touched", "count", f"{groups:,}", f"{all_groups:,}" if pool else ""),
    ]


def _held_out_rows(record: CurationRecord) -> list[dict[str, str]]:
    name, further = "(iii) held-out V-information", "(iii) V-information on downstream images"
    known = [(f"{name} of {arm}", figures) for arm, figures in record.judged.items()]
    known += [(f"{further}, {arm}", figures) for arm, figures in record.downstream.items()]
    rows = [_row(title, judged_unit(figures), held_out_text(figures)) for title, figures in known]
    if record.judged:
        return rows
    return [_row(name, "bits per value", NOT_JUDGED if record.held_out else NOT_HELD_OUT), *rows]


def judged_unit(figures: dict[str, Any]) -> str:
    """What a model's held-out V-information is measured in: a contrastive model knows of views, others of pixels."""
    if figures["target"] == "other view":
        return f"bits a frame, at most {figures['null_entropy']:.2f}"
    return f"bits per value, {figures['target']} pixels"


def held_out_text(figures: dict[str, Any]) -> str:
    """A model's held-out V-information with its interval and what it was measured on."""
    interval = (
        "no interval of so few groups"
        if figures["low"] is None
        else f"95 % {figures['low']:.3f} to {figures['high']:.3f}"
    )
    on = f"{figures['frames']:,} frames, {figures['groups']:,} groups"
    return f"{figures['v_information']:.3f} ({interval}; {on})"


def pilot_text(facts: dict[str, Any]) -> str:
    """Why the pilot of `--strategy auto` named this strategy; empty where there was none."""
    if "pilot" not in facts:
        return ""
    found = facts["pilot"]
    interval = f"95 % {found['low']:.3f} to {found['high']:.3f}"
    return (
        f"A pilot of {found['repeats']} repeats named {found['arm']}: at {found['counts'][-1]:,} patches it leads "
        f"{found['over']} by {found['gain']:.3f} bits per value ({interval}), extrapolated from a quarter and a half."
    )


def _row(name: str, unit: str, chosen: str, pool: str = "") -> dict[str, str]:
    return {"name": name, "unit": unit, "chosen": chosen, "pool": pool}
