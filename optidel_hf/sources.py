"""Source images: opening a dataset as `load_dataset` does, and giving every image its unique `source`."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from glob import escape, glob
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets, load_dataset, load_from_disk
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from optidel_hf.errors import UserError


logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")  # by which `load_dataset` describes images
TABLE_FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
IMAGE_EXTENSIONS = frozenset(ImageFolder.EXTENSIONS)
HUB_SHARD = re.compile(r"(train|validation|test)-\d{5}-of-\d{5}")
MASK_WORDS = re.compile(
    r"(^|[_\W])(masks?|annotations?|labels?|ground[_\W]?truth|gt|segmentations?)($|[_\W])", re.IGNORECASE
)


def open_dataset(
    dataset: str, split: str | None = None, revision: str | None = None, config: str | None = None
) -> Dataset:
    """
    Open images for curation, pre-training or evaluation; image columns come back undecoded.

    Args:
        dataset (`str`):
            A folder of images or of parquet files, a parquet or arrow file (wildcards allowed), a folder written by
            `save_to_disk`, or a dataset id on the Hub.
        split (`str`, *optional*):
            All splits are read, one after the other, unless one is named. Of tables in a folder the name says which
            they are of, as the Hub names them (`test-00000-of-00001.parquet`); any other is of `train`.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub dataset.
        config (`str`, *optional*):
            Configuration of a Hub dataset, which `load_dataset` calls its name; needed where it has several.

    Returns:
        `datasets.Dataset` with a `source` column beside its own: the path relative to the folder,
        `file.parquet#row`, or `repo@revision/split#row`, with a configuration `repo@revision/config/split#row`.

    Raises:
        `UserError`: if nothing is there, no image is in it, a folder holds images as well as tables, or one with
            images looks like masks; or if `revision` or `config` is given for what lies here.
    """
    path = Path(dataset).expanduser()
    if not dataset:
        raise UserError("--dataset is empty: give a folder, .parquet or .arrow files, or a Hub id.")
    if (version := revision or config) and (path.exists() or path.suffix in TABLE_FORMATS):
        raise UserError(
            f"{dataset} is read here, and only datasets of the Hub have revisions and configurations: leave "
            f"'{version}' out."
        )
    if path.is_dir():
        opened = _open_folder(path, split)
    elif path.suffix in TABLE_FORMATS:
        opened = _open_tables(path, split)
    elif path.suffix.lower() in IMAGE_EXTENSIONS:
        raise UserError(f"--dataset {dataset} names images: give the folder that holds them, {path.parent}.")
    elif path.exists():
        raise UserError(f"{dataset} is a file of kind '{path.suffix}': give a folder, .parquet or .arrow files.")
    else:
        opened = _open_hub(dataset, split, revision, config)
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
    Sources as strings, checked to be there and to be unique.

    Raises:
        `UserError`: naming the first row without one, or the first value that occurs twice.
    """
    if (empty := next((row for row, source in enumerate(sources) if is_missing(source)), None)) is not None:
        raise UserError(
            f"Row {empty} has nothing in column '{column}', which names the images: fill it in, or name another "
            "column with --id_column."
        )
    names = [str(source) for source in sources]
    seen: set[str] = set()
    for row, name in enumerate(names):
        if name in seen:
            raise UserError(
                f"Row {row}: '{name}' occurs twice in column '{column}': give a unique one with --id_column, or "
                "rename a column 'source' that means something else."
            )
        seen.add(name)
    return names


def is_missing(value: object) -> bool:
    """Whether a row names nothing: null, not a number, or an empty string."""
    return value is None or value != value or value == ""


def hub_commit(repo: str, revision: str | None = None) -> str:
    """
    The commit of a Hub dataset that a branch or tag stands for, main's head by default.

    Raises:
        `UserError`: if the Hub cannot be asked; a commit given as `revision` is taken without asking.
    """
    from huggingface_hub import HfApi

    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    try:
        return str(HfApi().dataset_info(repo, revision=revision).sha)
    except (OSError, ValueError) as error:  # offline, no such revision
        raise UserError(
            f"--dataset {repo} is neither a folder or file here, and the Hub does not tell its commit ({error}): "
            "correct the path, or give the commit by --revision."
        ) from None


def lies_among(output: str | Path, dataset: str) -> bool:
    """Whether what is written into `output` would be read as part of a dataset the next time."""
    output, path = Path(output).resolve(), Path(dataset).expanduser()
    if path.is_dir():
        return output.is_relative_to(path.resolve())
    return is_pattern(path) and output == path.parent.resolve() and bool(glob(str(path)))


