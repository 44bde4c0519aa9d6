"""Reads what a curation left on disk: counts, score columns, the selection, the folds' calibration.

Only the columns that are asked for are read, and images only row by row, so that memory stays flat at a million key
patches. A stage that has not run yet is an empty table here, not an error: a report may be wanted half way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from optidel_hf.errors import UserError
from optidel_hf.files import read_json
from optidel_hf.layout import METADATA_KEY, NO_PATCH, existing_shards, shard_number
from optidel_hf.parquet import count_rows, read_schema, read_table, told_if_damaged


SCORES = {
    "cond_entropy": "bits per value",
    "null_entropy": "bits per value",
    "pvi": "bits per value",
    "difficulty": "nats, free of contrast and size",
    "learnability": "bits per value gained by longer training",
}
"""The score columns that are drawn, with their units; the last only where it was asked for."""

CONFOUNDERS = ("contrast", "area", "side")
"""What a score should not merely repeat: a patch's contrast, its mask's area, its side in source pixels."""

REASONS_LISTED = 10

Row = tuple[int, int]
"""A row of a stage's folder: the number in the shard's name, which all stages share, and the row within it."""

Key = tuple[str, tuple[int, ...]]
"""What identifies a key patch: its source and the square (x, y, side) that is cut from it."""


@dataclass
class CurationRecord:
    """
    What a curation's folder says about itself.

    Args:
        folder (`Path`): The curation's output folder.
        config (`dict`): Its `config.json`, versions included.
        stages (`dict[str, dict]`): Each stage folder's `config.json`, by the stage's name.
        sources (`int`): Source images that were listed.
        held_out (`int`): Source images that no stage sees.
        rejected (`Counter`): Source images that could not be used, by reason.
        without_patch (`int`): Source images that could be used and gave no key patch.
        with_patches (`int`): Source images that gave at least one key patch.
        patches (`int`): Key patches.
        columns (`dict[str, np.ndarray]`): Scores, `CONFOUNDERS` and `fold` of all key patches, float64 of shape
            `(patches,)`; empty before scoring.
        offsets (`np.ndarray`): First row of every score shard, and the number of rows at the end.
        score_shards (`list[int]`): Their numbers; some are missing while several processes score.
        selection (`pa.Table`, *optional*): The selection, in order of rank.
        facts (`dict`): The selection's metadata: strategy, score, seed, tiles_per_mosaic, tile_size, counts, versions.
        calibration (`list[dict]`): Each fold's `calibration.json`.
        agreement (`dict`): The reference's `reliability.json`: rank correlations between models.
        judged (`dict[str, dict]`): Held-out V-information of pre-trained models, by the arm's name.
        downstream (`dict[str, dict]`): The same on a downstream set's images.
    """

    folder: Path
    config: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    sources: int
    held_out: int
    rejected: Counter[str]
    without_patch: int
    with_patches: int
    patches: int
    columns: dict[str, np.ndarray]
    offsets: np.ndarray
    score_shards: list[int]
    selection: pa.Table | None
    facts: dict[str, Any]
    calibration: list[dict[str, Any]]
    agreement: dict[str, Any]
    judged: dict[str, dict[str, Any]]
    downstream: dict[str, dict[str, Any]]

    @property
    def mosaics(self) -> int:
        """`int`: Mosaics that the selection fills."""
        return 0 if self.selection is None else pc.count_distinct(self.selection["mosaic"]).as_py()

    def row(self, index: int) -> Row:
        """Where the key patch number `index` of the score columns lies, as `(shard, row)`."""
        place = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return self.score_shards[place], int(index - self.offsets[place])

    def index(self, row: Row) -> int:
        """Which row of the score columns lies at `(shard, row)`."""
        shard, within = row
        return int(self.offsets[self.score_shards.index(shard)]) + within


def read_curation(curation_dir: str | Path) -> CurationRecord:
    """
    Reads a curation's folder, columns only.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of a curation.

    Returns:
        [`CurationRecord`]: Counts, columns and configuration.

    Raises:
        UserError: If the folder does not exist or no curation wrote it.
    """
    folder = Path(curation_dir)
    if not (folder / "inputs.parquet").is_file():
        raise UserError(
            f"{folder} holds no inputs.parquet, so no curation has run there: give the --output_dir of `curate`."
        )
    inputs = read_table(folder / "inputs.parquet", columns=["source"])
    with_patches, patches = _count_patches(folder / "patches")
    score_shards = existing_shards(folder / "scores")
    selection, facts = read_selection(folder / "selection.parquet")
    columns, offsets = _read_scores(score_shards, facts.get("score") or "")
    rejected = _count_rejected(folder / "rejected")
    without_patch, held_out = rejected.pop(NO_PATCH, 0), _count_held_out(folder / "held_out.parquet")
    if not patches and selection is not None:  # `patches/` may go once its patches are curated
        patches = facts["counts"]["pool"]
        with_patches = inputs.num_rows - held_out - rejected.total() - without_patch
    stages = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/config.json"))}
    return CurationRecord(
        folder=folder,
        config=read_json(folder / "config.json") if (folder / "config.json").is_file() else {},
        stages=stages,
        sources=inputs.num_rows,
        held_out=held_out,
        without_patch=without_patch,
        rejected=rejected,
        with_patches=with_patches,
        patches=patches,
        columns=columns,
        offsets=offsets,
        score_shards=[shard_number(path) for path in score_shards],
        selection=selection,
        facts=facts,
        calibration=[read_json(path) for path in sorted(folder.glob("reference/fold-*/calibration.json"))],
        agreement=read_json(agreement) if (agreement := folder / "reference" / "reliability.json").is_file() else {},
        judged=read_json(folder / "held_out.json") if (folder / "held_out.json").is_file() else {},
        downstream=read_json(folder / "downstream.json") if (folder / "downstream.json").is_file() else {},
    )


def funnel(record: CurationRecord) -> list[dict[str, Any]]:
    """
    The counts from source images to mosaics.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One row a step: `label`, `count`, `share` of the first count of the same `kind`, and `notes`.
    """
    reasons = [f"{count:,} {reason}" for reason, count in record.rejected.most_common(REASONS_LISTED)]
    if len(record.rejected) > REASONS_LISTED:
        reasons.append(f"and {len(record.rejected) - REASONS_LISTED} rarer reasons")
    steps: list[tuple[str, str, int, list[str]]] = [
        ("image", "source images read", record.sources, []),
        *([("image", "held out", record.held_out, ["seen by no stage"])] if record.held_out else []),
        ("image", "rejected", record.rejected.total(), reasons),
        *([("image", "without a key patch", record.without_patch, [])] if record.without_patch else []),
        ("image", "with key patches", record.with_patches, []),
        ("patch", "key patches", record.patches, []),
    ]
    if record.selection is not None:
        touched = pc.count_distinct(record.selection["source"]).as_py()
        tiles, eligible = record.facts["tiles_per_mosaic"], record.facts["counts"]["eligible"]
        enlarged = record.patches - eligible
        steps += [
            ("patch", "eligible", eligible, [f"{enlarged:,} enlarged beyond --max_upscale"] * (enlarged > 0)),
            *_cut_step(record.facts.get("cut")),
            ("patch", "chosen", record.selection.num_rows, [f"from {touched:,} source images"]),
            ("patch", "mosaics", record.mosaics, [f"{tiles} tile{'s' * (tiles > 1)} each"]),
        ]
    whole = {"image": max(1, record.sources), "patch": max(1, record.patches)}
    return [
        {"kind": kind, "label": label, "count": count, "share": count / whole[kind], "notes": notes}
        for kind, label, count, notes in steps
    ]


def _cut_step(cut: dict[str, dict[str, Any]] | None) -> list[tuple[str, str, int, list[str]]]:
    """What was cut as spoilt or outlying, reason by reason with its limit; nothing for strategies that cut nothing."""
    if cut is None:
        return []
    notes = []
    for reason, figures in cut.items():
        above = "" if figures["limit"] is None else f" (above {figures['limit']:.3g})"
        notes.append(f"{figures['count']:,} {reason.removeprefix('dropped: ')}{above}")
    return [("patch", "cut as outliers", sum(figures["count"] for figures in cut.values()), notes)]


def list_rows(folder: Path) -> list[Row]:
    """All rows of a stage's folder, in order."""
    counts = {shard_number(path): count_rows(path) for path in existing_shards(folder)}
    return [(shard, row) for shard, count in counts.items() for row in range(count)]


