"""
No key patch in which burned-in text is seen goes to the Hub unasked: letters on a medical image are often a patient's
name.

Of the strategies `optidel` cuts such patches, as far as enough others are left. What the column `text` finds and what
it misses: [`optidel_hf.curation.nuisance.nuisances`]. It is measured on patches as they are stored, so of whole images
that were made small few letters are seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_schema
from optidel_hf.publishing.records import CurationRecord, Key, Row, find_rows, patch_key, read_rows


LIMIT = LEAST["text"]
BATCH = 256  # patches whose images are in memory at once
NAMED = 3


def refuse_burned_in_text(record: CurationRecord) -> None:
    """
    Refuse a selection with patches whose `text` is above what an eye would object to.

    Args:
        record ([`CurationRecord`]): A curation with a selection.

    Raises:
        UserError: If there is such a patch, with their number and the first sources, or nothing is left to tell by.
    """
    assert record.selection is not None
    keys = {patch_key(row) for row in record.selection.select(["source", "crop"]).to_pylist()}
    if sources := sorted(source for source, text in _texts(record.folder, keys) if text > LIMIT):
        named = ", ".join(list(dict.fromkeys(sources))[:NAMED])
        hint = "" if record.facts["strategy"] == "optidel" else "`--strategy optidel` cuts most of them; "
        raise UserError(
            f"{len(sources):,} of the {len(keys):,} key patches seem to have burned-in text (`text` above {LIMIT}), "
            f"of {named} and so on; text may name a patient, so nothing is pushed. {hint}--allow_text true pushes "
            "them as they are."
        )


def _texts(folder: Path, keys: set[Key]) -> Iterator[tuple[str, float]]:
    """Each patch's source and `text`, as it was scored, or measured now where not all of them were."""
    scores = folder / "scores"
    scored = any("text" in read_schema(path).names for path in existing_shards(scores)[:1])
    if scored and len(where := find_rows(scores, keys)) == len(keys):
        yield from ((key[0], row["text"]) for key, row in _read(scores, where, "text"))
        return
    if len(where := find_rows(folder / "patches", keys)) < len(keys):
        raise UserError(
            f"{folder / 'patches'} lacks patches that the selection holds, so it cannot be told whether they have "
            "burned-in text: bring back the shards that are missing, or push with --allow_text true."
        )
    bar = tqdm(_read(folder / "patches", where, "image"), desc="looking for text", unit=" patches", total=len(keys))
    yield from ((key[0], _measure(row["image"])) for key, row in bar)


def _read(stage: Path, where: dict[Key, Row], column: str) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Patches with one of their columns, shard by shard, so that each is opened few times."""
    keys = sorted(where, key=where.__getitem__)
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        yield from zip(batch, read_rows(stage, [where[key] for key in batch], [column]))


def _measure(image: Any) -> float:
    """The `text` of an undecoded patch."""
    import torch

    from optidel_hf.curation.nuisance import nuisances
    from optidel_hf.images import open_image

    return float(nuisances(torch.from_numpy(np.array(open_image(image)))[None])["text"])
