"""
The curated images again, from a published selection and the source images: pixel for pixel, checked by hash.

A selection is a list, not a copy. Where images may not be redistributed it is all that is published; whoever has the
sources cuts the same tiles by the same function, and every mosaic must have the hash that the list records.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Image
from tqdm.auto import tqdm

from optidel_hf.curation.curated import build_curated, to_arrow
from optidel_hf.curation.inputs import InputConfig, open_sources
from optidel_hf.curation.mosaic import RENDERER, pixels_sha256, renderer_versions
from optidel_hf.curation.shards import shard_bounds
from optidel_hf.errors import UserError, named_by
from optidel_hf.files import alone_in, refuse_stage_folder
from optidel_hf.images import ACCEPTED, MAX_IMAGE_PIXELS, decode_reason, open_image, source_sha256
from optidel_hf.layout import METADATA_KEY, existing_shards, shard_paths
from optidel_hf.parquet import read_table, write_parquet


logger = logging.getLogger(__name__)

LISTED = 5
COLUMNS = ("source", "source_sha256", "crop", "mosaic", "slot", "pixels_sha256")


@dataclass(frozen=True)
class RebuildConfig:
    """Which selection to make images of, and from what."""

    selection: str = field(metadata={"help": "A selection.parquet, a folder that holds one, or a Hub dataset id."})
    source: str = field(metadata={"help": "The source images: what `optidel curate` took as --dataset."})
    output_dir: str = field(default="runs/rebuild", metadata={"help": "Gets curated/ and selection.parquet."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the selection."})
    source_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the source images."})
    source_config: str | None = field(default=None, metadata={"help": "Configuration of theirs, among several."})
    split: str | None = field(default=None, metadata={"help": "One split of them; all by default."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where there are several."})
    id_column: str | None = field(default=None, metadata={"help": "Unique name of each image, as for the curation."})


def rebuild(config: RebuildConfig) -> Path:
    """
    Write `curated/` as the curation wrote it, shard by shard; a shard that exists is finished.

    Args:
        config ([`RebuildConfig`]).

    Returns:
        `Path`: the output folder.

    Raises:
        `UserError`: naming the sources that are missing, or the images that came out differently and why; or if the
            folder holds another selection.
    """
    output = Path(config.output_dir)
    refuse_stage_folder(output)
    path = find_selection(config.selection, config.revision)
    chosen = read_selection(path)
    sources = _Sources(config)
    sources.refuse_missing(chosen["source"].unique().to_pylist())
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        return _rebuild(output, path, chosen, sources)


def _rebuild(output: Path, path: Path, chosen: pa.Table, sources: _Sources) -> Path:
    list_under_way = _claim(output, read_table(path))
    facts = json.loads(chosen.schema.metadata[METADATA_KEY])
    mosaic = np.asarray(chosen["mosaic"])
    bounds = shard_bounds(int(mosaic.max()) + 1, facts["images_per_shard"])
    wrong: list[str] = []
    with tqdm(total=bounds[-1].stop, desc="mosaics", unit=" images") as bar:
        for rows, target in zip(bounds, shard_paths(output / "curated", len(bounds))):
            if not target.exists():
                part = chosen.filter(pa.array((mosaic >= rows.start) & (mosaic < rows.stop)))
                wrong += _write_shard(part, sources.find, facts["image_size"], target)
            bar.update(len(rows))
    if wrong:
        raise UserError(f"Not every image is as it was: {_some(wrong)}. {_why(facts)}")
    list_under_way.replace(output / "selection.parquet")
    return output


def _claim(output: Path, selection: pa.Table) -> Path:
    """
    Put the list into the folder under the name that it has until all images are there.

    Raises:
        `UserError`: if the folder holds another list's images, which would pass for this one's.
    """
    under_way, shards = output / ".rebuild.parquet", existing_shards(output / "curated")
    lists = [path for path in (output / "selection.parquet", under_way) if path.exists()]
    if (shards and not lists) or not all(_same(read_table(path), selection) for path in lists):
        raise UserError(f"{output} holds the images of another selection: give another --output_dir, or delete it.")
    write_parquet(selection, under_way)
    return under_way


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two lists are equal, where NaN, a spread over one partition, equals itself."""
    return one.schema.equals(other.schema, check_metadata=True) and str(one.to_pylist()) == str(other.to_pylist())


