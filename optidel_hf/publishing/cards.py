"""Model and dataset cards: Markdown with Hub metadata, every figure read from the run's own files.

The templates are strict: a figure that a run did not record is an error that names it, never an empty line.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData, RepoCard, SpaceCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from optidel_hf.errors import UserError
from optidel_hf.files import read_json, write_text
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import count_rows
from optidel_hf.publishing.measures import chosen_rows, held_out_text, judged_unit, pilot_text, set_measures
from optidel_hf.publishing.provenance import hub_id, read_provenance, selection_facts
from optidel_hf.publishing.records import SCORES, CurationRecord, funnel, read_curation, read_results


TASK = "image-feature-extraction"
SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
PRECISIONS = {"no": "float32", "bf16": "bfloat16 mixed"}
CONFIGS = {
    "default": ("curated/shard-*.parquet", "the curated images with the lineage of every tile"),
    "selection": ("selection.parquet", "the list of tiles: with the source images it makes the curated images again"),
    "scores": ("scores/shard-*.parquet", "the scores of every key patch, chosen or not, with its embedding"),
}
"""What can be loaded from the Hub: files and content, by configuration."""


def render_model_card(
    pretrain_dir: str | Path,
    results: str | Path | None = None,
    *,
    model_id: str | None = None,
    arm: str | None = None,
    license: str = "unknown",
) -> str:
    """
    The card of a pre-trained model.

    Args:
        pretrain_dir (`str` or `Path`): The `--output_dir` of a pre-training, with its `pretrain_config.json` and,
            from the command line, `provenance.json`.
        results (`str` or `Path`, *optional*): The `results.json` of an evaluation, or the folder that holds it.
        model_id (`str`, *optional*): What the usage snippets load: a Hub id or a path, defaults to `pretrain_dir`.
        arm (`str`, *optional*): The name under which this model stands in the results; its scores become the
            metadata's `model-index`.
        license (`str`, *optional*, defaults to `"unknown"`): The licence of the weights, as the Hub names it.

    Returns:
        `str`: The card, metadata included.

    Raises:
        UserError: If a file or a figure is missing, or the results have no such arm.
    """
    folder = Path(pretrain_dir)
    run = read_json(folder / "pretrain_config.json")
    data = read_provenance(folder, run)
    evaluation = read_results(results) if results else None
    scores = _eval_results(evaluation, arm) if evaluation and arm else None
    if evaluation and arm:
        _refuse_other_weights(folder, evaluation, arm)
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["optidel", "vit_mae" if run["objective"] == "mae" else "vit", "self-supervised-learning"],
        base_model=data["base_model"] if "base_model" in data else hub_id(run.get("model")),
        datasets=[data["hub_id"]] if data.get("hub_id") else None,
        metrics=["mean_iou"] if scores else None,
        model_name=(model_id or folder.name).split("/")[-1] if scores else None,
        eval_results=scores,
    )
    card = _render(
        "model_card.md.jinja",
        metadata=metadata.to_yaml(),
        model_id=model_id or str(pretrain_dir),
        run=run,
        settings=yaml.safe_dump(run, sort_keys=False, allow_unicode=True).strip(),
        precisions=PRECISIONS,
        dataset=data,
        command=data.get("command"),
        summary=evaluation["summary"] if evaluation else None,
        held_out=_held_out(folder / "held_out.json"),
        arm=arm,
        license=license,
    )
    return str(ModelCard(card))


def write_model_card(pretrain_dir: str | Path, *args: Any, **kwargs: Any) -> Path:
    """
    Writes [`render_model_card`]'s card, whose arguments it takes, as `README.md` into the model's folder.

    Returns:
        `Path`: The file that was written.
    """
    return write_text(render_model_card(pretrain_dir, *args, **kwargs), Path(pretrain_dir) / "README.md")


def render_dataset_card(
    curation_dir: str | Path,
    *,
    name: str | None = None,
    repo_id: str | None = None,
    license: str = "unknown",
    selection_only: bool = False,
) -> str:
    """
    The card of a curated dataset, or of a selection that is published without its images.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of a finished curation.
        name (`str`, *optional*): The heading; defaults to the name of `repo_id` or `curation_dir`.
        repo_id (`str`, *optional*): The Hub id under which it is loaded; defaults to the folder with the shards.
        license (`str`, *optional*, defaults to `"unknown"`): The licence that the sources allow, as the Hub names it.
        selection_only (`bool`, *optional*, defaults to `False`): Whether no image goes to the Hub.

    Returns:
        `str`: The card, metadata included.

    Raises:
        UserError: If the curation is not finished or a figure is missing.
    """
    record = read_curation(curation_dir)
    facts = curation_facts(record)
    folder = record.folder / "curated"
    name = name or (repo_id or record.folder.resolve().name).split("/")[-1]
    configs = published_configs(record, selection_only)
    # On the Hub alone: for a local folder that names configs, `load_dataset` caches by its name without its contents,
    # and gives for `out2/curated` what it read from `out1/curated`.
    metadata = _dataset_metadata(license, facts["mosaics"], name, configs if repo_id else None)
    card = _render(
        "dataset_card.md.jinja",
        metadata=metadata.to_yaml(),
        name=name,
        repo_id=repo_id,
        load_from=repo_id or str(folder),
        configs={config: CONFIGS[config][1] for config in configs},
        selection_only=selection_only,
        license=license,
        inputs=curation_inputs(record),
        run=record.config,
        facts=facts,
        images=sum(count_rows(path) for path in existing_shards(folder)),
        megabytes=sum(path.stat().st_size for path in existing_shards(folder)) / 1e6,
        funnel=funnel(record),
        measures=set_measures(record),
        pilot=pilot_text(record.facts),
        statistics=score_statistics(record),
        reliability=score_reliability(record),
        versions=record.config.get("versions", {}) | record.facts["versions"],
    )
    return str(DatasetCard(card))


def _dataset_metadata(license: str, mosaics: int, name: str, configs: list[str] | None) -> DatasetCardData:
    return DatasetCardData(
        license=license,
        task_categories=[TASK],
        size_categories=next((label for limit, label in SIZE_CATEGORIES if mosaics < limit), "n>1M"),
        tags=["optidel", "data-curation", "self-supervised-learning"],
        pretty_name=name,
        configs=configs and [{"config_name": c, "data_files": CONFIGS[c][0]} for c in configs],
    )


def published_configs(record: CurationRecord, selection_only: bool = False) -> list[str]:
    """The names of what can be loaded of a published curation; a strategy without scores has no `scores`."""
    return ["selection"] if selection_only else ["default", "selection", *(["scores"] if record.columns else [])]


def write_dataset_card(curation_dir: str | Path, **kwargs: Any) -> Path:
    """
    Writes [`render_dataset_card`]'s card, whose arguments it takes, as `curated/README.md`.

    Returns:
        `Path`: The file that was written.
    """
    return write_text(render_dataset_card(curation_dir, **kwargs), Path(curation_dir) / "curated" / "README.md")


def render_metric_card(module: str | Path, repo_id: str) -> str:
    """
    The card of a metric's Space: what its module says of itself, and how to load it.

    Args:
        module (`str` or `Path`): The metric's Python file; it is read, not run.
        repo_id (`str`): The Hub id under which it is loaded.
    """
    path = Path(module)
    metadata = SpaceCardData(title=path.stem, sdk="gradio", app_file="app.py", tags=["evaluate", "metric", "optidel"])
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    card = _render("metric_card.md.jinja", metadata=metadata.to_yaml(), name=path.stem, text=text, repo_id=repo_id)
    return str(RepoCard(card))


def curation_facts(curation: CurationRecord | str | Path) -> dict[str, Any]:
    """
    What a card says about how a curation's images were chosen: the [`selection_facts`] of its selection.

    Args:
        curation ([`CurationRecord`], `str` or `Path`): A curation with a selection, or its folder.

    Raises:
        UserError: If nothing has been selected yet.
    """
    folder = curation.folder if isinstance(curation, CurationRecord) else Path(curation)
    if not (folder / "selection.parquet").is_file():
        raise UserError(f"{folder} holds no selection.parquet: run `curate` to its end before writing a card.")
    return selection_facts(folder / "selection.parquet")


def curation_inputs(record: CurationRecord) -> list[dict[str, Any]]:
    """
    What a curation's result depends on.

    Returns:
        `list[dict]`: One an input: `role`, `name`, `revision` (or `None` for what is no repository) and `hash`: of the
        list of source images, of a local checkpoint's weights, the commit of one on the Hub.
    """
    given = record.config.get("inputs", {})
    patches, reference = (record.stages.get(stage, {}) for stage in ("patches", "reference"))
    inputs = [("source images", given.get("dataset"), _source_revision(record, given), patches.get("upstream"))]
    if (cut := patches.get("fields", {})).get("unit") == "patch":
        inputs.append(("SAM", cut.get("sam"), cut.get("sam_revision"), cut.get("sam_weights")))
    if (scored := reference.get("fields", {})).get("reference"):
        revision = scored.get("reference_revision")
        inputs.append(("reference model", scored["reference"], revision, scored.get("weights")))
    return [dict(zip(("role", "name", "revision", "hash"), row)) for row in inputs]


def score_statistics(record: CurationRecord) -> list[dict[str, Any]]:
    """
    The scores of all key patches beside those of the chosen.

    Returns:
        `list[dict]`: One a score: `name`, `unit`, `all` and `chosen`, each the 5 %, 50 % and 95 % quantiles.
    """
    columns, rows = record.columns, chosen_rows(record)
    return [
        {"name": name, "unit": unit, "all": _quantiles(columns[name]), "chosen": _quantiles(columns[name][rows])}
        for name, unit in SCORES.items()
        if name in columns
    ]


def score_reliability(record: CurationRecord) -> list[dict[str, Any]]:
    """
    Whether other masks, folds or models would order the key patches alike, by `difficulty`.

    Returns:
        `list[dict]`: One a comparison that was made: `what` is compared and its `values`, one a fold or one in all.
    """
    folds = [fold for fold in record.calibration if fold.get("reliability") is not None]
    counts = ", ".join(str(fold["partitions"]) for fold in folds)
    second = record.agreement.get("second_reference")
    rows: list[tuple[str, list[float | None]]] = [
        ("between two mask partitions", [fold["mask_correlation"] for fold in folds]),
        (f"of the mean over {counts} partition(s) (Spearman-Brown)", [fold["reliability"] for fold in folds]),
        ("between the two folds' models", [record.agreement.get("between_folds")]),
        (f"between the reference model and `{second}`", [record.agreement.get("between_models")]),
    ]
    known = [(what, [value for value in values if value is not None]) for what, values in rows]
    return [{"what": what, "values": values} for what, values in known if values]


def _quantiles(values: np.ndarray) -> list[float]:
    return np.nanquantile(values, [0.05, 0.5, 0.95]).tolist()


def _source_revision(record: CurationRecord, given: dict[str, Any]) -> str | None:
    """The commit of a dataset on the Hub: the one asked for, or that by which the sources are named."""
    first = "" if record.selection is None else record.selection["source"][0].as_py()
    named = re.match(rf"{re.escape(str(given.get('dataset')))}@(\w+)/", first)
    return given.get("revision") or (named[1] if named else None)


def _held_out(path: Path) -> str:
    if not path.is_file():
        return "not measured (`optidel information` on a curation that held images out)"
    figures = read_json(path)
    return f"{held_out_text(figures)}, {judged_unit(figures)}"


def _refuse_other_weights(folder: Path, evaluation: dict[str, Any], arm: str) -> None:
    """Refuse the scores of an arm that is not this model, as far as the results tell what was judged."""
    from optidel_hf.evaluation.backbone import load_backbone  # torch, which no other card needs

    judged = {row["weights"] for row in evaluation.get("rows", []) if row["arm"] == arm and "weights" in row}
    if judged and load_backbone(str(folder)).fingerprint() not in judged:
        raise UserError(f"--arm {arm}: the results are of other weights than those of {folder}; evaluate this model.")


def _eval_results(evaluation: dict[str, Any], arm: str) -> list[EvalResult]:
    """An arm's scores as the metadata's `model-index` holds them: one a mode of downstream training."""
    dataset = evaluation["config"]["dataset"]
    rows = [row for row in evaluation["summary"] if row["arm"] == arm]
    if not rows:
        arms = sorted({row["arm"] for row in evaluation["summary"]})
        raise UserError(f"--arm {arm}: no such arm in the results, which have {', '.join(arms)}.")
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset if hub_id(dataset) else "custom",
            dataset_name=dataset if hub_id(dataset) else Path(dataset).name,
            dataset_split=evaluation["config"]["test_split"],
            metric_type="mean_iou",
            metric_name=f"mean IoU, {row['mode']}, mean of {row['seeds']} seeds",
            metric_value=row["miou_mean"],
        )
        for row in rows
    ]


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
