"""Checks on the tables and batches that are passed in from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from PIL import Image

from optidel_hf.errors import UserError


def require_table(table: Any, what: str, kinds: tuple[type, ...] = (Dataset,)) -> None:
    """
    Refuse what is not one table with all of its rows, of one of the `kinds`.

    Raises:
        `UserError`: if `what` is a `DatasetDict`, which has several, or streamed, or anything else.
    """
    if isinstance(table, kinds):
        return
    if isinstance(table, dict):
        first = next(iter(table), "train")
        raise UserError(
            f"{what} is of type {type(table).__name__}, with {', '.join(table)}: give one of them, as ['{first}']."
        )
    raise UserError(f"{what} is of type {type(table).__name__}: give a datasets.Dataset, which has all rows at hand.")


def require_patches(patches: Any) -> None:
    """
    Refuse what is not one table of key patches, each with its square.

    Raises:
        `UserError`: as [`require_table`] does; naming the first row of an image that gave no patch.
    """
    require_table(patches, "`patches`")
    if missing := {"image", "source", "group", "crop"} - set(patches.column_names):
        raise UserError(f"`patches` has no column '{min(missing)}': give what SamPatchExtractor makes of the images.")
    crops = patches.select_columns(["crop"]).with_format("arrow")[:]["crop"]
    if crops.null_count:
        raise UserError(
            f"Row {pc.index(crops.is_null(), True).as_py()} of `patches` has no patch, for the reason in its column "
            "'rejected': leave such rows out, by patches.filter(lambda why: why is None, input_columns='rejected')."
        )


def batch_column(batch: Mapping[str, Any], name: str) -> Any:
    """
    The values of a batch's column.

    Raises:
        `UserError`: if there is no such column, or `map` gave a single row.
    """
    if not isinstance(batch, Mapping):
        raise UserError(
            f"The rows came as a {type(batch).__name__}: take the dataset's format off, by with_format(None)."
        )
    if name not in batch:
        raise UserError(f"The rows have no column '{name}', only {', '.join(batch)}.")
    if isinstance(batch[name], (Mapping, Image.Image, bytes, str)):
        raise UserError(f"Column '{name}' came as one value in place of many: call `map` with batched=True.")
    return batch[name]