def is_pattern(path: Path) -> bool:
    """Whether a dataset's name stands for tables by a wildcard."""
    return path.suffix in TABLE_FORMATS and not path.exists()


def _open_folder(path: Path, split: str | None) -> Dataset:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _open_saved(path, split)
    if (path / "inputs.parquet").exists() and (path / "curated").is_dir():
        raise UserError(f"{path} is an output of `optidel curate`: its dataset is {path / 'curated'}.")
    files = _image_files(path)
    if tables := _tables(path):
        _refuse_images_beside(path, tables, files)
        return _concatenated(tables, split)
    if not files:
        raise UserError(f"{path} holds no image{_elsewhere(path)}.")
    _refuse_mask_folders(path, files)
    described = any(file.name in METADATA_FILES for file in _walk(path))
    return _load_image_folder(path, split, files) if split or described else _list_image_folder(path, files)


def _open_saved(path: Path, split: str | None) -> Dataset:
    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is no folder that `save_to_disk` finished: {error}.") from None
    except IndexError:  # datasets 5.2 finds no file of a split without rows
        raise UserError(
            f"{path} has a split without rows, which cannot be opened: save it without that one."
        ) from None
    return _joined(saved, split, lambda name, row: f"{name}#{row}")


def _tables(folder: Path) -> list[Path]:
    """The tables in `folder`, sorted, but for the one that describes the images of an image folder."""
    found = sorted(path for suffix in TABLE_FORMATS for path in folder.glob(f"*{suffix}"))
    return [path for path in found if path.name != "metadata.parquet"]


def _refuse_images_beside(folder: Path, tables: list[Path], files: list[Path]) -> None:
    if beside := [file for file in files if file.parent == folder]:
        raise UserError(
            f"{folder} holds images ({beside[0].name}) as well as tables ({tables[0].name}): give --dataset "
            f"'{folder}/*{tables[0].suffix}' for the tables, or move them away for the images."
        )


def _image_files(folder: Path) -> list[Path]:
    """The image files under `folder`, sorted; links are followed, hidden files and folders left out."""
    return sorted(path for path in _walk(folder) if path.suffix.lower() in IMAGE_EXTENSIONS)


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=_tell_left_out, followlinks=True):
        real = os.path.realpath(where)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        yield from (Path(where, name) for name in names if real not in seen and not name.startswith("."))
        seen.add(real)


def _tell_left_out(error: OSError) -> None:
    logger.warning("%s cannot be read (%s): what it holds is left out.", error.filename, error.strerror)


def _elsewhere(path: Path) -> str:
    for table in sorted(p for suffix in TABLE_FORMATS for p in path.rglob(f"*{suffix}")):
        return f", but {table.parent} holds {table.suffix} files: give --dataset {table.parent}"
    return ""


def _refuse_mask_folders(path: Path, files: list[Path]) -> None:
    folders = sorted({file.parent.relative_to(path) for file in files})
    suspects = [folder for folder in folders if MASK_WORDS.search(folder.as_posix())]
    if suspects:
        others = [folder for folder in folders if folder not in suspects]
        hint = f", such as --dataset {path / others[0]}" if others else f"; {path / suspects[0]} itself if it does"
        raise UserError(
            f"{path} has a folder '{suspects[0].as_posix()}' that looks like masks, not images: give a folder that "
            f"holds images only{hint}."
        )


def _list_image_folder(path: Path, files: list[Path]) -> Dataset:
    """Every image, whatever names say of splits: `load_dataset` leaves out a file that is in none of them."""
    logger.info("reading all %d images of %s", len(files), path)
    if odd := [os.fsencode(file) for file in files if str(file).encode(errors="ignore") != os.fsencode(file)]:
        raise UserError(f"{path}: the name {os.path.basename(odd[0])!r} is no UTF-8: rename the file.")
    rows = {
        "image": [{"bytes": None, "path": str(file.absolute())} for file in files],
        "source": [file.relative_to(path).as_posix() for file in files],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(decode=False), "source": Value("string")}))


def _load_image_folder(path: Path, split: str | None, files: list[Path]) -> Dataset:
    """The images as `load_dataset` splits them by name and describes them by `metadata.csv`."""
    try:
        splits = load_dataset("imagefolder", data_dir=escape(str(path)), drop_labels=True)
    except Exception as error:  # datasets wraps errors of readers in several classes of its own
        raise UserError(f"{path} cannot be read by `load_dataset`: {error.__cause__ or error}") from None
    parts = [undecoded(part) for part in _choose_splits(splits, split).values()]
    column, root = image_columns(parts[0])[0], path.resolve()
    named = [[Path(os.path.relpath(row["path"], root)).as_posix() for row in part[column]] for part in parts]
    left_out = len(files) - sum(map(len, named))
    if split is None and left_out > 0:
        logger.warning("%d of %d images are in no split and no row of metadata: left out.", left_out, len(files))
    return _stacked([_with_sources(part, names) for part, names in zip(parts, named)], str(path))


