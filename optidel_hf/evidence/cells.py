"""
One cell of the grid: an arm's data for one budget and seed, its pre-training, and the downstream runs that judge it.

    OUT/models/0003_optidel_0.05/    the pre-trained model; `step-000100/` the encoder at an earlier checkpoint
    OUT/cells/validation/0003_optidel_0.05.parquet    one row a downstream run, once all of them are done

A killed cell goes on from its last checkpoint; its model stays, so that the final reading judges what validation saw.

Shapes: `N` judged images, `C` classes.
"""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from optidel_hf.curation.frames import Frames, hold_out, readable_frames
from optidel_hf.curation.heldout import LEAST_GROUPS, judge_on
from optidel_hf.curation.inputs import open_sources
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.evaluation.backbone import Backbone, load_backbone
from optidel_hf.evaluation.downstream import DownstreamSet
from optidel_hf.evaluation.metrics.mean_iou.mean_iou import class_iou
from optidel_hf.evaluation.protocol import image_confusions, labelled_rows, train_segmenter
from optidel_hf.evidence.arm_data import ArmData, build_arm
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.config import Experiment, ReproduceConfig
from optidel_hf.evidence.pool import Pool
from optidel_hf.files import read_json
from optidel_hf.parquet import read_table
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.objectives import OBJECTIVES
from optidel_hf.pretraining.objectives.objective import save_model
from optidel_hf.pretraining.stored import StoredImages, open_images
from optidel_hf.pretraining.trainer import Pretrainer


FINISHED = "pretrain_config.json"  # what `Pretrainer.save` writes last
BETWEEN = range(100, 501)  # steps between checkpoints, where the last step alone is judged


@dataclass(frozen=True)
class Cell:
    """One arm for one budget and seed. Arms without a budget have 1 (the whole pool) or 0 (no pre-training)."""

    arm: str
    budget: float
    seed: int

    def __str__(self) -> str:
        return f"{self.seed:04d}_{self.arm}_{self.budget:g}"


@dataclass(frozen=True)
class Judges:
    """What is labelled and what judges, the same for every cell."""

    candidates: DownstreamSet
    judged: DownstreamSet


def enumerate_cells(grid: ReproduceConfig) -> list[Cell]:
    """All cells by seed, then by arm: an interrupted grid has whole seeds, which are what comparisons need."""
    seeds = range(grid.seed, grid.seed + grid.seeds)
    cells = [
        Cell(arm, own_budget(arm, budget), seed) for seed in seeds for arm in grid.arms for budget in grid.budgets
    ]
    return list(dict.fromkeys(cells))


def own_budget(arm: str, budget: float) -> float:
    """The budget of an arm where one is asked for."""
    if ARMS[arm].unit is None:
        return 0.0
    return budget if ARMS[arm].budgeted else 1.0


def run_cell(cell: Cell, experiment: Experiment, judges: Judges) -> list[dict[str, Any]]:
    """
    Make, pre-train and judge one cell, or go on with it.

    Args:
        cell ([`Cell`]).
        experiment ([`Experiment`]): what the grid is told.
        judges ([`Judges`]): what is labelled and what judges, at the side of pre-training.

    Returns:
        `list[dict]`: fields of `RESULT_SCHEMA`, one a downstream run: checkpoint by checkpoint, labels, mode.
    """
    grid, images = experiment.grid, judges.candidates.images  # which only the oracle sees
    data = build_arm(cell.arm, cell.budget, cell.seed, experiment.pool(), label_images=images)
    model = pretrain_cell(cell, data, experiment) if data.dataset else untrained(cell, experiment)
    facts = {"arm": cell.arm, "budget": cell.budget, "seed": cell.seed, "split": grid.split, **data.facts}
    facts |= {"steps": max(model.encoders), "pretrain_seconds": model.seconds, "vinfo_held_out": model.information}
    batch = experiment.pretrain.batch_size
    return [
        facts
        | {"step": step, "images_seen": step * batch, "labels": labels, "label_draws": grid.label_draws, "mode": mode}
        | judge(encoder, judges, grid, cell.seed, labels, mode)
        for step, encoder in model.encoders.items()
        for labels in grid.labels
        for mode in grid.modes
    ]


@dataclass(frozen=True)
class Trained:
    """The encoders of a cell by their step, what they cost, and what the last one knows of held-out images."""

    encoders: dict[int, Backbone]
    seconds: float = 0.0
    information: float | None = None


def untrained(cell: Cell, experiment: Experiment) -> Trained:
    """What the seed's pre-training starts from, a new encoder or a checkpoint's: the arm without pre-training."""
    config = replace(experiment.pretrain, seed=cell.seed)
    return Trained({0: Backbone(OBJECTIVES[config.objective].from_config(config, "eager").backbone())})


def pretrain_cell(cell: Cell, data: ArmData, experiment: Experiment) -> Trained:
    """Pre-train on an arm's data, or find that done."""
    config = cell_pretraining(cell, data, experiment)
    folder, steps = find_model(cell, experiment.grid) or Path(config.output_dir), judged_steps(config, experiment.grid)
    if not (folder / FINISHED).exists():
        _require_groups(experiment)
        _pretrain(config, data, steps, str(cell))
    encoders = {step: load_backbone(str(_saved(folder, step) if step < config.steps else folder)) for step in steps}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    seconds = read_json(folder / FINISHED)["seconds"]
    return Trained(encoders, seconds, held_out_information(folder, experiment))


