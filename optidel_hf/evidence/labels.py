"""
The few-label protocol: which images may be labelled, and which judge.

Labels are drawn from a range of names of one split. The test is a split of its own and, where the set is small,
another range of the split that labels come from, so that few labels leave many images to judge by. A label candidate
that looks like a test image (dHash, see `near_duplicates.py`) is dropped, which takes the test's images and no mask:
masks of the test are opened by [`judged_part`] alone, and only when it is asked for the test.

Names are file stems; a range is inclusive and in the order of the alphabet.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.curation.near_duplicates import NEAR, difference_hash
from optidel_hf.errors import UserError, named_by
from optidel_hf.evaluation.downstream import (
    DownstreamSet,
    Pair,
    list_pairs,
    load_pairs,
    refuse_unknown,
    shared_image,
)
from optidel_hf.evidence.comparison import TEST
from optidel_hf.evidence.config import ReproduceConfig
from optidel_hf.images import DECODING_THREADS, ImageRejected, open_image


logger = logging.getLogger(__name__)


def label_candidates(config: ReproduceConfig, image_size: int) -> DownstreamSet:
    """
    The images that a seed draws its labels from, with their masks.

    Raises:
        `UserError`: if an image is in two of the label candidates, the validation part and the test, or fewer are left
            than are to be labelled.
    """
    _refuse_unknown(config)
    test, validation = list_test_pairs(config), _kept(config, config.validation_split)
    candidates = _kept(config, config.label_split, config.names("label_range"))
    parts = {"label candidate": candidates, "validation image": validation, "test image": test}
    for (one, ours), (other, theirs) in itertools.combinations(parts.items(), 2):
        if name := shared_image(ours, theirs):
            raise UserError(f"'{name}' is both a {one} and a {other}: splits and ranges of names must be apart.")
    near = near_images(candidates, test, config.near_distance)
    kept = [pair for pair, dropped in zip(candidates, near) if not dropped]
    logger.info("labels: %d candidates, %d dropped as near a test image", len(kept), near.sum())
    if len(kept) < max(1, *config.labels):
        raise UserError(
            f"{config.downstream}: {len(kept)} label candidates are left of {len(candidates)} in split "
            f"'{config.label_split}', and {max(config.labels)} are to be labelled: widen label_range or label fewer."
        )
    return load_pairs(kept, image_size, f"{config.downstream}, labels")


def judged_part(config: ReproduceConfig, split: str, image_size: int) -> DownstreamSet:
    """The images and masks that judge: those of `"validation"` or of the `"test"`."""
    pairs = list_test_pairs(config) if split == TEST else _kept(config, config.validation_split)
    return load_pairs(pairs, image_size, f"{config.downstream}, {split}")


def list_test_pairs(config: ReproduceConfig) -> list[Pair]:
    """The test's images and masks, none of which is opened."""
    pairs = _kept(config, config.test_split)
    if limits := config.names("test_range"):
        pairs += _kept(config, config.label_split, limits)
    return pairs


def near_images(candidates: Sequence[Pair], others: Sequence[Pair], distance: int) -> np.ndarray:
    """Which candidates have a dHash within `distance` bits of any other image's, `(n,)` bool."""
    return _are_near(_hashes(candidates), _hashes(others), distance)


def pool_images_that_judge(config: ReproduceConfig, pool: pa.Table) -> list[str]:
    """
    The pool's images that are near-duplicates of a validation or test image, which no arm should be trained on.

    Args:
        config ([`ReproduceConfig`]).
        pool (`pyarrow.Table`): what [`read_hashes`] gives.

    Returns:
        `list[str]`: their sources.
    """
    pool = pool.filter(pc.is_valid(pool["dhash"]))
    hashes = np.frombuffer(b"".join(pool["dhash"].to_pylist()), dtype=np.uint64).reshape(-1, 4)
    judging = [*_kept(config, config.validation_split), *list_test_pairs(config)]
    return pool["source"].filter(pa.array(_are_near(hashes, _hashes(judging), NEAR))).to_pylist()


def _are_near(hashes: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """Which of `(n, 4)` hashes lie within `distance` bits of any other, `(n,)` bool."""
    # One at a time: all pairs of a large set at once would not lie in memory.
    differing = (np.bitwise_count(one ^ others).sum(axis=1, dtype=np.int64) for one in hashes)
    return np.array([(bits <= distance).any() for bits in differing], dtype=bool)


def _hashes(pairs: Sequence[Pair]) -> np.ndarray:
    """`(n, 4)` uint64."""
    with ThreadPoolExecutor(DECODING_THREADS) as threads:
        return np.stack(list(threads.map(_hash, pairs)))


def _hash(pair: Pair) -> np.ndarray:
    name, image, _ = pair
    try:
        return difference_hash(open_image(image))
    except ImageRejected as rejected:
        raise UserError(f"Image '{name}' cannot be used ({rejected}): exclude '{name}'.") from None


def _refuse_unknown(config: ReproduceConfig) -> None:
    splits = (config.label_split, config.validation_split, config.test_split)
    refuse_unknown(config.exclude, [_listed(config, split) for split in splits], config.downstream)


def _listed(config: ReproduceConfig, split: str) -> list[Pair]:
    flags = {getattr(config, flag): flag for flag in ("label_split", "validation_split", "test_split")}
    columns = {name: f"downstream_{name}" for name in ("image_column", "mask_column")}
    with named_by(dataset="downstream", split=flags[split], **columns):
        return list_pairs(config.downstream, split, config.downstream_image_column, config.downstream_mask_column)


def _kept(config: ReproduceConfig, split: str, limits: tuple[str, str] | None = None) -> list[Pair]:
    excluded = set(config.exclude)
    inside = [pair for pair in _listed(config, split) if limits is None or limits[0] <= pair[0] <= limits[1]]
    kept = [pair for pair in inside if pair[0] not in excluded]
    if not kept:
        where = f"between '{limits[0]}' and '{limits[1]}'" if limits else "after excluding"
        raise UserError(f"{config.downstream}: no image of split '{split}' is left {where}.")
    return kept
