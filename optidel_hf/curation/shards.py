"""
The on-disk protocol: a stage's rows in parquet shards; a shard that exists is finished.

Files are written under a temporary name and renamed when whole, so a kill at any moment leaves whole shards and
nothing that a reader would open. Rank r of W takes shards r, r + W, ...; no lock and no database is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from optidel_hf.errors import UserError
from optidel_hf.files import is_held
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import count_rows, read_table


POLL_SECONDS = 0.5


def shard_bounds(rows: int, rows_per_shard: int) -> list[range]:
    """Row ranges of ceil(rows / rows_per_shard) shards, at least one."""
    starts = range(0, max(rows, 1), rows_per_shard)
    return [range(start, min(start + rows_per_shard, rows)) for start in starts]


class FirstRank:
    """The rank that has `output` by [`alone_in`] for as long as it is at work, as the others see it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.seen = False

    def has_stopped(self) -> bool:
        """Whether it was seen at work and is not any more; no, where the file system has no locks."""
        at_work = is_held(self.output)
        self.seen = self.seen or at_work
        return self.seen and not at_work


def wait_for(paths: Iterable[Path], first: FirstRank | None = None) -> None:
    """
    Return when every path exists: how a rank waits for the shards of the others.

    Raises:
        `UserError`: if the first rank has stopped and a path is not there.
    """
    for path in paths:
        while not path.exists():
            if first and first.has_stopped() and not path.exists():
                raise UserError(f"The first process has stopped before {path} was written: see its own message.")
            time.sleep(POLL_SECONDS)


def read_columns(folder: Path, columns: list[str]) -> pa.Table:
    """Some columns of all shards of a stage, one after the other."""
    return pa.concat_tables([read_table(path, columns) for path in existing_shards(folder)])


def read_rows(folder: Path, rows: Iterable[int], columns: list[str] | None = None) -> pa.Table:
    """Rows by their number over all shards, in ascending order; one shard is in memory at a time."""
    wanted, start, taken = sorted(set(rows)), 0, []
    for path in existing_shards(folder):
        count = count_rows(path)
        inside = [row - start for row in wanted if start <= row < start + count]
        if inside:
            taken.append(read_table(path, columns).take(inside))
        start += count
    return pa.concat_tables(taken)