def read_rows(folder: Path, rows: Iterable[Row], columns: list[str]) -> list[dict[str, Any]]:
    """
    Reads single rows of a stage's folder: only the row groups that hold them, one at a time.

    Args:
        folder (`Path`): The stage's folder.
        rows (iterable of `(int, int)`): Shard and row within it.
        columns (`list[str]`): The columns to read.

    Returns:
        `list[dict]`: One dictionary a row, in the order of `rows`.
    """
    rows, files = list(rows), {shard_number(path): path for path in existing_shards(folder)}
    found: dict[Row, dict[str, Any]] = {}
    for shard in sorted({shard for shard, _ in rows}):
        if shard not in files:
            raise UserError(f"{folder} lacks shard {shard}: run the curation again, which makes it anew.")
        with told_if_damaged(files[shard]), pq.ParquetFile(files[shard]) as file:
            wanted = np.array(sorted({row for number, row in rows if number == shard}))
            for start, group in _row_groups(file):
                inside = wanted[(wanted >= start) & (wanted < start + file.metadata.row_group(group).num_rows)]
                if len(inside):
                    taken = file.read_row_group(group, columns=columns).take(inside - start).to_pylist()
                    found.update(((shard, int(row)), value) for row, value in zip(inside, taken))
    return [found[row] for row in rows]


