"""
No burned-in text goes to the Hub unasked: letters on a medical image are often a patient's name.

Of the strategies `optidel` alone cuts such patches. What the column `text` finds and what it misses:
[`optidel_hf.curation.nuisance.nuisances`].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.errors import UserError
from optidel_hf.parquet import read_schema
from optidel_hf.publishing.records import CurationRecord, find_rows, patch_key, read_rows, shards


LIMIT = LEAST["text"]
BATCH = 256  # patches whose images are in memory at once
NAMED = 3


def refuse_burned_in_text(record: CurationRecord) -> None:
    """
    Refuse a selection of which a patch's `text` exceeds the limit that `optidel` cuts at.

    Args:
        record ([`CurationRecord`]): A curation with a selection.

    Raises:
        UserError: If there is such a patch, with their number and the first sources, or nothing is left to tell by.
    """
    if sources := [source for source, text in _text(record) if text > LIMIT]:
        named = ", ".join(list(dict.fromkeys(sources))[:NAMED])
        raise UserError(
            f"{len(sources):,} of the {record.facts['counts']['chosen']:,} key patches seem to have burned-in text "
            f"(`text` above {LIMIT}), of {named} and so on; text may name a patient, so nothing is pushed. "
            "`--strategy optidel` chooses without them; --allow_text true pushes them as they are."
        )


def _text(record: CurationRecord) -> Iterator[tuple[str, float]]:
    """Each chosen patch's source and `text`, as it was scored, or measured now if it was not."""
    assert record.selection is not None
    keys = [patch_key(row) for row in record.selection.select(["source", "crop"]).to_pylist()]
    scores, patches = record.folder / "scores", record.folder / "patches"
    scored = any("text" in read_schema(path).names for path in shards(scores)[:1])
    folder, column = (scores, "text") if scored else (patches, "image")
    where = find_rows(folder, set(keys))
    if len(where) < len(set(keys)):
        raise UserError(
            f"{folder} lacks patches that the selection holds, so it cannot be told whether they have burned-in text: "
            "bring back the shards that are missing, or push with --allow_text true."
        )
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        values = (row[column] for row in read_rows(folder, [where[key] for key in batch], [column]))
        yield from zip((source for source, _ in batch), values if scored else _measure(values))


def _measure(images: Iterable[Any]) -> Iterator[float]:
    """The `text` of undecoded patches, one by one as their sizes may differ."""
    import torch

    from optidel_hf.curation.nuisance import nuisances
    from optidel_hf.images import open_image

    for image in images:
        yield float(nuisances(torch.from_numpy(np.array(open_image(image)))[None])["text"])