def find_selection(selection: str, revision: str | None = None) -> Path:
    """
    The file of a selection, from the Hub if there is none here.

    Raises:
        `UserError`: if there is none there either.
    """
    from huggingface_hub import hf_hub_download

    local = Path(selection)
    if local.is_file():
        return local
    if (local / "selection.parquet").is_file():
        return local / "selection.parquet"
    try:
        return Path(hf_hub_download(selection, "selection.parquet", repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:  # no such repository, revision or file; offline; not a repository's name
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--selection {selection} is neither a file or folder here nor a dataset on the Hub with a "
            f"selection.parquet ({type(error).__name__}: {reason})."
        ) from None


def read_selection(path: Path) -> pa.Table:
    """
    A selection's rows and metadata, checked: it may come from others.

    Raises:
        `UserError`: if a column or fact is missing, or the renderer is another.
    """
    try:
        chosen = pq.read_table(path)
        facts = json.loads((chosen.schema.metadata or {})[METADATA_KEY])
        renderer, side, rows = facts["versions"]["renderer"], facts["image_size"], facts["images_per_shard"]
        numbers = np.unique(chosen.select(COLUMNS)["mosaic"])
        possible = rows >= 1 and 1 <= side * side <= MAX_IMAGE_PIXELS and np.array_equal(numbers, range(len(numbers)))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no selection that `optidel curate` published ({error}).") from None
    if not possible or len(chosen) == 0:
        raise UserError(
            f"{path} asks for {len(numbers)} images of {side} px, {rows} a shard: none can be made of that."
        )
    if renderer != RENDERER:
        raise UserError(f"{path} was made by renderer {renderer}, and this version of optidel_hf has {RENDERER}.")
    return chosen


class _Sources:
    """The source images by name. Names are only ever looked up among them: none of a selection's becomes a path."""

    def __init__(self, config: RebuildConfig) -> None:
        given = {name: getattr(config, name) for name in ("split", "image_column", "id_column")}
        with named_by(dataset="source", revision="source_revision", dataset_config="source_config"):
            given |= {"revision": config.source_revision, "dataset_config": config.source_config}
            self.images: Dataset = open_sources(InputConfig(config.source, **given))
        self.place = config.source
        self.rows = {name: row for row, name in enumerate(self.images["source"])}

    def find(self, name: str) -> dict[str, Any]:
        return self.images[self.rows[name]]["image"]

    def refuse_missing(self, names: Sequence[str]) -> None:
        missing = [repr(name) for name in names if name not in self.rows]
        if missing:
            raise UserError(
                f"{self.place} lacks {len(missing)} of the {len(names)} source images of the selection: "
                f"{_some(missing)}. Give as --source what the curation was given."
            )


def _write_shard(part: pa.Table, find: Callable[[str], dict[str, Any]], size: int, target: Path) -> list[str]:
    """Write the shard if all of its images have their hashes; else say which have not, and what sources changed."""
    try:
        images = build_curated(part, find, size)
    except ValueError as error:  # a source that is broken, or smaller than it was
        reasons = {name: decode_reason(find(name), ACCEPTED)[1] for name in part["source"].unique().to_pylist()}
        broken = [
            f"those of {name!r}, which cannot be opened ({reason})" for name, reason in reasons.items() if reason
        ]
        return broken or [f"those of {target.name}, a square of which lies outside its source image ({error})"]
    expected = dict(zip(part["mosaic"].to_pylist(), part["pixels_sha256"].to_pylist()))
    stored = images.cast_column("image", Image(decode=False))["image"]
    made = dict(zip(sorted(expected), [pixels_sha256(open_image(value)) for value in stored]))
    wrong = [number for number, hash_ in made.items() if hash_ != expected[number]]
    if not wrong:
        write_parquet(to_arrow(images), target)
        return []
    changed = _changed_sources(part, find)
    return [_difference(number, part, changed) for number in wrong]


def _changed_sources(part: pa.Table, find: Callable[[str], dict[str, Any]]) -> set[str]:
    recorded = dict(zip(part["source"].to_pylist(), part["source_sha256"].to_pylist()))
    return {name for name, hash_ in recorded.items() if source_sha256(find(name)) != hash_}


def _difference(number: int, part: pa.Table, changed: set[str]) -> str:
    tiles = part.filter(pc.equal(part["mosaic"], number))["source"].to_pylist()
    guilty = [repr(name) for name in dict.fromkeys(tiles) if name in changed]
    return f"image {number} differs" + (f" (of {', '.join(guilty)}, whose bytes have changed)" if guilty else "")


def _why(facts: dict[str, Any]) -> str:
    then, now = facts["versions"].get("pillow"), renderer_versions()["pillow"]
    versions = f"; it was made with Pillow {then}, and here is {now}" if then != now else ""
    return f"Shards in which every image is right are kept{versions}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
