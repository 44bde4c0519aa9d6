"""Model and dataset cards: Markdown with Hub metadata, every figure read from the run's own files.

The templates are strict: a figure that a run did not record is an error that names it, never an empty line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from optidel_hf.errors import UserError
from optidel_hf.publishing.records import SCORES, CurationRecord, funnel, read_curation, read_json, shards


TASK = "image-feature-extraction"
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
PRECISIONS = {"no": "float32", "bf16": "bfloat16 mixed"}


def render_model_card(
    pretrain_dir: str | Path,
    dataset_facts: dict[str, Any],
    command: str,
    results: str | Path | None = None,
    *,
    model_id: str | None = None,
    arm: str | None = None,
    license: str = "unknown",
) -> str:
    """
    The card of a pre-trained model.

    Args:
        pretrain_dir (`str` or `Path`): The `--output_dir` of a pre-training, with its `pretrain_config.json`.
        dataset_facts (`dict`): What it was trained on: `name`, `hub_id` (or `None`) and `curation` (or `None` for
            images that were not curated; else as [`curation_facts`] returns).
        command (`str`): The command line that trains it again.
        results (`str` or `Path`, *optional*): The `results.json` of an evaluation, or the folder that holds it.
        model_id (`str`, *optional*): What the usage snippets load: a Hub id or a path, defaults to `pretrain_dir`.
        arm (`str`, *optional*): The name under which this model stands in the results.
        license (`str`, *optional*, defaults to `"unknown"`): The licence of the weights, as the Hub names it.

    Returns:
        `str`: The card, metadata included.

    Raises:
        UserError: If a file or a figure is missing.
    """
    folder = Path(pretrain_dir)
    run = read_json(folder / "pretrain_config.json")
    hub_id = dataset_facts.get("hub_id")
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["optidel", "vit_mae" if run["objective"] == "mae" else "vit", "self-supervised-learning"],
        base_model=_hub_model(run.get("model")),
        datasets=[hub_id] if hub_id else None,
    )
    card = _render(
        "model_card.md.jinja",
        metadata=metadata.to_yaml(),
        model_id=model_id or str(pretrain_dir),
        run=run,
        precisions=PRECISIONS,
        dataset=dataset_facts,
        command=command,
        summary=_summary(results) if results else None,
        arm=arm,
    )
    return str(ModelCard(card))


def write_model_card(pretrain_dir: str | Path, *args: Any, **kwargs: Any) -> Path:
    """
    Writes [`render_model_card`]'s card, whose arguments it takes, as `README.md` into the model's folder.

    Returns:
        `Path`: The file that was written.
    """
    return _write(Path(pretrain_dir) / "README.md", render_model_card(pretrain_dir, *args, **kwargs))


def render_dataset_card(
    curation_dir: str | Path, *, name: str | None = None, repo_id: str | None = None, license: str = "unknown"
) -> str:
    """
    The card of a curated dataset.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of a finished curation.
        name (`str`, *optional*): The heading; defaults to the name of `curation_dir`.
        repo_id (`str`, *optional*): The Hub id under which it is loaded; defaults to the folder with the shards.
        license (`str`, *optional*, defaults to `"unknown"`): The licence that the sources allow, as the Hub names it.

    Returns:
        `str`: The card, metadata included.

    Raises:
        UserError: If the curation is not finished or a figure is missing.
    """
    record = read_curation(curation_dir)
    facts = curation_facts(record)
    folder = record.folder / "curated"
    name = name or record.folder.resolve().name
    metadata = DatasetCardData(
        license=license,
        task_categories=[TASK],
        size_categories=next((label for limit, label in SIZE_CATEGORIES if facts["mosaics"] < limit), "n>1M"),
        tags=["optidel", "data-curation", "self-supervised-learning"],
        pretty_name=name,
        # On the Hub alone: for a local folder that names them, `load_dataset` caches by its name without its contents,
        # and gives for `out2/curated` what it read from `out1/curated`.
        configs=[{"config_name": "default", "data_files": "shard-*.parquet"}] if repo_id else None,
    )
    card = _render(
        "dataset_card.md.jinja",
        metadata=metadata.to_yaml(),
        name=name,
        load_from=repo_id or str(folder),
        license=license,
        facts=facts,
        images=sum(pq.read_metadata(path).num_rows for path in shards(folder)),
        megabytes=sum(path.stat().st_size for path in shards(folder)) / 1e6,
        funnel=funnel(record),
        statistics=score_statistics(record),
        versions=record.config.get("versions", {}) | record.facts["versions"],
    )
    return str(DatasetCard(card))


def write_dataset_card(curation_dir: str | Path, **kwargs: Any) -> Path:
    """
    Writes [`render_dataset_card`]'s card, whose arguments it takes, as `curated/README.md`.

    Returns:
        `Path`: The file that was written.
    """
    return _write(Path(curation_dir) / "curated" / "README.md", render_dataset_card(curation_dir, **kwargs))


def curation_facts(curation: CurationRecord | str | Path) -> dict[str, Any]:
    """
    What a card says about how images were chosen.

    Args:
        curation ([`CurationRecord`], `str` or `Path`): A curation with a selection, or its folder.

    Returns:
        `dict`: The selection's metadata (`strategy`, `score`, `seed`, `tiles_per_mosaic`, `tile_size`, ...) and
        `budget`, `sources`, `chosen` and `mosaics`.

    Raises:
        UserError: If nothing has been selected yet.
    """
    record = curation if isinstance(curation, CurationRecord) else read_curation(curation)
    if record.selection is None:
        raise UserError(f"{record.folder} holds no selection.parquet: run `curate` to its end before writing a card.")
    counts = {"sources": record.sources, "chosen": record.selection.num_rows, "mosaics": record.mosaics}
    return {**record.facts, **counts}


def score_statistics(record: CurationRecord) -> list[dict[str, Any]]:
    """
    The scores of all key patches beside those of the chosen.

    Returns:
        `list[dict]`: One a score: `name`, `unit`, `all` and `chosen`, each the 5 %, 50 % and 95 % quantiles.
    """
    columns = record.columns
    return [
        {"name": name, "unit": unit, "all": _quantiles(columns[name]), "chosen": _quantiles(record.chosen(name))}
        for name, unit in SCORES.items()
        if name in columns
    ]


def _quantiles(values: np.ndarray) -> list[float]:
    return np.nanquantile(values, [0.05, 0.5, 0.95]).tolist()


def _hub_model(model: str | None) -> str | None:
    """The model that training began with, if it is one on the Hub; a local folder is nothing to link to."""
    known = model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists()
    return model if known else None


def _summary(results: str | Path) -> list[dict[str, Any]]:
    path = Path(results)
    return read_json(path / "results.json" if path.is_dir() else path)["summary"]


def _render(template: str, **figures: Any) -> str:
    environment = Environment(
        loader=PackageLoader("optidel_hf.publishing"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure"] = _figure
    try:
        return environment.get_template(template).render(**_without_nulls(figures))
    except UndefinedError as error:
        raise UserError(f"{template} needs a figure that the run did not record: {error.message}.") from None


def _figure(value: Any, spec: str = ",") -> str:
    # Python would format an undefined value without a word about its name; arithmetic on it raises jinja's error.
    return format(value + 0, spec)


def _without_nulls(figures: Any) -> Any:
    """Leaves nulls out, so that they are undefined to the template: strict about those that it prints unasked."""
    if isinstance(figures, dict):
        return {name: _without_nulls(value) for name, value in figures.items() if value is not None}
    return [_without_nulls(value) for value in figures] if isinstance(figures, list) else figures


def _write(path: Path, card: str) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(card, encoding="utf-8")
    os.replace(partial, path)
    return path
