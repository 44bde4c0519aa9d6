"""
Grids on testbeds put together: what the arms' tiles are worth, how the arms did, and where selection pays.

    OUT/testbed_grid.md         a table a pool: junk and coverage of every arm's tiles, its mIoU, and the pool's gate
    OUT/testbed_map.png         the contrasts over redundancy and junk, of synthetic pools alone
    OUT/testbed_grid.parquet    the rows of all grids, with what the pools are in the columns of `POOL_COLUMNS`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from optidel_hf.drawing import save_figure
from optidel_hf.evidence.comparison import VALIDATION, Judged, Series
from optidel_hf.evidence.gate import headroom
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.results import NAMES, judged_names
from optidel_hf.evidence.testbed_map import NO_INTERVAL, contrasts, map_figure, verdict
from optidel_hf.evidence.wording import MISSING, difference_text, level_text, mode_words, seeds_text, table
from optidel_hf.evidence.worth import Worth
from optidel_hf.files import write_text
from optidel_hf.parquet import write_parquet
from optidel_hf.sample.testbed import KnownPool


POOL_COLUMNS = (
    ("pool", pa.string()),  # synthetic or semi-synthetic
    ("redundancy", pa.int32()),  # near copies of each scene; null where real frames have them by a Zipf law
    ("junk", pa.float64()),  # share of the pool
)
Chosen = tuple[str, float]
"""An arm and its budget."""
WORTH = ["tiles", "junk", "kinds of junk", "scenes", "scene types", "rare types"]
READING = """\
Junk is the share of tiles that were cut from a junk frame. Scenes and types count usable tiles only, of those in the
whole pool, held-out frames included; rare types are the rarest half. Means over the seeds, of junk also the range:
among n random tiles a share q has a standard error of sqrt(q (1 - q) / n), or more, since a frame gives several tiles.
mIoU is in per cent on the validation part, with its 95 % interval over seeds and images, not over pools: each is one
draw of its kind."""


@dataclass(frozen=True)
class JudgedPool:
    """
    A pool and what came out on it.

    Args:
        pool ([`KnownPool`]): the testbed.
        key_patches ([`Worth`]): of all of its key patches, what arms of patches choose from.
        worth (`Mapping`): by arm and budget, of its tiles, one a seed.
        results (`pyarrow.Table`, *optional*): the rows of the grid's `results.parquet`; none without pre-training.
    """

    pool: KnownPool
    key_patches: Worth
    worth: Mapping[Chosen, Sequence[Worth]]
    results: pa.Table | None = None

    @property
    def name(self) -> str:
        """What the pool is."""
        copies = {None: "Zipf copies of real frames", 1: "no near copies"}
        redundancy = copies.get(self.pool.redundancy, f"{self.pool.redundancy} near copies")
        kind = "Semi-synthetic" if self.pool.semi_synthetic else "Synthetic"
        return f"{kind}: {redundancy}, {100 * self.pool.junk:g} % junk"


def write_testbed_results(grids: Sequence[JudgedPool], folder: Path, preface: str = "") -> None:
    """
    Write what is known so far.

    Args:
        grids (`Sequence[JudgedPool]`): of the pools that are finished.
        folder (`Path`): where the table, the map and the rows are written.
        preface (`str`, *optional*): the table's first paragraph, such as the command.
    """
    write_text(pools_text(grids, preface), folder / "testbed_grid.md")
    if results := merge_results(grids):
        write_parquet(results, folder / "testbed_grid.parquet")
    cells = {
        (one.pool.redundancy, one.pool.junk): one.results
        for one in grids
        if one.results is not None and one.pool.redundancy is not None
    }
    if found := contrasts(cells):
        level = {cell for cell, results in cells.items() if not headroom(results).passed}
        save_figure(map_figure(found, level), folder / "testbed_map.png")


def merge_results(grids: Sequence[JudgedPool]) -> pa.Table | None:
    """The rows of all grids behind `POOL_COLUMNS`; none where nothing was pre-trained."""
    tables: list[pa.Table] = []
    names: dict[str, list[str]] = {}
    for one in grids:
        if one.results is not None:
            names |= judged_names(one.results)
            tables.append(_with_pool(one.pool, one.results))
    if not tables:
        return None
    return pa.concat_tables(tables).replace_schema_metadata({NAMES: json.dumps(names).encode()})


def _with_pool(pool: KnownPool, results: pa.Table) -> pa.Table:
    values = ("semi-synthetic" if pool.semi_synthetic else "synthetic", pool.redundancy, pool.junk)
    for place, ((name, kind), value) in enumerate(zip(POOL_COLUMNS, values)):
        results = results.add_column(place, name, pa.array([value] * len(results), kind))
    return results.replace_schema_metadata()


def pools_text(grids: Sequence[JudgedPool], preface: str = "") -> str:
    """Every pool's table as Markdown."""
    parts = ["# What arms take from pools where it is known, and what it gives", *[preface] * bool(preface), READING]
    return "\n\n".join([*parts, *(part for one in grids for part in _section(one))]) + "\n"


