"""What each `optidel` command does: it reads its flags, calls the wings, and says where the result lies."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optidel_hf.errors import UserError, named_by
from optidel_hf.flags import (
    EMBEDDED,
    SAMPLE_CURATION_DIR,
    SAMPLE_DIR,
    DemoConfig,
    ImagesConfig,
    InformationConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    StatusConfig,
    TheoryOutputConfig,
)
from optidel_hf.layout import existing_shards


if TYPE_CHECKING:
    from optidel_hf.evaluation.probes import ProbeConfig
    from optidel_hf.evidence.config import Experiment
    from optidel_hf.pretraining.config import PretrainConfig
    from optidel_hf.pretraining.trainer import Pretrainer


def curate(arguments: Sequence[str], command: str = "curate", until: str = "curated") -> None:
    """Images to a curated dataset: key patches, scores, selection, mosaics."""
    from optidel_hf.curation.curated import MosaicConfig
    from optidel_hf.curation.curation_config import CurationConfig
    from optidel_hf.curation.dry_run import DryRunConfig, project
    from optidel_hf.curation.inputs import InputConfig
    from optidel_hf.curation.patches import PatchConfig
    from optidel_hf.curation.pilot import PilotConfig
    from optidel_hf.curation.pipeline import curate as run_curation
    from optidel_hf.curation.reference import ReferenceConfig
    from optidel_hf.curation.scoring import ScoreConfig
    from optidel_hf.curation.selection_config import SelectionConfig
    from optidel_hf.processes import process_rank, share_cores, speak_once
    from optidel_hf.publishing.hub import PublishImagesConfig

    share_cores()
    speak_once()
    stages = (PatchConfig, ReferenceConfig, ScoreConfig, SelectionConfig, MosaicConfig, PilotConfig)
    finishes = until == "curated"
    kinds = (InputConfig, RunConfig, DryRunConfig, *stages, *([PublishImagesConfig] if finishes else []))
    inputs, run, look, patches, *others = _parse(kinds, arguments, command, curate.__doc__)
    if inputs.dataset == EMBEDDED:
        inputs = InputConfig(**{**vars(inputs), "dataset": str(sample_pool(make=not look.dry_run))})
    if look.dry_run:
        rank, world = process_rank()
        if rank == 0:
            say(str(project(inputs, patches, look.dry_run, run.device, world)))
        return
    reference, score, selection, mosaic, pilot, *publish = others
    config = CurationConfig(
        inputs,
        patches=patches,
        reference=reference,
        score=score,
        selection=selection,
        mosaic=mosaic,
        pilot=pilot,
        **vars(run),
    )
    output = run_curation(config, until)
    if process_rank()[0] == 0:
        if finishes:
            _finish_curation(output, *publish)
        say(f"{until}: {output / until if until != 'selection' else output / '.selection'}")


def _finish_curation(output: Path, publish: Any) -> None:
    """A curated dataset's card, and the push that was asked for."""
    from optidel_hf.publishing.cards import write_dataset_card
    from optidel_hf.publishing.hub import push_dataset

    write_dataset_card(output, license=publish.license)
    if publish.push_to_hub:
        how: dict[str, Any] = {name: getattr(publish, name) for name in ("private", "license", "allow_text")}
        url = push_dataset(output, publish.push_to_hub, **how)
        say(f"pushed: {url}")


