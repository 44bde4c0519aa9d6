"""
The `optidel` command. The recipes call the same functions.

    optidel curate --dataset my_images --budget 0.05 --output_dir out
    accelerate launch recipes/pretrain.py --dataset out/curated --output_dir out/vit
    optidel evaluate --models optidel=out/vit none --dataset kvasir-seg --output_dir out/evaluation
    optidel report --curation_dir out
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optidel_hf.errors import UserError


logger = logging.getLogger("optidel_hf")

EMBEDDED = "embedded"
SAMPLE_DIR = Path("runs/sample")
SAMPLE_CURATION_DIR = Path("runs/curate")


@dataclass(frozen=True)
class RunConfig:
    """Where and how a curation runs; nothing here changes its result but `images_per_shard`."""

    output_dir: str = field(default=str(SAMPLE_CURATION_DIR), metadata={"help": "Folder for all stages."})
    reuse: str | None = field(default=None, metadata={"help": "Output to take over finished stages from."})
    device: str = field(default="auto", metadata={"help": "auto (cuda, mps, xpu, then cpu) or one of these."})
    images_per_shard: int = field(default=256, metadata={"help": "Source images in a shard, the unit of resume."})

    def __post_init__(self) -> None:
        if self.images_per_shard < 1:
            raise UserError(f"images_per_shard is {self.images_per_shard}: a shard holds at least one image.")
        if self.reuse and not Path(self.reuse, "config.json").exists():
            raise UserError(f"--reuse {self.reuse} is no output of `optidel curate`: it has no config.json.")


@dataclass(frozen=True)
class ImagesConfig:
    """The images to pre-train on."""

    dataset: str = field(
        default=EMBEDDED,
        metadata={"help": "Curated folder, folder of images, .parquet/.arrow files, or Hub id; or 'embedded'."},
    )
    split: str | None = field(default=None, metadata={"help": "One split; all of them by default."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where there are several."})
    limit: int | None = field(default=None, metadata={"help": "Take the first N images only."})


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    curation_dir: str = field(default=str(SAMPLE_CURATION_DIR), metadata={"help": "Output of `optidel curate`."})
    output: str | None = field(default=None, metadata={"help": "HTML file (else report.html in curation_dir)."})
    pretrain_dirs: list[str] = field(
        default_factory=list, metadata={"help": "`name=folder` of pre-trained models, for their training curves."}
    )
    results: str | None = field(default=None, metadata={"help": "results.json of `optidel evaluate`."})


@dataclass(frozen=True)
class StatusConfig:
    """Which output to look at."""

    output_dir: str = field(default=str(SAMPLE_CURATION_DIR), metadata={"help": "Output of `optidel curate`."})


@dataclass(frozen=True)
class TheoryOutputConfig:
    """Where the figure goes."""

    output_dir: str = field(default="runs/theory", metadata={"help": "Folder for theory.png and theory.json."})


@dataclass(frozen=True)
class DemoConfig:
    """How large the demo is."""

    output_dir: str = field(default="runs/demo", metadata={"help": "Folder for everything that the demo makes."})
    frames: int = field(default=400, metadata={"help": "Frames in the pool of the embedded sample."})
    steps: int = field(default=120, metadata={"help": "Pre-training steps of every arm."})
    seeds: int = field(default=2, metadata={"help": "Seeds of the downstream training."})


def curate(arguments: Sequence[str], until: str = "curated") -> None:
    """Images to a curated dataset: key patches, scores, selection, mosaics."""
    from optidel_hf.curation.curated import MosaicConfig
    from optidel_hf.curation.dry_run import DryRunConfig, project
    from optidel_hf.curation.inputs import InputConfig
    from optidel_hf.curation.patches import PatchConfig
    from optidel_hf.curation.pipeline import CurationConfig, SelectionConfig
    from optidel_hf.curation.pipeline import curate as run_curation
    from optidel_hf.curation.reference import ReferenceConfig
    from optidel_hf.curation.scoring import ScoreConfig
    from optidel_hf.processes import process_rank, share_cores

    share_cores()
    stages = (InputConfig, RunConfig, PatchConfig, ReferenceConfig, ScoreConfig, SelectionConfig, MosaicConfig)
    configs = _parse((*stages, DryRunConfig), arguments, "curate", curate.__doc__)
    inputs, run, patches, reference, score, selection, mosaic, look = configs
    if inputs.dataset == EMBEDDED:
        inputs = InputConfig(**{**vars(inputs), "dataset": str(sample_pool())})
    if look.dry_run:
        rank, world = process_rank()
        if rank == 0:
            say(str(project(inputs, patches, look.dry_run, run.device, world)))
        return
    config = CurationConfig(
        inputs, patches=patches, reference=reference, score=score, selection=selection, mosaic=mosaic, **vars(run)
    )
    output = run_curation(config, until)
    if until == "curated" and process_rank()[0] == 0:
        from optidel_hf.publishing.cards import write_dataset_card

        write_dataset_card(output)
    say(f"{until}: {output / until if until != 'selection' else output / '.selection'}")


def pretrain(arguments: Sequence[str]) -> None:
    """Pre-train a ViT on curated images; under `accelerate launch` on every process."""
    from optidel_hf.pretraining.batches import load_resident
    from optidel_hf.pretraining.config import PretrainConfig
    from optidel_hf.pretraining.trainer import Pretrainer
    from optidel_hf.processes import process_rank, share_cores
    from optidel_hf.publishing.cards import write_model_card
    from optidel_hf.sources import find_image_column, open_dataset

    share_cores()
    images, config = _parse((ImagesConfig, PretrainConfig), arguments, "pretrain", pretrain.__doc__)
    dataset = str(sample_curated()) if images.dataset == EMBEDDED else images.dataset
    opened = open_dataset(dataset, images.split, images.revision)
    opened = opened.select(range(min(images.limit or len(opened), len(opened))))
    resident = load_resident(opened, find_image_column(opened, images.image_column), config.image_size)
    trainer = Pretrainer(config, resident)
    trainer.train()
    trainer.save()
    if process_rank()[0] == 0:
        command = " ".join(["accelerate launch recipes/pretrain.py", *arguments])
        write_model_card(config.output_dir, dataset_facts(dataset), command)
        say(f"checkpoint: {config.output_dir}")


def evaluate(arguments: Sequence[str]) -> None:
    """Judge pre-trained models by downstream segmentation."""
    from optidel_hf.evaluation.segmentation import EvaluateConfig, evaluate_segmentation

    (config,) = _parse((EvaluateConfig,), arguments or embedded_evaluation(), "evaluate", evaluate.__doc__)
    evaluate_segmentation(config)
    say((Path(config.output_dir) / "results.md").read_text())
    say(f"results: {Path(config.output_dir) / 'results.json'}")


def report(arguments: Sequence[str]) -> None:
    """One HTML file: what was kept, what was dropped, what was tiled, and how it did."""
    from optidel_hf.publishing.report import build_report

    (config,) = _parse((ReportConfig,), arguments, "report", report.__doc__)
    output = config.output or str(Path(config.curation_dir) / "report.html")
    named = dict(entry.split("=", 1) if "=" in entry else (Path(entry).name, entry) for entry in config.pretrain_dirs)
    pretrain_dirs = {name: Path(folder) for name, folder in named.items()}
    path = build_report(Path(config.curation_dir), output, pretrain_dirs, config.results and Path(config.results))
    say(f"report: {path}")


def status(arguments: Sequence[str]) -> None:
    """How far a curation has come."""
    from optidel_hf.curation.shards import existing_shards

    (config,) = _parse((StatusConfig,), arguments, "status", status.__doc__)
    output = Path(config.output_dir)
    if not (output / "inputs.parquet").exists():
        raise UserError(f"{output} is no output of `optidel curate`: it has no inputs.parquet.")
    for stage in ("patches", "rejected", "scores", "curated"):
        shards = existing_shards(output / stage)
        total = int(shards[0].stem.split("-of-")[1]) if shards else "?"
        say(f"{stage:10} {len(shards)} of {total} shards")
    folds = sorted(path.name for path in (output / "reference").glob("fold-*"))
    say(f"{'reference':10} {', '.join(folds) or 'not yet'}")
    say(f"{'selection':10} {'published' if (output / 'selection.parquet').exists() else 'not yet'}")


def theory(arguments: Sequence[str]) -> None:
    """When a perceptron should keep hard samples, and when easy ones: simulation and theory in one figure."""
    import json

    from optidel_hf.theory.figure import draw_theory
    from optidel_hf.theory.study import TheoryConfig
    from optidel_hf.theory.summary import best_strategies, results

    config, output = _parse((TheoryConfig, TheoryOutputConfig), arguments, "theory", theory.__doc__)
    folder = Path(output.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    study = draw_theory(folder / "theory.png", config)
    (folder / "theory.json").write_text(json.dumps(results(config, study), indent=1) + "\n")
    say("\n".join([*best_strategies(config, study), f"figure: {folder / 'theory.png'}"]))


def demo(arguments: Sequence[str]) -> None:
    """The whole method on the embedded sample, offline."""
    from optidel_hf.demo import run_demo

    (config,) = _parse((DemoConfig,), arguments, "demo", demo.__doc__)
    run_demo(Path(config.output_dir), config.frames, config.steps, config.seeds)


def env(arguments: Sequence[str]) -> None:
    """Versions and devices, for bug reports."""
    import platform
    from importlib.metadata import version

    import torch

    from optidel_hf.devices import resolve_device

    _parse((), arguments, "env", env.__doc__)
    for name in (
        "optidel_hf",
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "huggingface_hub",
        "pillow",
        "numpy",
    ):
        say(f"{name:16} {version(name)}")
    say(f"{'python':16} {platform.python_version()} on {platform.platform()}")
    say(f"{'device':16} {resolve_device()} ({torch.get_num_threads()} threads)")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "patches": lambda arguments: curate(arguments, until="patches"),
    "score": lambda arguments: curate(arguments, until="scores"),
    "select": lambda arguments: curate(arguments, until="selection"),
    "mosaic": curate,
    "curate": curate,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "report": report,
    "status": status,
    "theory": theory,
    "demo": demo,
    "env": env,
}
USAGE = """usage: optidel COMMAND [flags]

  curate     images to a curated dataset: key patches, scores, selection, mosaics
  patches    ... up to the key patches          score     ... up to the scores
  select     ... up to the selection            mosaic    ... up to the curated images
  status     how far a curation has come
  pretrain   a ViT on curated images            evaluate  models by downstream segmentation
  report     one HTML file of it all            demo      the whole method on the embedded sample
  theory     when to keep hard samples, by a perceptron's theory
  env        versions, for bug reports

