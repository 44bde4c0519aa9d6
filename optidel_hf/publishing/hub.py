"""
What goes to the Hub: curated datasets, selections, models and metrics, each with its card.

The token is the client's own business (`hf auth login`, or `HF_TOKEN`): no flag, file or message here ever holds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.publishing.burned_in import refuse_burned_in_text
from optidel_hf.publishing.cards import published_configs, render_dataset_card, render_metric_card, render_model_card
from optidel_hf.publishing.pictures import contact_sheet, score_histograms
from optidel_hf.publishing.records import read_curation
from optidel_hf.publishing.transfer import Files, push_files, refuse_place


@dataclass(frozen=True)
class PublishConfig:
    """Whether and how a finished run goes to the Hub."""

    push_to_hub: str | None = field(default=None, metadata={"help": "Hub id, as me/my-images-5pct, to push it to."})
    private: bool = field(default=True, metadata={"help": "For its owner alone; a public repository is then refused."})
    license: str = field(default="unknown", metadata={"help": "Licence of the data or weights, as the Hub names it."})

    def __post_init__(self) -> None:
        if self.push_to_hub is not None:  # before hours of work
            refuse_place(self.push_to_hub)


@dataclass(frozen=True)
class PublishImagesConfig(PublishConfig):
    """Whether and how a finished curation goes to the Hub."""

    allow_text: bool = field(default=False, metadata={"help": "Push images that seem to have burned-in text, too."})


@dataclass(frozen=True)
class PushConfig:
    """What goes to the Hub."""

    folder: str = field(metadata={"help": "Output of `optidel curate` or of pre-training, or the folder of a metric."})
    repo_id: str = field(metadata={"help": "Hub id, as me/my-images-5pct: made if it is not there, else updated."})
    private: bool = field(default=True, metadata={"help": "For its owner alone; a public repository is then refused."})
    license: str = field(default="unknown", metadata={"help": "Licence of the data or weights, as the Hub names it."})
    selection_only: bool = field(
        default=False, metadata={"help": "No image, only the list from which `rebuild` makes them."}
    )
    allow_text: bool = field(default=False, metadata={"help": "Push images that seem to have burned-in text, too."})
    results: str | None = field(default=None, metadata={"help": "results.json of `optidel evaluate`, for a model."})
    arm: str | None = field(default=None, metadata={"help": "The model's name in these results."})


def push(config: PushConfig) -> str:
    """
    Push whatever the folder is: a curation, a pre-training or a metric.

    Returns:
        `str`: Its URL.

    Raises:
        UserError: If the folder is none of these, or a flag is given that is not for what it is.
    """
    folder, place = Path(config.folder), config.repo_id
    how: dict[str, Any] = {"private": config.private, "license": config.license}
    if (folder / "inputs.parquet").exists():
        _refuse_given(config, "a curation", "results", "arm")
        return push_dataset(folder, place, selection_only=config.selection_only, allow_text=config.allow_text, **how)
    if (folder / "pretrain_config.json").exists():
        _refuse_given(config, "a pre-training", "selection_only", "allow_text")
        return push_model(folder, place, results=config.results, arm=config.arm, **how)
    if (folder / f"{folder.resolve().name}.py").exists():
        _refuse_given(config, "a metric", "results", "arm", "selection_only", "allow_text")
        return push_metric(folder, place, private=config.private)
    raise UserError(
        f"--folder {folder} is no output of `optidel curate` (it has no inputs.parquet) or of pre-training (no "
        "pretrain_config.json), nor the folder of a metric."
    )


def _refuse_given(config: PushConfig, kind: str, *names: str) -> None:
    """Refuse flags that `kind` of folder has no use for, as whoever gives them expects something of them."""
    if given := " and ".join(f"--{name}" for name in names if getattr(config, name)):
        raise UserError(f"{given} says nothing of {kind}, which --folder {config.folder} is: leave it out.")


def push_dataset(
    curation_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    license: str = "unknown",
    selection_only: bool = False,
    allow_text: bool = False,
) -> str:
    """
    Push a finished curation: its images, its selection and its scores, each a table of one dataset.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of a curation.
        repo_id (`str`): `owner/name` on the Hub; made if it is not there, updated if it is.
        private (`bool`, *optional*, defaults to `True`): Whether a new repository is for its owner alone.
        license (`str`, *optional*, defaults to `"unknown"`): The licence that the sources allow, as the Hub names it.
        selection_only (`bool`, *optional*, defaults to `False`):
            Push the list alone and no image: with the source images, `optidel rebuild` makes the curated ones again.
        allow_text (`bool`, *optional*, defaults to `False`):
            Push the images even if key patches seem to have burned-in text, which may name a patient.

    Returns:
        `str`: The dataset's URL.

    Raises:
        UserError: If the curation is not finished, a key patch seems to have burned-in text, or the Hub does not
            take it.
    """
    record = read_curation(curation_dir)
    card = render_dataset_card(curation_dir, repo_id=repo_id, license=license, selection_only=selection_only)
    if not (selection_only or allow_text):
        refuse_burned_in_text(record)
    files: Files = {"README.md": card.encode(), "selection.parquet": record.folder / "selection.parquet"}
    if record.columns:
        files["assets/scores.png"] = score_histograms(record)
    if not selection_only:
        stages = ["curated", *(["scores"] if "scores" in published_configs(record) else [])]
        files |= {f"{stage}/{path.name}": path for stage in stages for path in existing_shards(record.folder / stage)}
        files |= {"config.json": record.folder / "config.json", "assets/contact_sheet.png": contact_sheet(record)}
    return push_files(repo_id, "dataset", files, private)


def push_model(
    pretrain_dir: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    license: str = "unknown",
    results: str | Path | None = None,
    arm: str | None = None,
) -> str:
    """
    Push a pre-trained model, with its encoder in the subfolder `backbone`.

    Args:
        pretrain_dir (`str` or `Path`): The `--output_dir` of a pre-training.
        repo_id (`str`): `owner/name` on the Hub; made if it is not there, updated if it is.
        private (`bool`, *optional*, defaults to `True`): Whether a new repository is for its owner alone.
        license (`str`, *optional*, defaults to `"unknown"`): The licence of the weights, as the Hub names it.
        results (`str` or `Path`, *optional*): The `results.json` of an evaluation, or the folder that holds it.
        arm (`str`, *optional*): The model's name in the results: its scores become the card's `model-index`.

    Returns:
        `str`: The model's URL.

    Raises:
        UserError: If the training is not finished, a file is missing, or the Hub does not take it.
    """
    folder = Path(pretrain_dir)
    if results and not arm:
        raise UserError("--results is given without --arm, the name under which this model stands in them.")
    if arm and not results:
        raise UserError("--arm is given without --results, the results.json in which it stands.")
    card = render_model_card(folder, results, model_id=repo_id, arm=arm, license=license)
    weights = [path for part in (folder, folder / "backbone") for path in sorted(part.glob("*.safetensors*"))]
    models = [path.parent for path in weights if path.name.startswith("model")]
    if not models:
        raise UserError(f"{folder} holds no model.safetensors: give the --output_dir of a pre-training that finished.")
    configs = [part / name for part in models for name in ("config.json", "preprocessor_config.json")]
    others = [folder / "pretrain_config.json", folder / "metrics.jsonl"]
    files: Files = {path.relative_to(folder).as_posix(): path for path in (*weights, *configs, *others)}
    return push_files(repo_id, "model", files | {"README.md": card.encode()}, private)


def push_metric(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """
    Push a metric as a Space, which `evaluate.load(repo_id)` opens.

    Args:
        folder (`str` or `Path`): The folder `NAME` of a `NAME.py`, as those in `optidel_hf/evaluation/metrics`.
        repo_id (`str`): `owner/NAME`: evaluate looks for a module with the repository's name.
        private (`bool`, *optional*, defaults to `True`): Whether a new Space is for its owner alone.

    Returns:
        `str`: The Space's URL.

    Raises:
        UserError: If the names differ, or the Hub does not take it.
    """
    folder = Path(folder)
    name = folder.resolve().name
    if repo_id.split("/")[-1] != name:
        raise UserError(f"{repo_id} must end in /{name}: evaluate looks for a module with the repository's name.")
    app = f'import evaluate\n\n\nevaluate.utils.launch_gradio_widget(evaluate.load("{repo_id}"))\n'
    files: Files = {
        "README.md": render_metric_card(folder / f"{name}.py", repo_id).encode(),
        f"{name}.py": folder / f"{name}.py",
        "app.py": app.encode(),
        "requirements.txt": b"evaluate\nnumpy\n",
    }
    return push_files(repo_id, "space", files, private)