def pretrain(arguments: Sequence[str]) -> None:
    """Pre-train a ViT on curated images; under `accelerate launch` on every process."""
    from optidel_hf.checkpoints import refuse_pickle
    from optidel_hf.evaluation.probes import ProbeConfig
    from optidel_hf.pretraining.checkpoints import require_writable
    from optidel_hf.pretraining.config import PretrainConfig, at_checkpoint_sizes
    from optidel_hf.pretraining.stored import open_images
    from optidel_hf.pretraining.trainer import Pretrainer, check_last
    from optidel_hf.processes import process_rank, share_cores, speak_once
    from optidel_hf.publishing.hub import PublishConfig
    from optidel_hf.publishing.provenance import dataset_facts, hub_id

    share_cores()
    speak_once()
    configs = (ImagesConfig, PretrainConfig, ProbeConfig, PublishConfig)
    images, config, probes, publish = _parse(configs, arguments, "pretrain", pretrain.__doc__)
    asked = config
    check_last(config.last_share, images.last_dataset)
    if config.model:
        refuse_pickle(config.model, config.model_revision, said=f"--model {config.model}")
        config = at_checkpoint_sizes(config)
    _refuse_among_images(config.output_dir, images.dataset, images.last_dataset)
    if not images.dry_run:
        require_writable(Path(config.output_dir))
    dataset = images.dataset if images.dataset != EMBEDDED else str(sample_curated(make=not images.dry_run))
    where = {"size": config.image_size, "stream": config.residency == "stream"}
    facts = dataset_facts(dataset, images.revision)  # of what is read now: the Hub may have other images tomorrow
    told = {name: getattr(images, name) for name in ("split", "image_column", "limit")}
    images = replace(images, revision=facts["revision"] or images.revision)
    told |= {"revision": images.revision, "config": images.dataset_config}
    stored = open_images(dataset, **where, **told)
    told = {"split": images.last_split, "image_column": images.last_image_column}
    with named_by(dataset="last_dataset", split="last_split", image_column="last_image_column"):
        last = open_images(images.last_dataset, **where, **told) if images.last_dataset else None
    trainer = Pretrainer(config, stored, evaluation=_evaluation(config, probes), last=last)
    if images.dry_run:
        say(_rehearsed(trainer))
        return
    if config.model:
        facts |= {"weights": trainer.told["weights"], "base_model": hub_id(config.model)}
    trainer.train()
    trainer.save()
    if process_rank()[0] == 0:
        facts |= {"command": _same_training(images, asked, probes, facts), "last_dataset": images.last_dataset}
        _finish_model(config.output_dir, facts, publish)


def _same_training(images: ImagesConfig, config: PretrainConfig, probes: ProbeConfig, facts: dict[str, Any]) -> str:
    """The command line of the same training, wherever it is written, whatever it runs on and is watched by."""
    from optidel_hf.arguments import as_flags
    from optidel_hf.devices import resolve_device, resolve_precision
    from optidel_hf.pretraining.config import PretrainConfig

    own = {name: getattr(PretrainConfig, name) for name in ("output_dir", "device", "resume", "report_to")}
    if facts.get("base_model"):
        own["model_revision"] = facts["weights"]  # the commit on the Hub
    precision = resolve_precision(config.mixed_precision, resolve_device(config.device))  # what `auto` was here
    return shlex.join(
        ["optidel", "pretrain", *as_flags(images, replace(config, **own, mixed_precision=precision), probes)]
    )


def _refuse_among_images(output: str, *datasets: str | None, flag: str = "output_dir") -> None:
    """Refuse to write models and pictures among the images that the next run would read."""
    from optidel_hf.sources import lies_among

    for dataset in filter(None, datasets):
        if output and lies_among(output, dataset):
            raise UserError(f"--{flag} {output} lies among the images of {dataset}: give a folder outside of it.")


def _finish_model(folder: str, facts: dict[str, Any], publish: Any) -> None:
    """A model's provenance and card, and the push that was asked for."""
    from optidel_hf.publishing.cards import write_model_card
    from optidel_hf.publishing.hub import push_model
    from optidel_hf.publishing.provenance import write_provenance

    write_provenance(folder, facts)
    write_model_card(folder, license=publish.license)
    say(f"checkpoint: {folder}")
    if publish.push_to_hub:
        say(f"pushed: {push_model(folder, publish.push_to_hub, private=publish.private, license=publish.license)}")