def _section(one: JudgedPool) -> list[str]:
    """A pool's title with its gate, the table, and the contrasts of the map in words."""
    if one.results is None:
        return [f"## {one.name}", table(["arm", *WORTH], _rows(one, {}))]
    judged, gate = Judged.of(one.results, VALIDATION), headroom(one.results)
    columns = ["arm", *WORTH, *(f"mIoU, {mode_words(mode)}" for mode in judged.modes), "seeds"]
    found = [
        f"{title}: {difference_text(interval)}{_verdict_words(interval)}"
        for title, intervals in contrasts({one.name: one.results}).items()
        for interval in intervals.values()
    ]
    title = f"## {one.name}{gate.verdict and f': {gate.verdict}'}"
    sentences = [f"{'; '.join(found)}."] if found else []
    return [title, table(columns, _rows(one, _level_cells(judged))), *sentences, gate.sentence]


def _verdict_words(difference: Interval) -> str:
    """What the map says of a difference; where it has no interval, the difference's own words have said so."""
    found = verdict(difference)
    return "" if found == NO_INTERVAL else f", {found}"


def _rows(one: JudgedPool, levels: Mapping[Chosen, list[str]]) -> list[list[str]]:
    """A line for all key patches, and one for every arm and budget."""
    beside = [MISSING] * max(map(len, levels.values()), default=0)
    rows = [["(all key patches)", *_worth_cells([one.key_patches]), *beside]]
    for arm, budget in levels or one.worth:
        name = arm if budget in (0, 1) else f"{arm}, {100 * budget:g} %"
        rows.append([name, *_worth_cells(one.worth.get((arm, budget), ())), *levels.get((arm, budget), ())])
    return rows


def _level_cells(judged: Judged) -> dict[Chosen, list[str]]:
    """Of every arm and budget its mIoU in each mode, with the headline's labels, and its seeds."""
    runs: dict[Chosen, dict[str, Series]] = {}
    for series in judged.series:
        if series.setting.labels == judged.setting.labels:
            runs.setdefault((series.arm, series.setting.budget), {})[series.mode] = series
    return {
        chosen: [
            *(level_text(series[mode].interval()) if mode in series else MISSING for mode in judged.modes),
            seeds_text(max(len(one.runs) for one in series.values())),
        ]
        for chosen, series in runs.items()
    }


def _worth_cells(worths: Sequence[Worth]) -> list[str]:
    """Means over the seeds; an arm that takes nothing from the pool has none."""
    if not worths:
        return [MISSING] * len(WORTH)
    shares = [100 * worth.junk_share for worth in worths]
    between = f" ({min(shares):.1f} to {max(shares):.1f})" if min(shares) < max(shares) else ""
    kinds: Counter[str] = Counter()
    for worth in worths:
        kinds.update(worth.kinds)
    return [
        _mean([worth.tiles for worth in worths]),
        f"{np.mean(shares):.1f} %{between}",
        ", ".join(f"{kind} {_mean([count / len(worths)])}" for kind, count in sorted(kinds.items())) or "none",
        *(_covered([getattr(worth, what) for worth in worths]) for what in ("scenes", "scene_types", "tail_types")),
    ]


def _covered(counts: Sequence[tuple[int, int]]) -> str:
    whole = counts[0][1]
    return f"{_mean([covered for covered, _ in counts])} of {whole}" if whole else MISSING


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):,.1f}".removesuffix(".0")
