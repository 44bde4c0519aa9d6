"""
The grid: arms x budgets x seeds, cell by cell, by as many processes and machines as there are.

    OUT/config.json       the configuration and its hash; another one is refused
    OUT/cells/...         one parquet a finished cell: what exists is finished, which is the whole protocol of resuming
    OUT/../trials.jsonl   every reading of the validation part by the grids side by side (`trials.py`)
    OUT/results.parquet   the rows of the cells that are asked for, and with them results.md and results.png

The W processes of a launcher cut the pool together; then rank r takes cells r, r + W, ..., each alone on its device.
What other machines computed is merged by naming their folders; a cell that any of them has is not computed again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from optidel_hf.curation.inputs import open_sources, read_hashes
from optidel_hf.curation.selection import mosaics_in_budget
from optidel_hf.curation.shards import wait_for
from optidel_hf.curation.stages import digest
from optidel_hf.devices import hardware, resolve_device, resolve_precision
from optidel_hf.errors import UserError, changes, named_by
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.cells import Cell, Judges, enumerate_cells, find_model, run_cell
from optidel_hf.evidence.comparison import ENDPOINT, TEST, VALIDATION, Judged
from optidel_hf.evidence.config import Experiment
from optidel_hf.evidence.labels import judged_part, label_candidates, list_test_pairs, pool_images_that_judge
from optidel_hf.evidence.pool import cut_together, list_pool, lock
from optidel_hf.evidence.reads import current_commit, is_read, note_opening, note_result
from optidel_hf.evidence.results import add_up_groups, group_names, read_cells, write_rows
from optidel_hf.evidence.summary import write_summary
from optidel_hf.evidence.trials import count_trials, list_of_trials, note_trial
from optidel_hf.evidence.wording import count_text, difference_text, level_text, mode_words
from optidel_hf.files import read_json, write_text
from optidel_hf.parquet import write_parquet
from optidel_hf.pretraining.stored import open_images
from optidel_hf.processes import process_rank, single_process


logger = logging.getLogger(__name__)


class Grid:
    """
    An experiment on its way to results.

    Args:
        experiment ([`Experiment`]).

    Raises:
        `UserError`: for an unknown arm, or an output or a folder to merge of another configuration.
    """

    def __init__(self, experiment: Experiment) -> None:
        if unknown := [arm for arm in experiment.grid.arms if arm not in ARMS]:
            raise UserError(f"--arms {unknown[0]}: no such arm; there are {', '.join(ARMS)}.")
        self.rank, self.world = process_rank()
        self.experiment = _on_own_device(experiment)
        self.grid, self.output = self.experiment.grid, experiment.output
        self.size = experiment.pretrain.image_size
        self.cells = enumerate_cells(self.grid)
        with named_by(dataset="pool", image_column="pool_image_column"):
            self._refuse_pool()
        self.candidates = label_candidates(self.grid, self.size)
        self.validation = judged_part(self.grid, VALIDATION, self.size)
        for names in (self.validation.names, [name for name, *_ in list_test_pairs(self.grid)]):
            group_names(names, self.grid.downstream_groups)
        told = self._determining()
        self.hash, self.part = self._claim(told), digest({name: told[name] for name in ("pool", "validation")})
        self.trials = list_of_trials(self.output)
        self._claim_curation({name: told[name] for name in ("pool", "patches.sam")})

    def _refuse_pool(self) -> None:
        """Refuse at the start a pool that cannot be opened, or is too small for a budget, and not at an arm's turn."""
        images = len(open_sources(self.experiment.pool().inputs))
        for cell in self.cells:
            if ARMS[cell.arm].unit:
                mosaics_in_budget(cell.budget, images)

    def run(self) -> Path | None:
        """Compute what is not finished, then, in the first process, write the results; returns their file there."""
        unfinished = [cell for cell in self.cells if self.find(cell) is None]
        if unfinished and self.grid.final:
            self._require_models(unfinished)
            if self.rank == 0:
                note_opening(Path(self.grid.test_reads), self.hash)
        if any(ARMS[cell.arm].unit for cell in unfinished):
            if self.rank == 0:
                self._tell_of_shared_images()
            self.cut_pool()
        mine = [cell for cell in self.cells[self.rank :: self.world] if cell in unfinished]
        if mine:
            with single_process():
                self._compute(mine)
        if self.rank > 0:
            return None
        wait_for(self.path(cell) for cell in self.cells if self.find(cell) is None)
        return self._write_results()

    def cut_pool(self) -> None:
        """Cut what every arm is made from by all processes of the launcher, before each takes arms of its own."""
        pool = self.experiment.pool()
        patches = pool.measured or any(ARMS[cell.arm].unit == "patch" for cell in self.cells)
        if self.world > 1:
            for unit in ("image", "patch") if patches else ("image",):
                cut_together(pool, unit)

    def path(self, cell: Cell, split: str | None = None) -> Path:
        """Where a cell's rows are written when it is finished."""
        return self.output / "cells" / (split or self.grid.split) / f"{cell}.parquet"

    def find(self, cell: Cell, split: str | None = None) -> Path | None:
        """A finished cell's file, here or in a folder to merge."""
        here = self.path(cell, split)
        places = [here, *(Path(folder) / here.relative_to(self.output) for folder in self.grid.merge)]
        return next((path for path in places if path.exists()), None)

    def _require_models(self, cells: Sequence[Cell]) -> None:
        """Refuse to train anew what the validation part has judged: its result is that model's."""
        for cell in cells:
            if ARMS[cell.arm].unit and self.find(cell, VALIDATION) and not find_model(cell, self.grid):
                raise UserError(
                    f"--final judges the model that the validation part has judged, and that of {cell} is not there: "
                    f"copy it from where it was trained to {self.output / 'models' / str(cell)}."
                )

    def _compute(self, cells: Sequence[Cell]) -> None:
        judged = judged_part(self.grid, TEST, self.size) if self.grid.final else self.validation
        judges = Judges(self.candidates, judged)
        device = resolve_device(self.grid.device)
        shared = {"config_hash": self.hash, "commit": current_commit(), "hardware": hardware(device)}
        for cell in tqdm(cells, desc="cells", unit="cell", disable=self.rank > 0):
            rows = [row | shared for row in run_cell(cell, self.experiment, judges)]
            hashes = {self.grid.split: judged.sha256()}
            write_rows(rows, {self.grid.split: judged.names}, self.path(cell), hashes)
            self._log(rows)

    def _tell_of_shared_images(self) -> None:
        """Warn of a pool that has images which judge, or near-duplicates of them: no result of it can be trusted."""
        shared = pool_images_that_judge(self.grid, read_hashes(list_pool(self.experiment.pool()).folder))
        if shared:
            logger.warning(
                "%d images of the pool, such as '%s', are near-duplicates of validation or test images: remove them.",
                len(shared),
                shared[0],
            )

    def _log(self, rows: Sequence[dict[str, Any]]) -> None:
        """Say how a cell did and, where that was read off the validation part, write down that it was."""
        cell = {name: rows[0][name] for name in ("arm", "budget", "seed", "split")}
        last = [row for row in rows if row["step"] == row["steps"]]
        scores = {f"{row['mode']}, {row['labels']} labels": round(row["miou"], 4) for row in last}
        logger.info("%s: %s", ", ".join(f"{name} {value}" for name, value in cell.items()), scores)
        if not self.grid.final:
            note_trial(self.trials, self.part, self.hash, {**cell, **scores})

    def _write_results(self) -> Path:
        """`results.parquet` with the cells of both parts as far as they may be shown, and the summary of them."""
        reads = Path(self.grid.test_reads)
        splits = (VALIDATION, TEST) if self.grid.final or is_read(reads, self.hash) else (VALIDATION,)
        found = [path for split in splits for cell in self.cells if (path := self.find(cell, split))]
        self._tell_left_out(found)
        results = add_up_groups(read_cells(found, self.hash), self.grid.downstream_groups)
        path = self.output / "results.parquet"
        with lock(path):
            write_parquet(results, path)
            write_summary(results, self.output, count_trials(self.trials, self.part))
        if self.grid.final:
            note_result(reads, self.hash, _result_text(results))
        return path

    def _tell_left_out(self, found: Sequence[Path]) -> None:
        """Results are of the arms, budgets and seeds that are asked for: say so where more is there."""
        others = sorted({path.stem for path in self.output.glob("cells/*/*.parquet")} - {path.stem for path in found})
        if others:
            logger.info(
                "%d finished cells are not in the results, such as %s: name their --arms, --budgets and --seeds too.",
                len(others),
                others[0],
            )

    def _determining(self) -> dict[str, Any]:
        """All that a cell's result depends on: the configuration, what `auto` is here, and the images behind paths."""
        told, device = self.experiment.determining(), resolve_device(self.grid.device)
        for name in ("grid.finetune_mixed_precision", "pretrain.mixed_precision"):
            told[name] = resolve_precision(told[name], device)
        column, limit = self.grid.pool_image_column, self.grid.limit
        told["pool"] = open_images(self.grid.pool, size=self.size, image_column=column, limit=limit).fingerprint
        return told | {"labels": self.candidates.sha256(), "validation": self.validation.sha256()}

    def _claim(self, told: dict[str, Any]) -> str:
        """The configuration's hash, after comparing it with what the output and the folders to merge were made by."""
        record: dict[str, Any] = {"hash": digest(told), "fields": told}
        own = self.output / "config.json"
        if self.rank == 0:
            with lock(own):  # processes that were started one by one have a rank 0 each
                if not own.exists():
                    write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", own)
        wait_for([own])
        for folder in (self.output, *map(Path, self.grid.merge)):
            _refuse_other(folder, record)
        return record["hash"]

    def _claim_curation(self, made_from: dict[str, Any]) -> None:
        """Refuse arms' data, which grids may share, of other images or another SAM; each arm's folder knows more."""
        folder = self.experiment.pool().output
        path = folder / "made_from.json"
        with lock(path):
            if not path.exists():
                write_text(json.dumps(made_from, indent=2) + "\n", path)
        if changed := changes(read_json(path), made_from):
            raise UserError(
                f"{folder} holds arms of another pool or SAM ({changed}): give another --curation_dir, or delete it."
            )