def evaluate(arguments: Sequence[str]) -> None:
    """Judge pre-trained models by downstream segmentation."""
    from optidel_hf.evaluation.segmentation import EvaluateConfig, evaluate_segmentation

    (config,) = _parse((EvaluateConfig,), arguments or embedded_evaluation(), "evaluate", evaluate.__doc__)
    evaluate_segmentation(config)
    say((Path(config.output_dir) / "results.md").read_text(encoding="utf-8"))
    say(f"results: {Path(config.output_dir) / 'results.json'}")


def reproduce(arguments: Sequence[str]) -> None:
    """Does curation help, and by how much: arms x budgets x seeds, pre-trained and judged by few labels."""
    from optidel_hf.arguments import config_file
    from optidel_hf.evidence.config import FLAGS, make_experiment
    from optidel_hf.evidence.grid import Grid
    from optidel_hf.evidence.reads import repository, require_declared
    from optidel_hf.processes import share_cores

    share_cores()
    experiment = make_experiment(*_parse(FLAGS, arguments, "reproduce", reproduce.__doc__))
    for flag in ("output_dir", "curation_dir"):
        _refuse_among_images(getattr(experiment.grid, flag) or "", experiment.grid.pool, flag=flag)
    file = config_file(arguments)
    if experiment.grid.final:
        if file is None:
            raise UserError("--final needs --config FILE: the configuration has to be committed before its result.")
        declared = make_experiment(*_parse(FLAGS, ["--config", str(file)], "reproduce", reproduce.__doc__))
        require_declared(experiment, declared, file)
    if file and (root := repository(file)):  # one list of readings, from whichever folder the command is started
        reads = str(root / experiment.grid.test_reads)
        experiment = replace(experiment, grid=replace(experiment.grid, test_reads=reads))
    if path := Grid(_with_sample(experiment)).run():
        say(f"results: {path}")


def _with_sample(experiment: Experiment) -> Experiment:
    """The embedded sample in place of a pool or a downstream set that is not given."""
    grid = experiment.grid
    if EMBEDDED in (grid.pool, grid.downstream):
        pool, downstream = sample_pool(), SAMPLE_DIR / "downstream"
        grid = replace(grid, pool=str(pool)) if grid.pool == EMBEDDED else grid
        grid = replace(grid, downstream=str(downstream)) if grid.downstream == EMBEDDED else grid
    return replace(experiment, grid=grid)


def report(arguments: Sequence[str]) -> None:
    """One HTML file: what was kept, what was dropped, what was tiled, and how it did."""
    from optidel_hf.arguments import named_paths
    from optidel_hf.curation.comparison import compare
    from optidel_hf.publishing.records import read_selection
    from optidel_hf.publishing.report import build_report
    from optidel_hf.theory.saddle_point import saddle_point_errors

    (config,) = _parse((ReportConfig,), arguments, "report", report.__doc__)
    evidence = None
    if config.evidence:
        from optidel_hf.evidence.page import read_evidence

        evidence = read_evidence(config.evidence)
    _, facts = read_selection(Path(config.curation_dir) / "selection.parquet")
    path = build_report(
        Path(config.curation_dir),
        config.output or Path(config.curation_dir) / "report.html",
        named_paths(config.pretrain_dirs),
        config.results,
        evidence=evidence,
        compared=compare(config.curation_dir, facts["budget"], facts["tiles_per_mosaic"]) if facts else (),
        theory=saddle_point_errors,
    )
    say(f"report: {path}")


def information(arguments: Sequence[str]) -> None:
    """V-information of pre-trained models on images that they have not seen: a curation's held-out or given ones."""
    from optidel_hf.arguments import named_paths
    from optidel_hf.curation.heldout import DOWNSTREAM_FILE, HELD_OUT_FILE, judge
    from optidel_hf.publishing.measures import held_out_text, judged_unit

    (config,) = _parse((InformationConfig,), arguments, "information", information.__doc__)
    asked = {name: getattr(config, name) for name in ("images", "split", "image_column")}
    judged = judge(named_paths(config.models), config.curation_dir, config.device, **asked)
    for name, figures in judged.items():
        say(f"{name}: {held_out_text(figures)}, {judged_unit(figures)}")
    file, folder = DOWNSTREAM_FILE if config.images else HELD_OUT_FILE, config.curation_dir
    say(f"information: {Path(folder) / file if folder else f'{file} beside each model'}")


