"""Parquet files: written whole or not at all, and read with a word where they were damaged since."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from optidel_hf.errors import UserError
from optidel_hf.files import written_whole


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write `table` as [`written_whole`] does."""
    with written_whole(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """
    A file's rows.

    Raises:
        `UserError`: if it was damaged since it was written.
    """
    with told_if_damaged(path):
        return pq.read_table(path, columns=columns)


def read_schema(path: Path) -> pa.Schema:
    """A file's columns and metadata; raises as [`read_table`] does."""
    with told_if_damaged(path):
        return pq.read_schema(path)


def count_rows(path: Path) -> int:
    """How many rows a file has; raises as [`read_table`] does."""
    with told_if_damaged(path):
        return pq.read_metadata(path).num_rows


@contextmanager
def told_if_damaged(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a `UserError` that says what to do."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path} does not exist.") from None
        if isinstance(error, OSError) and error.errno:  # the system's: it cannot be read here, and may be whole
            raise
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command makes it again.") from None