def _refuse_other(folder: Path, record: dict[str, Any]) -> None:
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"--merge {folder}: no output of `optidel reproduce` is there (no config.json).")
    theirs = read_json(file)
    if theirs["hash"] == record["hash"]:
        return
    changed = changes(theirs["fields"], json.loads(json.dumps(record["fields"])))
    raise UserError(
        f"{folder} holds cells of another configuration ({changed}): give another --output_dir (--curation_dir "
        f"{folder / 'curation'} shares the arms' data where these are the same), or set these fields back."
    )


def _on_own_device(experiment: Experiment) -> Experiment:
    """The experiment on this process's device, of as many as there are on its machine."""
    device = resolve_device(experiment.grid.device, rank=int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return replace(experiment, grid=replace(experiment.grid, device=str(device)))


def _result_text(results: pa.Table) -> str:
    """What the test says, for the list of readings: the primary endpoint's contrasts, then every arm's mIoU."""
    judged = Judged.of(results, TEST)
    found = [judged.compare(a, b, mode) for a, b in ENDPOINT for mode in judged.modes]
    contrasts = [
        f"{one.a} minus {one.b}, {mode_words(one.mode)}: {difference_text(one.interval)}" for one in found if one
    ]
    arms = [
        f"{one.arm} {100 * one.setting.budget:g} %, {one.setting.labels} labels, {mode_words(one.mode)}: "
        f"{level_text(one.interval())} ({count_text(len(one.runs), 'seed')})"
        for one in judged.series
    ]
    return "; ".join([*contrasts, *arms])
