"""Whole groups dealt out: into two folds that train apart, and a share of them that trains nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from optidel_hf.errors import UserError
from optidel_hf.parquet import read_table, write_parquet


def assign_folds(groups: Sequence[str], sources: Sequence[str], seed: int = 0) -> dict[str, int]:
    """
    Deal whole groups into two folds, balanced in images: largest first to the lighter fold, ties by hash.

    A fold needs two groups, one to train and one to calibrate on: beside a group that outweighs all others goes the
    smallest of them.

    Args:
        groups (`Sequence[str]`): group of each patch.
        sources (`Sequence[str]`): source image of each patch.

    Returns:
        `dict[str, int]`: the fold in which each group *trains*.
    """
    images = _count_images(groups, sources)
    folds, weight = {}, [0, 0]
    for group in sorted(images, key=lambda name: (-images[name], hashed(seed, name))):
        fold = int(weight[1] < weight[0])
        folds[group] = fold
        weight[fold] += images[group]
    sizes = [len(groups_of(folds, fold)) for fold in (0, 1)]
    if min(sizes) == 1 and max(sizes) > 2:
        folds[group] = sizes.index(1)
    return folds


def write_folds(folds: dict[str, int], output: Path) -> None:
    """Write `folds.parquet`: the model that *scores* each group, which is the one that did not train on it."""
    groups, path = sorted(folds), output / "folds.parquet"
    table = pa.table({"group": groups, "fold": pa.array([1 - folds[group] for group in groups], pa.int8())})
    if not path.exists():
        write_parquet(table, path)
    elif not read_table(path).equals(table):
        raise UserError(f"{output} holds models of other images, or of another seed: give a new folder, or delete it.")


def split_fold(
    patches: Dataset, folds: dict[str, int], fold: int, share: float, seed: int
) -> tuple[list[int], Dataset]:
    """The rows that a fold's model trains on, and the patches that calibrate it: a share of the fold's images."""
    own = groups_of(folds, fold)
    kept_out = held_out(own, patches, share, seed)
    train = [i for i, g in enumerate(patches["group"]) if folds[g] == fold and g not in kept_out]
    held = rows_of(patches, kept_out)
    if not train or not len(held):
        raise UserError(
            f"Fold {fold} has {len(own)} group(s), too few to train and calibrate a reference model on: "
            "give more images, or a checkpoint with --reference."
        )
    return train, held


def held_out(groups: Iterable[str], patches: Dataset, share: float, seed: int) -> set[str]:
    """Those of the groups that train nothing, in hashed order until they have their share of the images."""
    pool = _count_images(patches["group"], patches["source"])
    images = {group: pool[group] for group in groups if group in pool}
    return take_share(images, share, key=lambda name: hashed(seed + 1, name))


def take_share(images: Mapping[str, int], share: float, key: Callable[[str], str]) -> set[str]:
    """
    Whole groups until they have a share of all images; never the largest.

    Args:
        images (`Mapping[str, int]`): how many each group has.
        share (`float`): 0 takes none.
        key (`Callable[[str], str]`): groups are taken in its order.
    """
    order = sorted(images, key=key)
    largest = max(order, key=images.__getitem__, default=None)
    taken: set[str] = set()
    wanted = share * sum(images.values())
    for group in order:
        if wanted > 0 and group != largest:
            taken.add(group)
            wanted -= images[group]
    return taken


def groups_of(folds: dict[str, int], fold: int) -> list[str]:
    """The groups that train in a fold."""
    return [group for group in folds if folds[group] == fold]


def rows_of(patches: Dataset, groups: set[str]) -> Dataset:
    """The patches of some groups."""
    return patches.select([row for row, group in enumerate(patches["group"]) if group in groups])


def hashed(seed: int, name: str) -> str:
    """What orders names at random, the same way whatever order they came in."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _count_images(groups: Iterable[str], sources: Iterable[str]) -> Counter[str]:
    """Source images in each group, from the group and the source of every patch."""
    return Counter(group for group, _ in set(zip(groups, sources)))
