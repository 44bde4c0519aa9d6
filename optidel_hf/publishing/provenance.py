"""Where a model's images come from: what the command line knows of them and writes beside the model for its card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from optidel_hf.errors import UserError
from optidel_hf.files import read_json, write_text
from optidel_hf.layout import METADATA_KEY
from optidel_hf.parquet import read_table
from optidel_hf.sources import hub_commit


FILE = "provenance.json"
UNNAMED = "unnamed images"
"""What a model was trained on whose folder has no such file: the run was started in Python."""
CHOICE = (
    "strategy",
    "score",
    "unit",
    "hardness_weight",
    "seed",
    "budget",
    "tiles_per_mosaic",
    "tile_size",
    "image_size",
    "hash",
)
IMAGES = ("images_sha256", "last_images", "last_images_sha256")  # what a run records itself


def dataset_facts(dataset: str, revision: str | None = None) -> dict[str, Any]:
    """
    What a model card says of its data.

    Args:
        dataset (`str`): A folder, table or Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Returns:
        `dict`: Its `name`, its `hub_id` and the commit there as `revision` (or `None`), and as `curation`, where a
        curation made it, its [`selection_facts`].
    """
    repo = hub_id(dataset)
    commit = hub_commit(repo, revision) if repo else None
    selection = find_file(repo, "selection.parquet", commit) if repo else _selection_of(Path(dataset))
    curation = selection_facts(selection) if selection and selection.exists() else None
    return {"name": dataset, "hub_id": repo, "revision": commit, "curation": curation}


def write_provenance(pretrain_dir: str | Path, facts: dict[str, Any]) -> Path:
    """
    Writes what a model's card says of its data and command as `provenance.json` into the model's folder.

    Args:
        pretrain_dir (`str` or `Path`): The `--output_dir` of a pre-training.
        facts (`dict`): Those of [`dataset_facts`], `command`, for a model that did not begin with random weights
            `weights`, their hash, and `base_model`, its Hub id, and where the last steps saw others `last_dataset`.

    Returns:
        `Path`: The file that was written.
    """
    return write_text(json.dumps(facts, indent=2) + "\n", Path(pretrain_dir) / FILE)


def read_provenance(pretrain_dir: str | Path, run: dict[str, Any]) -> dict[str, Any]:
    """
    What is known of a model's data.

    Args:
        pretrain_dir (`str` or `Path`): The `--output_dir` of a pre-training.
        run (`dict`): Its `pretrain_config.json`.

    Returns:
        `dict`: What [`write_provenance`] wrote, or that the images have no name, beside what the run recorded.
    """
    path = Path(pretrain_dir) / FILE
    unnamed = {"name": UNNAMED, **({"last_dataset": UNNAMED} if "last_images" in run else {})}
    return {name: run[name] for name in IMAGES if name in run} | (read_json(path) if path.exists() else unnamed)


def selection_facts(path: str | Path) -> dict[str, Any]:
    """
    What a selection says of itself, wherever it lies.

    Args:
        path (`str` or `Path`): A `selection.parquet`.

    Returns:
        `dict`: How its patches were chosen (`strategy`, `score`, `seed`, `budget`, `tiles_per_mosaic`, `tile_size`,
        `image_size`), from how many (`sources`, `chosen`, `mosaics`), and the `hash` over all that determined them;
        `None` for what it does not say.
    """
    table = read_table(Path(path), columns=["mosaic"])
    facts = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    mosaics = pc.count_distinct(table["mosaic"]).as_py()
    counts = {"sources": facts.get("counts", {}).get("inputs"), "chosen": table.num_rows, "mosaics": mosaics}
    return {name: facts.get(name) for name in CHOICE} | counts


def hub_id(name: str | None) -> str | None:
    """A model's or dataset's name, if it is one on the Hub; a local folder or file pattern is nothing to link to."""
    known = name is not None and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not Path(name).exists()
    return name if known else None


def find_file(repo_id: str, name: str, revision: str | None = None) -> Path | None:
    """
    A file of a dataset on the Hub, downloaded, or `None` if the dataset has no such file.

    Raises:
        `UserError`: if the Hub cannot be asked.
    """
    try:
        return Path(hf_hub_download(repo_id, name, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise UserError(f"Whether {repo_id} has {name} cannot be told without the Hub ({error}).") from None
    except EntryNotFoundError:
        return None


def _selection_of(dataset: Path) -> Path | None:
    """The list of the curation whose curated images a folder, or tables in it, are; other stages lie beside them."""
    folder = dataset if dataset.is_dir() else dataset.parent
    return folder.parent / "selection.parquet" if folder.name == "curated" else None
