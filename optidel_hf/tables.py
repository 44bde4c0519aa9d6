"""Checks on the tables and batches that are passed in from Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
