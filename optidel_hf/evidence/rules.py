"""
Rules of arms that are more than a strategy on a table: what else they choose from, or rank by.

Shapes: `n` candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.curation.selection import eligible
from optidel_hf.curation.selection.candidates import rank_within
from optidel_hf.curation.selection.clusters import cluster, members
from optidel_hf.curation.selection.select import read_pool
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.errors import UserError
from optidel_hf.evidence.crops import crop_shares, image_sizes, random_crops
from optidel_hf.evidence.oracle import covering_frames, embed_images, nearest_frames
from optidel_hf.evidence.pool import cut


if TYPE_CHECKING:
    from optidel_hf.evidence.arm_data import Draw


MEDIUM = (0.5, 0.9)  # within-cluster quantiles of difficulty between which a patch is medium


def _nearest_to_labels(draw: Draw) -> pa.Table:
    """Whole images nearest to any label image."""
    return draw.select(draw.stock.table().take(nearest_frames(*_embeddings(draw), draw.images)))


def _covering_labels(draw: Draw) -> pa.Table:
    """Whole images of which one is near, for as many label images as can be."""
    return draw.select(draw.stock.table().take(covering_frames(*_embeddings(draw), draw.images)))


def _random_crops(draw: Draw) -> pa.Table:
    """Random squares as large, against their image, as the tiles that the strategy chooses."""
    whole = cut(draw.pool, "image").table()
    crops = random_crops(whole, crop_shares(draw.select(), whole), draw.seed)
    return draw.of("random_patch_mosaics").select(crops)


def _easiest_of_each(draw: Draw) -> pa.Table:
    """
    RDED's rule (arXiv 2312.03526) with our score: each image's easiest patch, and of these the easiest.

    One mosaic mixes difficulties, as theirs does: of k mosaics, the tile in slot t has a rank from t k to (t + 1) k.
    """
    table = _large_enough(draw)
    easiest_first = table["cond_entropy"].to_numpy().argsort(kind="stable")
    _, first = np.unique(table["source"].to_numpy()[easiest_first].astype(str), return_index=True)
    return draw.select(table.take(easiest_first[first]))


def _cover(draw: Draw) -> pa.Table:
    """Nothing spoilt, then every near-duplicate group and cluster in its turn; which of its patches is drawn."""
    return draw.select(_with_drawn_difficulty(_large_enough(draw), draw.seed))


def _cover_medium(draw: Draw) -> pa.Table:
    """The same among patches that are harder than most of their cluster and not the hardest of it."""
    table = _large_enough(draw)
    pool = read_pool(table, max_upscale=np.inf)
    label = cluster(pool, draw.images * draw.arm.tiles, draw.seed).label
    quantile = np.empty(len(pool))
    for rows in members(label):
        quantile[rows] = _quantiles(pool.hardness[rows])
    medium = (quantile >= MEDIUM[0]) & (quantile <= MEDIUM[1])
    return draw.select(_with_drawn_difficulty(table.take(np.sort(pool.rows[medium])), draw.seed))


def _lesion_like(draw: Draw) -> pa.Table:
    """
    By difficulty's rank times how compact the mask is in its box and how far the box keeps from the image's edge.

    SAM's threshold has left stable masks only.
    """
    table = _large_enough(draw)
    hardness = rank_within(table["difficulty"].to_numpy(), table["fold"].to_numpy())
    return draw.select(_with_difficulty(table, hardness * likeness(table, cut(draw.pool, "image").table())))


def _partly_whole(draw: Draw) -> pa.Table:
    """Mosaics, and for a share of the budget random whole images."""
    whole = draw.whole_images
    if whole == draw.images:
        raise UserError(f"Budget {draw.budget:g} is {whole} image, and there have to be two: give a larger one.")
    return _joined(draw.select(images=draw.images - whole), draw.of("random_images").select(images=whole))


RULES: dict[str, Callable[[Draw], pa.Table]] = {
    "nearest_to_labels": _nearest_to_labels,
    "covering_labels": _covering_labels,
    "random_crops": _random_crops,
    "easiest_of_each": _easiest_of_each,
    "cover": _cover,
    "cover_medium": _cover_medium,
    "lesion_like": _lesion_like,
    "partly_whole": _partly_whole,
}


def likeness(patches: pa.Table, whole: pa.Table) -> np.ndarray:
    """
    How much masks are like a lesion, compact and inside the image, `(n,)` from 0 to 1.

    The mask's share of its box, times the share of the box's four sides that do not lie on the image's edge.

    Args:
        patches (`pyarrow.Table`): `n` rows with `source`, `bbox` (x, y, and to the last pixel) and `area`.
        whole (`pyarrow.Table`): the pool's whole images, one row an image.
    """
    size_of = dict(zip(whole["source"].to_pylist(), image_sizes(whole)))
    size = np.stack([size_of[source] for source in patches["source"].to_pylist()])
    box = np.stack(patches["bbox"].to_numpy())
    low, side = box[:, :2], box[:, 2:] + 1
    compact = patches["area"].to_numpy() * size.prod(axis=1) / side.prod(axis=1)
    inside = np.concatenate([low > 0, low + side < size], axis=1).mean(axis=1)
    return compact.clip(0, 1) * inside


def _embeddings(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Of the pool's images, `(n, D)`, and of the label images, `(m, D)`, by the seed's first reference model."""
    assert draw.label_images is not None
    embedding = np.stack(draw.stock.table()["embedding"].to_numpy()).astype(np.float32)
    return embedding, embed_images(draw.stock.folder / "reference", draw.label_images, draw.pool.device)


def _large_enough(draw: Draw) -> pa.Table:
    """The unit's table without what is enlarged too much, as the product's strategies see it."""
    table = draw.stock.table()
    return table.take(np.flatnonzero(eligible(table["upscale"].to_numpy(), SelectionConfig.max_upscale)))


def _with_drawn_difficulty(table: pa.Table, seed: int) -> pa.Table:
    """With a difficulty that says nothing: it is drawn, so that no patch is preferred for it."""
    return _with_difficulty(table, np.random.default_rng(seed).random(len(table)))


def _with_difficulty(table: pa.Table, values: np.ndarray) -> pa.Table:
    place = table.schema.get_field_index("difficulty")
    return table.set_column(place, "difficulty", pa.array(values, table.schema.field(place).type))


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Where each value lies among all, from 0 (the least) to 1."""
    return values.argsort(kind="stable").argsort(kind="stable") / max(1, len(values) - 1)


def _joined(first: pa.Table, second: pa.Table) -> pa.Table:
    """Two selections one after the other; a column that only one has is null in the other."""
    for column, names in (("rank", len(first)), ("mosaic", pc.max(first["mosaic"]).as_py() + 1)):
        later = pc.add(second[column], pa.scalar(names, pa.int32()))
        second = second.set_column(second.column_names.index(column), column, later)
    tables = [first.replace_schema_metadata(None), second.replace_schema_metadata(None)]
    return pa.concat_tables(tables, promote_options="default")