`optidel COMMAND --help` lists the flags; --config FILE reads them from YAML."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command. A user's mistake is one sentence on stderr and exit code 2.

    Args:
        arguments (`Sequence[str]`, *optional*): the command and its flags, by default those of the process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(USAGE)
        return 0
    command, *flags = arguments
    if command not in COMMANDS:
        say(f"optidel: '{command}' is no command.\n\n{USAGE}", sys.stderr)
        return 2
    try:
        COMMANDS[command](flags)
    except UserError as error:
        say(f"optidel {command}: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", sys.stderr)
        return 130
    return 0


def _parse(dataclasses: Sequence[type], flags: Sequence[str], command: str, summary: str | None) -> tuple[Any, ...]:
    from transformers.utils.logging import disable_progress_bar

    from optidel_hf.arguments import parse

    disable_progress_bar()  # of weights being loaded: the bars that matter are the stages' own
    return parse(dataclasses, flags, f"optidel {command}", (summary or "").splitlines()[0])


def say(text: str, stream: Any = None) -> None:
    """Print for the user, on every line at once."""
    print(text, file=stream or sys.stdout, flush=True)


def sample_pool() -> Path:
    """The embedded sample's pool, generated first if it is not there, by the first process alone."""
    from optidel_hf.curation.shards import wait_for
    from optidel_hf.processes import process_rank
    from optidel_hf.sample import write_sample

    if process_rank()[0] == 0:
        write_sample(SAMPLE_DIR)
    wait_for([SAMPLE_DIR / "sample.json"])
    return SAMPLE_DIR / "pool" / "images"