def status(arguments: Sequence[str]) -> None:
    """How far a curation has come."""
    (config,) = _parse((StatusConfig,), arguments, "status", status.__doc__)
    output = Path(config.output_dir)
    if not (output / "inputs.parquet").exists():
        if hashed := sorted(output.glob(".hashes/*/shard-*-of-*.parquet")):
            return say(f"{'inputs':10} {_so_far(hashed)}")
        raise UserError(f"{output} is no output of `optidel curate`: it has no inputs.parquet.")
    for stage in ("patches", "rejected", "scores", "curated"):
        say(f"{stage:10} {_so_far(existing_shards(output / stage))}")
    folds = sorted(path.name for path in (output / "reference").glob("fold-*"))
    say(f"{'reference':10} {', '.join(folds) or 'not yet'}")
    say(f"{'selection':10} {_how_far(output)}")


def _how_far(output: Path) -> str:
    if (output / "selection.parquet").exists():
        return "published"
    drafted = (output / ".selection" / "draft.parquet").exists()
    return "chosen, and published with the curated images" if drafted else "not yet"


def _so_far(shards: Sequence[Path]) -> str:
    total = shards[0].stem.split("-of-")[1].lstrip("0") if shards else "?"
    return f"{len(shards)} of {total} shards"


def theory(arguments: Sequence[str]) -> None:
    """When a perceptron should keep hard samples, and when easy ones: simulation and theory in one figure."""
    import json

    from optidel_hf.drawing import save_figure
    from optidel_hf.theory.figure import theory_figure
    from optidel_hf.theory.study import TheoryConfig, run_study
    from optidel_hf.theory.summary import best_strategies, results

    config, output = _parse((TheoryConfig, TheoryOutputConfig), arguments, "theory", theory.__doc__)
    folder = Path(output.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    study = run_study(config)
    (folder / "theory.json").write_text(json.dumps(results(config, study), indent=1) + "\n", encoding="utf-8")
    save_figure(theory_figure(config, study), folder / "theory.png")
    say("\n".join([*best_strategies(config, study), f"figure: {folder / 'theory.png'}"]))


def demo(arguments: Sequence[str]) -> None:
    """The whole method on the embedded sample, offline."""
    from optidel_hf.demo import run_demo

    (config,) = _parse((DemoConfig,), arguments, "demo", demo.__doc__)
    run_demo(Path(config.output_dir), config.frames, config.steps, config.seeds)


def sample(arguments: Sequence[str]) -> None:
    """Generated images, a pool and a downstream set with masks: colonoscopy-like, or cells under a microscope."""
    from optidel_hf.sample import write_sample

    (config,) = _parse((SampleConfig,), arguments, "sample", sample.__doc__)
    written = write_sample(**{**vars(config), "output_dir": config.output_dir or f"runs/{config.domain}"})
    say(f"pool: {written / 'pool' / 'images'}\ndownstream: {written / 'downstream'}")


def testbed(arguments: Sequence[str]) -> None:
    """A pool whose redundancy and junk are known: generated, or of real frames that drift (semi-synthetic)."""
    from optidel_hf.sample.testbed import TestbedConfig, write_testbed

    (config,) = _parse((TestbedConfig,), arguments, "testbed", testbed.__doc__)
    images = write_testbed(config)
    say(f"images: {images}\nlatents: {images.parents[1] / 'latents.parquet'}")


def push(arguments: Sequence[str]) -> None:
    """Push a curated dataset, a selection, a model or a metric to the Hub, with its card."""
    from optidel_hf.publishing.hub import PushConfig
    from optidel_hf.publishing.hub import push as push_folder

    (config,) = _parse((PushConfig,), arguments, "push", push.__doc__)
    say(f"pushed: {push_folder(config)}")


def rebuild(arguments: Sequence[str]) -> None:
    """The curated images again, from a published selection and the source images."""
    from optidel_hf.curation.rebuild import RebuildConfig
    from optidel_hf.curation.rebuild import rebuild as run_rebuild

    (config,) = _parse((RebuildConfig,), arguments, "rebuild", rebuild.__doc__)
    if config.source == EMBEDDED:
        config = replace(config, source=str(sample_pool()))
    say(f"curated: {run_rebuild(config) / 'curated'}")


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


def _parse(dataclasses: Sequence[type], flags: Sequence[str], command: str, summary: str | None) -> tuple[Any, ...]:
    from transformers.utils.logging import disable_progress_bar

    from optidel_hf.arguments import parse

    disable_progress_bar()  # of weights being loaded: the bars that matter are the stages' own
    return parse(dataclasses, flags, f"optidel {command}", (summary or "").splitlines()[0])


def say(text: str, stream: Any = None) -> None:
    """Print and flush; a pipe that was closed, as `| head` does, ends no work, and neither do characters it lacks."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"  # an `io.StringIO` has none
    try:
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def sample_pool(make: bool = True) -> Path:
    """The embedded sample's pool, generated first if it is not there, by the first process alone."""
    from optidel_hf.curation.shards import wait_for
    from optidel_hf.processes import process_rank
    from optidel_hf.sample import write_sample

    if not make and not (SAMPLE_DIR / "sample.json").exists():
        raise UserError("--dry_run writes nothing, and the embedded sample is not made yet: give a --dataset.")
    if process_rank()[0] == 0:
        write_sample(SAMPLE_DIR)
    wait_for([SAMPLE_DIR / "sample.json"])
    return SAMPLE_DIR / "pool" / "images"


def sample_curated(make: bool = True) -> Path:
    """The embedded sample's curated subset, made first if it is not there, before any process group's clock starts."""
    from optidel_hf.curation.shards import wait_for
    from optidel_hf.processes import process_rank, single_process

    if not make and not (SAMPLE_CURATION_DIR / "selection.parquet").exists():
        raise UserError(
            "--dry_run writes nothing, and the embedded subset is not made yet: run `optidel curate` first."
        )
    if process_rank()[0] == 0 and not (SAMPLE_CURATION_DIR / "selection.parquet").exists():
        with single_process():
            curate([])
    wait_for([SAMPLE_CURATION_DIR / "selection.parquet"])
    return SAMPLE_CURATION_DIR / "curated"


def _evaluation(config: PretrainConfig, probes: ProbeConfig) -> Callable[[Any], dict[str, float]] | None:
    """What judges the encoder while it trains: the trainer knows no labels, so it gets a function."""
    from optidel_hf.devices import resolve_device
    from optidel_hf.evaluation.probes import make_probe
    from optidel_hf.processes import process_rank

    if bool(config.evaluate_every) != bool(probes.probe_dataset):
        raise UserError("--evaluate_every and --probe_dataset belong together: give both or none.")
    if not probes.probe_dataset:
        return None
    if process_rank()[0] > 0:
        return lambda encoder: {}  # the first process judges, the others wait
    return make_probe(probes, config.image_size, resolve_device(config.device))


def _rehearsed(trainer: Pretrainer) -> str:
    from optidel_hf.pretraining.dry_run import describe, rehearse

    rehearsal = rehearse(trainer)  # by every process
    return describe(trainer, rehearsal) if trainer.accelerator.is_main_process else ""


def embedded_evaluation() -> list[str]:
    """Without arguments: the model that `recipes/pretrain.py` makes, against no pre-training, on the sample."""
    sample_pool()
    model = Path("runs/pretrain")
    if not (model / "model.safetensors").exists():
        pretrain([])
    flags = ["--models", f"optidel={model}", "none", "--dataset", str(SAMPLE_DIR / "downstream")]
    return [*flags, "--output_dir", "runs/evaluate"]