def _open_tables(pattern: Path, split: str | None) -> Dataset:
    files = [pattern] if pattern.exists() else sorted(map(Path, glob(str(pattern))))
    if not files:
        raise UserError(f"{pattern}: no such file.")
    return _concatenated(files, split)


def _concatenated(files: list[Path], split: str | None) -> Dataset:
    root = Path(os.path.commonpath([file.parent for file in files]))
    chosen = [file for file in files if split in (None, _split_of(file))]
    if not chosen:
        found = sorted({_split_of(file) for file in files})
        raise UserError(
            f"--split {split}: {files[0].name} and the tables beside it are of {found}, by names such as "
            "test-00000-of-00001.parquet; any other name is of 'train'."
        )
    if one := _open_alike(chosen, root):
        return one
    tables = [_open_table(file, file.relative_to(root).as_posix()) for file in chosen]
    return _stacked([table for table in tables if len(table)] or tables, str(root))


def _split_of(table: Path) -> str:
    named = HUB_SHARD.fullmatch(table.stem)
    return named[1] if named else "train"


def _open_alike(files: list[Path], root: Path) -> Dataset | None:
    """Parquet files of one schema at once, several times as fast as one by one; None where there are others."""
    try:
        schemas, rows = [pq.read_schema(file) for file in files], [pq.read_metadata(file).num_rows for file in files]
        if not all(rows) or not all(schema.equals(schemas[0], check_metadata=True) for schema in schemas):
            return None
        table = load_dataset("parquet", data_files=[escape(str(file)) for file in files], split="train")
    except Exception:  # one by one the broken file is named
        return None
    names = [f"{file.relative_to(root).as_posix()}#{row}" for file, count in zip(files, rows) for row in range(count)]
    return _with_sources(table, names) if len(table) == len(names) else None


def _open_table(file: Path, name: str) -> Dataset:
    try:
        # of a broken parquet file datasets would log the error besides raising it, and one without rows it cannot read
        if file.suffix == ".parquet" and not pq.read_metadata(file).num_rows:
            return Dataset.from_dict({})
        table = load_dataset(TABLE_FORMATS[file.suffix], data_files=escape(str(file)), split="train")
    except Exception as error:  # datasets wraps arrow's errors in several classes of its own
        raise UserError(f"{file} cannot be read as {TABLE_FORMATS[file.suffix]}: {error.__cause__ or error}") from None
    return _with_sources(table, [f"{name}#{row}" for row in range(len(table))])


def _open_hub(repo: str, split: str | None, revision: str | None, config: str | None) -> Dataset:
    try:
        splits = load_dataset(repo, config, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # not there, no connection, a bad name, a dataset script
        if "Config name is missing" in str(error):
            raise UserError(
                f"{repo} has several configurations, of which --dataset_config names one: {error}"
            ) from None
        raise UserError(
            f"--dataset {repo} is neither a folder or file here nor a dataset that the Hub gives us ({error})."
        ) from None
    name = f"{repo}@{hub_commit(repo, revision)}" + (f"/{config}" if config else "")
    return _joined(splits, split, lambda part, row: f"{name}/{part}#{row}")


def _joined(splits: DatasetDict | Dataset, split: str | None, source: Callable[[str, int], str]) -> Dataset:
    if isinstance(splits, Dataset):
        splits = DatasetDict({str(splits.split or "train"): splits})
    chosen = _choose_splits(splits, split)
    named = {name: [source(name, row) for row in range(len(part))] for name, part in chosen.items()}
    return _stacked([_with_sources(part, named[name]) for name, part in chosen.items()], " and ".join(chosen))


def _stacked(parts: list[Dataset], what: str) -> Dataset:
    try:
        return concatenate_datasets(parts)
    except ValueError as error:  # a column of one name and two types
        raise UserError(
            f"{what}: the parts do not fit together ({error}); give those of one kind, by --split or by their names."
        ) from None


def _choose_splits(splits: DatasetDict, split: str | None) -> DatasetDict:
    if split is not None and split not in splits:
        raise UserError(f"--split {split}: the dataset has the splits {list(splits)}.")
    logger.info("reading split%s %s", "" if split else "s", split or ", ".join(splits))
    return DatasetDict({split: splits[split]}) if split else splits


def _with_sources(dataset: Dataset, sources: list[str]) -> Dataset:
    return dataset if "source" in dataset.column_names else dataset.add_column("source", sources)