def sample_curated() -> Path:
    """The embedded sample's curated subset, made first if it is not there, before any process group's clock starts."""
    from optidel_hf.curation.shards import wait_for
    from optidel_hf.processes import process_rank, single_process

    if process_rank()[0] == 0 and not (SAMPLE_CURATION_DIR / "selection.parquet").exists():
        with single_process():
            curate([])
    wait_for([SAMPLE_CURATION_DIR / "selection.parquet"])
    return SAMPLE_CURATION_DIR / "curated"


def embedded_evaluation() -> list[str]:
    """Without arguments: the model that `recipes/pretrain.py` makes, against no pre-training, on the sample."""
    sample_pool()
    model = Path("runs/pretrain")
    if not (model / "model.safetensors").exists():
        pretrain([])
    flags = ["--models", f"optidel={model}", "none", "--dataset", str(SAMPLE_DIR / "downstream")]
    return [*flags, "--output_dir", "runs/evaluate"]


def dataset_facts(dataset: str) -> dict[str, Any]:
    """What a model card says of its data: its name and, where a curation made it, how."""
    from optidel_hf.publishing.cards import curation_facts

    output = Path(dataset).parent
    curated = (output / "selection.parquet").exists() and (output / "config.json").exists()
    return {
        "name": dataset,
        "hub_id": None if Path(dataset).exists() else dataset,
        "curation": curation_facts(output) if curated else None,
    }


if __name__ == "__main__":
    sys.exit(main())
