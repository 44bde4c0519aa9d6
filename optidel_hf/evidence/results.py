"""
Results on disk: one parquet a finished cell, and `results.parquet` with the rows of all of them.

A row is a downstream run, or as many as labels are drawn. Its `confusion` holds every judged image's confusion matrix,
so that intervals may resample images; the images' names, in that order, stand in the schema's metadata as JSON:
`{"validation": [...]}`, and in a cell's also a hash of those images and their masks. Frames of one video are no
independent images: in `results.parquet` the matrices of a group are added, so that it counts as one image, and the
names are those of groups. mIoU is of the pooled confusion matrix, as everywhere.

Shapes: `N` judged images, `C` classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from optidel_hf.errors import UserError
from optidel_hf.parquet import read_table, write_parquet


FACTS = (  # what an arm's data are and cost, see ArmData
    "images",
    "stored_pixels",
    "stored_bytes",
    "sources",
    "groups",
    "native_pixels",
    "curation_seconds",
    "null_entropy",
    "coverage",
    "cond_entropy",
)
RESULT_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("budget", pa.float64()),  # share of the pool; 0 without pre-training, 1 for the whole pool
        ("seed", pa.int32()),
        ("labels", pa.int32()),
        ("label_draws", pa.int32()),  # runs whose confusions were added
        ("mode", pa.string()),  # finetune or probe
        ("split", pa.string()),  # validation or test
        ("step", pa.int32()),  # of the checkpoint that is judged; the last one is `steps`
        ("steps", pa.int32()),  # of pre-training; 0 without
        ("miou", pa.float64()),  # fraction
        ("confusion", pa.list_(pa.int32())),  # N x C x C, rows are references, image by image
        ("images_seen", pa.int64()),  # by pre-training up to `step`
        ("pretrain_seconds", pa.float64()),  # of the whole pre-training
        ("downstream_seconds", pa.float64()),
        ("vinfo_held_out", pa.float64()),  # bits per value, at the end of pre-training
        *((name, pa.float64()) for name in FACTS),
        ("config_hash", pa.string()),
        ("commit", pa.string()),
        ("hardware", pa.string()),
    ]
)
NAMES, HASHES = b"images", b"sha256"


def write_rows(
    rows: Sequence[Mapping[str, Any]],
    names: Mapping[str, Sequence[str]],
    path: Path,
    hashes: Mapping[str, str] | None = None,
) -> None:
    """
    Write downstream runs, whole or not at all.

    Args:
        rows (`Sequence[Mapping]`): fields of `RESULT_SCHEMA`; what is missing is null.
        names (`Mapping[str, Sequence[str]]`): the judged images of every split among the rows.
        path (`Path`).
        hashes (`Mapping[str, str]`, *optional*): what identifies those images and their masks.
    """
    told = {NAMES: dict(names), HASHES: dict(hashes or {})}
    schema = RESULT_SCHEMA.with_metadata({key: json.dumps(value).encode() for key, value in told.items()})
    columns = [pa.array([row.get(name) for row in rows], kind) for name, kind in zip(schema.names, schema.types)]
    write_parquet(pa.Table.from_arrays(columns, schema=schema), path)


def judged_names(results: pa.Table) -> dict[str, list[str]]:
    """The names of the judged images, by split, in the order of `confusion`."""
    return json.loads(results.schema.metadata[NAMES])


def read_cells(paths: Iterable[Path], config_hash: str) -> pa.Table:
    """
    The rows of finished cells, in the order given.

    Raises:
        `UserError`: naming the file, if a cell is of another configuration or was judged on other images.
    """
    tables: list[pa.Table] = []
    names: dict[str, list[str]] = {}
    hashes: dict[str, str] = {}
    for path in paths:
        table = read_table(path)
        _refuse_other_hash(table, path, config_hash)
        for split, found in judged_names(table).items():
            if names.setdefault(split, found) != found:
                raise UserError(f"{path} was judged on other {split} images than the cells before it: remove it.")
        for split, digest in json.loads(table.schema.metadata.get(HASHES, b"{}")).items():
            if hashes.setdefault(split, digest) != digest:
                raise UserError(
                    f"{path} was judged on {split} images of the same names, but other pixels or masks, than the "
                    "cells before it: remove those that were judged on the wrong ones."
                )
        tables.append(table.replace_schema_metadata())
    metadata = {NAMES: json.dumps(names).encode()}
    return pa.concat_tables(tables).replace_schema_metadata(metadata)


def group_names(names: Sequence[str], pattern: str | None) -> list[str]:
    """
    The group of every judged image: what a regular expression finds in its name, or the name where none is given.

    Where it has parentheses, what they capture is the group.

    Raises:
        `UserError`: naming the image in which it finds nothing.
    """
    found = [re.search(pattern or ".*", name) for name in names]
    if missed := next((name for name, match in zip(names, found) if not match), None):
        raise UserError(f"--downstream_groups '{pattern}' finds no group in the name '{missed}': '.*' takes it all.")
    return ["-".join(filter(None, match.groups())) or match.group() for match in found if match]


def add_up_groups(results: pa.Table, pattern: str | None) -> pa.Table:
    """
    The rows with the confusion matrices of each group's images added, and the groups' names in place of theirs.

    Without a pattern they stay as they are: names may repeat, as of files in several folders.
    """
    if pattern is None:
        return results
    groups = {split: group_names(names, pattern) for split, names in judged_names(results).items()}
    pairs = zip(results["confusion"], results["split"].to_pylist())
    added = [_added(flat.values.to_numpy(), groups[split]) for flat, split in pairs]
    place = results.schema.get_field_index("confusion")
    column = pa.array(added, RESULT_SCHEMA.field("confusion").type)
    told = {split: list(dict.fromkeys(names)) for split, names in groups.items()}
    return results.set_column(place, "confusion", column).replace_schema_metadata({NAMES: json.dumps(told).encode()})


def _added(flat: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Matrices `(N x C x C,)` added by group, in the order in which groups appear."""
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    matrices = flat.reshape(len(groups), -1)
    added = np.zeros((len(order), matrices.shape[1]), matrices.dtype)
    np.add.at(added, [order[group] for group in groups], matrices)
    return added.ravel()


def _refuse_other_hash(table: pa.Table, path: Path, config_hash: str) -> None:
    others = set(table["config_hash"].to_pylist()) - {config_hash}
    if others:
        raise UserError(
            f"{path} is of configuration {others.pop()[:16]}, and this grid's is {config_hash[:16]}: merge outputs of "
            "one configuration (each has its config.json), or give another --output_dir."
        )