def find_model(cell: Cell, grid: ReproduceConfig) -> Path | None:
    """The folder of a cell's finished model, in the grid's own output or in one to merge."""
    places = (Path(folder) / "models" / str(cell) for folder in (grid.output_dir, *grid.merge))
    return next((place for place in places if (place / FINISHED).exists()), None)


def cell_pretraining(cell: Cell, data: ArmData, experiment: Experiment) -> PretrainConfig:
    """
    The pre-training of all cells with this one's seed and folder, and a checkpoint wherever it is judged.

    Where that is at the end alone there are more on the way, the newest of which are kept.

    What differs from arm to arm besides the data is what the arm is there to show.
    """
    grid, arm, steps = experiment.grid, ARMS[cell.arm], experiment.steps(cell.arm)
    last_alone = grid.checkpoints == 1
    return replace(
        experiment.pretrain,
        steps=steps,
        last_share=arm.whole if arm.whole_last else 0.0,
        tile_augmentation=arm.tile_augmentation or experiment.pretrain.tile_augmentation,
        model=data.start or experiment.pretrain.model,
        seed=cell.seed,
        output_dir=str(experiment.output / "models" / str(cell)),
        checkpoint_every=_often(steps) if last_alone else steps // grid.checkpoints,
        keep_checkpoints=2 if last_alone else steps,  # all: a run that is told to end writes one more than are judged
        device=grid.device,
    )


def judged_steps(config: PretrainConfig, grid: ReproduceConfig) -> range:
    """The steps after which a cell is judged, the last one among them."""
    every = config.steps // grid.checkpoints
    return range(every, config.steps + 1, every)


def _often(steps: int) -> int:
    """Steps between checkpoints, of which one falls on the last step: few, as a kill costs them, if they divide."""
    return max((every for every in BETWEEN if steps % every == 0), default=steps)


def _pretrain(config: PretrainConfig, data: ArmData, judged: range, description: str) -> None:
    images, last = open_images(str(data.dataset), size=config.image_size), None
    assert isinstance(images, StoredImages)  # a folder of shards
    if data.last:
        turn = len(images) - data.last
        images, last = images.part(range(turn)), images.part(range(turn, len(images)))
    trainer = Pretrainer(config, images, description, last=last)
    trainer.train()
    for step in judged:
        trainer.accelerator.load_state(str(trainer.out / "checkpoints" / f"step-{step:06d}"))
        if step < config.steps:
            processor = image_processor(trainer.model.config.image_size)
            save_model(trainer.whole().backbone(), processor, _saved(trainer.out, step))
    trainer.save()


def _saved(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def held_out_information(folder: Path, experiment: Experiment) -> float | None:
    """Held-out V-information of a cell's model, in bits per value (simclr: a frame); none without held-out images."""
    pool = experiment.pool()
    if not pool.inputs.held_out:
        return None
    return judge_on(_held_out_frames(pool), folder, pool.device)["v_information"]


def _require_groups(experiment: Experiment) -> None:
    """Refuse, before a training, what cannot judge it: a contrastive model tells held-out groups apart."""
    pool = experiment.pool()
    if experiment.pretrain.objective == "mae" or not pool.inputs.held_out:
        return
    if (groups := len(set(_held_out_frames(pool).groups))) < LEAST_GROUPS:
        raise UserError(
            f"--held_out {pool.inputs.held_out} holds out {groups} group(s), and a contrastive model is judged on at "
            f"least {LEAST_GROUPS}: hold out more, or nothing, in another --output_dir."
        )


@cache
def _held_out_frames(pool: Pool) -> Frames:
    """The readable images that no arm sees."""
    inputs = read_table(pool.output / "inputs" / "inputs.parquet", columns=["source", "group"]).to_pydict()
    held = hold_out(inputs["group"], pool.inputs.held_out)
    group_of = {source: group for source, group in zip(inputs["source"], inputs["group"]) if group in held}
    sources = open_sources(pool.inputs)
    frames = sources.select([row for row, source in enumerate(sources["source"]) if source in group_of])
    return readable_frames(frames, [group_of[source] for source in frames["source"]], "that are held out")


def judge(
    encoder: Backbone, judges: Judges, grid: ReproduceConfig, seed: int, labels: int, mode: str
) -> dict[str, Any]:
    """Every draw's downstream run, their confusions added: `miou`, `confusion` and `downstream_seconds`."""
    began = time.perf_counter()
    draws = range(seed * grid.label_draws, (seed + 1) * grid.label_draws)  # no two seeds share one
    confusion = np.sum([_downstream(encoder, judges, grid, draw, labels, mode) for draw in draws], axis=0)
    return {
        "miou": float(np.nanmean(class_iou(confusion.sum(axis=0)))),
        "confusion": confusion.ravel().tolist(),
        "downstream_seconds": time.perf_counter() - began,
    }


def _downstream(
    encoder: Backbone, judges: Judges, grid: ReproduceConfig, draw: int, labels: int, mode: str
) -> np.ndarray:
    """The confusions `(N, C, C)` of one run; labels, head and order are the draw's, the encoder stays as it is."""
    candidates = judges.candidates
    labelled = candidates.subset(labelled_rows(len(candidates), labels, draw))
    steps, rate = grid.schedule(mode)
    segmenter = train_segmenter(
        copy.deepcopy(encoder),
        labelled,
        mode,
        seed=draw,
        steps=steps,
        batch_size=grid.downstream_batch_size,
        learning_rate=rate,
        device=resolve_device(grid.device),
        mixed_precision=grid.finetune_mixed_precision,
    )
    return image_confusions(segmenter, judges.judged, grid.downstream_batch_size)