def find_rows(folder: Path, keys: set[Key]) -> dict[Key, Row]:
    """
    Finds key patches by what identifies them, one shard's keys in memory at a time.

    Args:
        folder (`Path`): The stage's folder.
        keys (`set` of `(source, crop)`): The patches that are looked for.

    Returns:
        `dict`: The key's `(shard, row)`, for each key that was found.
    """
    return {key: row for key, row in rows_of(folder, {source for source, _ in keys}) if key in keys}


def rows_of(folder: Path, sources: set[str]) -> Iterator[tuple[Key, Row]]:
    """
    The key patches of some source images, one shard's keys in memory at a time.

    Args:
        folder (`Path`): The stage's folder.
        sources (`set` of `str`): The images.

    Yields:
        `(key, (shard, row))`: Of each of their patches, in the order in which they were cut.
    """
    wanted = pa.array(sorted(sources), pa.string())
    for path in existing_shards(folder):
        table = read_table(path, columns=["source", "crop"])
        inside = np.flatnonzero(pc.is_in(table["source"].cast(pa.string()), value_set=wanted))
        for row, values in zip(inside.tolist(), table.take(inside).to_pylist()):
            yield patch_key(values), (shard_number(path), row)


def patch_key(row: dict[str, Any]) -> Key:
    """The key of a row that has `source` and `crop`."""
    return row["source"], tuple(row["crop"])


def _row_groups(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    start = 0
    for group in range(file.num_row_groups):
        yield start, group
        start += file.metadata.row_group(group).num_rows


def _count_held_out(path: Path) -> int:
    return count_rows(path) if path.is_file() else 0


def _count_rejected(folder: Path) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for path in existing_shards(folder):
        reasons.update(read_table(path, columns=["reason"])["reason"].to_pylist())
    return reasons


def _count_patches(folder: Path) -> tuple[int, int]:
    sources: set[str] = set()
    patches = 0
    for path in existing_shards(folder):
        column = read_table(path, columns=["source"])["source"]
        patches += len(column)
        sources.update(column.unique().to_pylist())
    return len(sources), patches


def _read_scores(paths: Sequence[Path], ranked_by: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if not paths:
        return {}, np.zeros(1, dtype=np.int64)
    there = read_schema(paths[0]).names
    names = [name for name in dict.fromkeys((*SCORES, "contrast", "area", "fold", ranked_by)) if name in there]
    tables = [read_table(path, columns=[*names, "crop"]) for path in paths]
    table = pa.concat_tables(tables)
    columns = {name: _floats(table[name]) for name in names}
    columns["side"] = _floats(pc.list_element(table["crop"], 2))
    return columns, np.cumsum([0, *(len(part) for part in tables)])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy()


def read_results(results: str | Path) -> dict[str, Any]:
    """
    The `results.json` of an evaluation, given by itself or by its folder.

    Raises:
        `UserError`: if it is another JSON file.
    """
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise UserError(f"--results {path}: no such file; give the results.json of `optidel evaluate`, or its folder.")
    if path.suffix != ".json":
        raise UserError(f"--results {path} is no JSON file: give the results.json of `optidel evaluate`.")
    told = read_json(path)
    if "summary" not in told:
        raise UserError(f"{path} is no results.json of `optidel evaluate`: it has no summary.")
    return told


def read_selection(path: Path) -> tuple[pa.Table | None, dict[str, Any]]:
    """A `selection.parquet` in order of rank, and its metadata; nothing where there is none yet."""
    if not path.is_file():
        return None, {}
    table = read_table(path).sort_by("rank")
    metadata = read_schema(path).metadata or {}
    if METADATA_KEY not in metadata:
        raise UserError(f"{path} lacks the `optidel` metadata that says how it was made: run `select` again.")
    return table, json.loads(metadata[METADATA_KEY])
