"""Source images: opening a dataset as `load_dataset` does, and giving every image its unique `source`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from optidel_hf.errors import UserError


logger = logging.getLogger(__name__)

TABLE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
MASK_WORDS = re.compile(r"(^|[_\W])(masks?|annotations?|labels?|ground_?truth|gt|segmentations?)($|[_\W])", re.I)


def open_dataset(dataset: str, split: str | None = None, revision: str | None = None) -> Dataset:
    """
    Open images for curation, pre-training or evaluation; image columns come back undecoded.

    Args:
        dataset (`str`):
            A folder of images or of parquet files, a parquet or arrow file (wildcards allowed), a folder written by
            `save_to_disk`, or a dataset id on the Hub.
        split (`str`, *optional*):
            All splits are read, one after the other, unless one is named.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub dataset.

    Returns:
        `datasets.Dataset` with a `source` column beside its own: the path relative to the folder,
        `file.parquet#row`, or `repo@revision/split#row`.

    Raises:
        `UserError`: if nothing is there, no image is in it, or folders look like masks.
    """
    path = Path(dataset)
    if path.is_dir():
        opened = _open_folder(path, split)
    elif path.suffix in TABLE_FORMATS:
        opened = _open_tables(path, split)
    elif path.exists():
        raise UserError(f"{dataset} is a file of kind '{path.suffix}': give a folder, .parquet or .arrow files.")
    else:
        opened = _open_hub(dataset, split, revision)
    if len(opened) == 0:
        raise UserError(f"{dataset} holds no rows.")
    return undecoded(opened)


def undecoded(dataset: Dataset) -> Dataset:
    """The same dataset with every image column as bytes or path, so that one bad file cannot end a `map`."""
    for name in image_columns(dataset):
        dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def image_columns(dataset: Dataset) -> list[str]:
    """Names of the columns whose feature is `datasets.Image`."""
    return [name for name, feature in dataset.features.items() if isinstance(feature, Image)]


def find_image_column(dataset: Dataset, name: str | None = None) -> str:
    """
    The image column to use.

    Raises:
        `UserError`: if `name` is no column, or if there is none or more than one to choose from.
    """
    found = image_columns(dataset)
    if name is not None:
        if name not in found:
            raise UserError(f"--image_column {name}: no such image column; the image columns are {found}.")
        return name
    if not found:
        raise UserError(
            f"The dataset has no image column (columns: {dataset.column_names}). Cast one with "
            "`dataset.cast_column(name, datasets.Image())` and save it as parquet."
        )
    if len(found) > 1:
        raise UserError(f"The dataset has {len(found)} image columns, {found}: name one with --image_column.")
    return found[0]


def unique_sources(sources: Sequence[object], column: str = "source") -> list[str]:
    """
    Sources as strings, checked to be unique.

    Raises:
        `UserError`: naming the first value that occurs twice.
    """
    names = [str(source) for source in sources]
    seen: set[str] = set()
    for row, name in enumerate(names):
        if name in seen:
            raise UserError(f"Row {row}: '{name}' occurs twice in column '{column}'; --id_column must be unique.")
        seen.add(name)
    return names


def _open_folder(path: Path, split: str | None) -> Dataset:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _joined(load_from_disk(str(path)), split, lambda name, n: [f"{name}#{row}" for row in range(n)])
    if tables := sorted(p for suffix in TABLE_FORMATS for p in path.glob(f"*{suffix}")):
        return concatenate_datasets([_open_table(table, split) for table in tables])
    _refuse_mask_folders(path)
    try:
        splits = load_dataset("imagefolder", data_dir=str(path), drop_labels=True)
    except (FileNotFoundError, DatasetNotFoundError, ValueError, IndexError) as error:
        raise UserError(f"{path} holds no image that `load_dataset` can find ({error}).") from None
    column = find_image_column(next(iter(splits.values())), None)
    root = path.resolve()

    def relative(dataset: Dataset) -> list[str]:
        rows = dataset.cast_column(column, Image(decode=False))[column]
        return [Path(row["path"]).resolve().relative_to(root).as_posix() for row in rows]

    chosen = _choose_splits(splits, split)
    return concatenate_datasets([part.add_column("source", relative(part)) for part in chosen.values()])


def _refuse_mask_folders(path: Path) -> None:
    suspects = sorted(child.name for child in path.iterdir() if child.is_dir() and MASK_WORDS.search(child.name))
    if suspects:
        others = sorted(c.name for c in path.iterdir() if c.is_dir() and c.name not in suspects)
        hint = f"--dataset {path / others[0]}" if others else "a folder that holds images only"
        raise UserError(f"{path} has a folder '{suspects[0]}' that looks like masks, not images: give {hint}.")


def _open_tables(pattern: Path, split: str | None) -> Dataset:
    files = sorted(pattern.parent.glob(pattern.name))
    if not files:
        raise UserError(f"{pattern}: no such file.")
    return concatenate_datasets([_open_table(file, split) for file in files])


def _open_table(file: Path, split: str | None) -> Dataset:
    if split not in (None, "train"):
        raise UserError(f"--split {split}: {file.name} is a plain table, which has no splits but 'train'.")
    try:
        table = load_dataset(TABLE_FORMATS[file.suffix], data_files=str(file), split="train")
    except Exception as error:  # datasets wraps arrow's errors in several classes of its own
        raise UserError(f"{file} cannot be read as {TABLE_FORMATS[file.suffix]}: {error.__cause__ or error}") from None
    return _with_sources(table, [f"{file.name}#{row}" for row in range(len(table))])


def _open_hub(repo: str, split: str | None, revision: str | None) -> Dataset:
    try:
        splits = load_dataset(repo, revision=revision)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise UserError(
            f"--dataset {repo} is neither a folder or file here nor a dataset that the Hub gives us ({error})."
        ) from None
    name = f"{repo}@{revision or _commit_of(repo)}"
    return _joined(splits, split, lambda part, n: [f"{name}/{part}#{row}" for row in range(n)])


def _commit_of(repo: str) -> str:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(repo).sha or "main"


def _joined(splits: DatasetDict | Dataset, split: str | None, sources: object) -> Dataset:
    if isinstance(splits, Dataset):
        splits = DatasetDict({split or "train": splits})
    chosen = _choose_splits(splits, split)
    parts = [_with_sources(part, sources(name, len(part))) for name, part in chosen.items()]  # type: ignore[operator]
    return concatenate_datasets(parts)


def _choose_splits(splits: DatasetDict, split: str | None) -> DatasetDict:
    if split is not None and split not in splits:
        raise UserError(f"--split {split}: the dataset has the splits {list(splits)}.")
    logger.info("reading split%s %s", "" if split else "s", split or ", ".join(splits))
    return DatasetDict({split: splits[split]}) if split else splits


def _with_sources(dataset: Dataset, sources: list[str]) -> Dataset:
    return dataset if "source" in dataset.column_names else dataset.add_column("source", sources)
