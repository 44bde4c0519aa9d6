"""The panel of what each strategy would choose from the same patches, and of what each term of `optidel` buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from optidel_hf.publishing.figures import strips, thumbnail
from optidel_hf.publishing.measures import chosen_rows
from optidel_hf.publishing.records import CurationRecord, read_rows
from optidel_hf.publishing.sheets import by_hardness


TILES_DRAWN = 12
TILE_SIDE, TILE_BYTES = 72, 5_000
PERCENTILES = (5, 25, 50, 75, 95)


class Compared(Protocol):
    """A set that a rule chose, as `curation.comparison.compare` tells it."""

    @property
    def name(self) -> str: ...
    @property
    def term(self) -> bool: ...
    @property
    def rows(self) -> np.ndarray: ...
    @property
    def refused(self) -> np.ndarray: ...
    @property
    def sources(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def hardness(self) -> float: ...
    @property
    def distance(self) -> float: ...


def strategy_panel(record: CurationRecord, compared: Sequence[Compared]) -> dict[str, Any] | None:
    """
    Every rule's set in figures, its scores' distribution, and the first patches of each term.

    Args:
        record (`CurationRecord`): A scored curation.
        compared (`Sequence[Compared]`): What each rule chose; none leaves the panel out.

    Returns:
        `dict`, or `None`: `score`, `chart`, `rules` and `sheets` (`name` and `tiles` of `uri`, `title`, `refused`).
    """
    if not compared:
        return None
    score, _ = by_hardness(record)
    values, own = record.columns[score], chosen_rows(record)
    sets = {"all key patches": values, **({"chosen in this run": values[own]} if len(own) else {})}
    sets |= {rule.name: values[rule.rows] for rule in compared if not rule.term}
    return {
        "score": score,
        "chart": strips([(name, _percentiles(part)) for name, part in sets.items()], score),
        "rules": compared,
        "sheets": [{"name": rule.name, "tiles": _tiles(record, rule)} for rule in compared if _drawn(rule)],
    }


def _drawn(rule: Compared) -> bool:
    return rule.term or rule.name == "random"


def _percentiles(values: np.ndarray) -> list[float]:
    return np.percentile(values[np.isfinite(values)], PERCENTILES).tolist()


def _tiles(record: CurationRecord, rule: Compared) -> list[dict[str, Any]]:
    places = [record.row(int(row)) for row in rule.rows[:TILES_DRAWN]]
    images = read_rows(record.folder / "patches", places, ["image", "source"])
    return [
        {"uri": thumbnail(image["image"], TILE_SIDE, TILE_BYTES), "title": image["source"], "refused": bool(refused)}
        for image, refused in zip(images, rule.refused)
    ]
