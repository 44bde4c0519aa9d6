"""
`curate()`: source images to a curated dataset, stage by stage, shard by shard, resumable.

    inputs -> patches -> reference -> scores -> selection -> curated

Every stage is a folder of parquet shards (`shards.py`) with the configuration that made it (`stages.py`).
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, Value
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from tqdm.auto import tqdm

from optidel_hf.arguments import as_flags
from optidel_hf.curation.chain import Chain
from optidel_hf.curation.curated import curated_shards, draft_selection, publish_selection, to_arrow
from optidel_hf.curation.curation_config import CurationConfig, at_commits, refuse_early
from optidel_hf.curation.folds import assign_folds
from optidel_hf.curation.frames import hold_out
from optidel_hf.curation.inputs import inputs_hash, list_inputs, open_sources
from optidel_hf.curation.mosaic import grid_side
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import PATCH_FEATURES, SamPatchExtractor
from optidel_hf.curation.pilot import settle_strategy
from optidel_hf.curation.reference import ReferenceConfig, calibrate_checkpoint, fit_scorer, write_settings
from optidel_hf.curation.scoring import VInformationScorer
from optidel_hf.curation.selection import eligible, mosaics_in_budget, refuse_too_few, select
from optidel_hf.curation.selection_config import AUTO
from optidel_hf.curation.shards import FirstRank, read_columns, read_rows, shard_bounds, wait_for
from optidel_hf.curation.stages import Stage, digest
from optidel_hf.devices import hardware, resolve_device
from optidel_hf.errors import UserError
from optidel_hf.files import alone_in, write_text
from optidel_hf.layout import METADATA_KEY, NO_PATCH, existing_shards, shard_paths
from optidel_hf.parquet import count_rows, read_schema, read_table, write_parquet
from optidel_hf.processes import process_rank, single_process


logger = logging.getLogger(__name__)

STAGES = ("patches", "scores", "selection", "curated")
KEPT_FEATURES = Features({name: feature for name, feature in PATCH_FEATURES.items() if name != "rejected"})


def curate(config: CurationConfig, until: str = "curated") -> Path:
    """
    Run the stages up to `until`; what is finished is taken as it is.

    Args:
        config ([`CurationConfig`]).
        until (`str`, *optional*, defaults to `"curated"`): `patches`, `scores`, `selection` or `curated`.

    Returns:
        `Path`: the output folder; its `curated/` is what `load_dataset` opens.

    Raises:
        `UserError`: for bad input, a configuration that differs from the output's, a budget that cannot be met, or an
            output that another process is at work in.
    """
    if until not in STAGES:
        raise UserError(f"until is '{until}': it is one of {', '.join(STAGES)}.")
    run = _Run(config)
    stages = STAGES[: STAGES.index(until) + 1]
    run.output.mkdir(parents=True, exist_ok=True)
    with alone_in(run.output) if run.rank == 0 else nullcontext():
        run.list_inputs()
        for stage in stages:
            getattr(run, stage)()
            if stage == "patches" and "selection" in stages:
                run.check_budget()  # before scoring, which takes longest
        if until == STAGES[-1] or not run.published.exists():  # else it is told already what made the dataset
            run.record()
    return run.output


class _Run:
    """The stages of one output. Each method finishes its stage or finds it finished."""

    def __init__(self, config: CurationConfig) -> None:
        refuse_early(config)
        self.config = at_commits(config)
        self.output = Path(config.output_dir)
        self.published = self.output / "selection.parquet"
        self.first = FirstRank(self.output)
        self.rank, self.world = process_rank()
        self.sources = open_sources(config.inputs)
        mosaics_in_budget(config.selection.budget, len(self.sources))

    def list_inputs(self) -> None:
        """List the source images, and tell those that are held out from those that are seen."""
        config = self.config
        limit = config.patches.max_image_pixels
        self.inputs = list_inputs(self.sources, self.output, config.images_per_shard, limit, self.first)
        self.groups = self.inputs["group"].to_pylist()
        self.held_out = hold_out(self.groups, config.inputs.held_out)
        self.seen = [row for row, group in enumerate(self.groups) if group not in self.held_out]
        self.chain = Chain(config, inputs_hash(self.inputs), bool(self.held_out))

    def patches(self) -> None:
        """Cut the key patches; rows that were rejected go to `rejected/`."""
        stage, rejected = self._claim(self.chain.patches), self._claim(self.chain.rejected)
        extractor = SamPatchExtractor(self.config.patches, self.config.device)
        self._list_held_out()
        bounds = shard_bounds(len(self.seen), self.config.images_per_shard)
        names = zip(shard_paths(stage, len(bounds)), shard_paths(rejected, len(bounds)))
        with self._bar(len(self.seen), "key patches", " images") as bar:
            for i, (rows, (path, reasons)) in enumerate(zip(bounds, names)):
                if i % self.world == self.rank and not (path.exists() and reasons.exists()):
                    sources = self._source_rows(self.seen[rows.start : rows.stop])
                    self._write_patches(self._map(sources, extractor, PATCH_FEATURES, bar), path, reasons)
                else:
                    bar.update(len(rows))
        wait_for([*shard_paths(stage, len(bounds)), *shard_paths(rejected, len(bounds))], self.first)
        self._tell_rejected(stage, rejected)

    def check_budget(self) -> None:
        """Refuse a budget that the patches cannot fill."""
        selection = self.config.selection
        upscale = read_columns(self.chain.patches.folder, ["upscale"])["upscale"].to_numpy()
        candidates = int(eligible(upscale, selection.max_upscale).sum())
        refuse_too_few(candidates, selection.budget, self._usable_images(), selection.tiles_per_mosaic)

    def scores(self) -> None:
        """Fit or calibrate the reference model, then add the V-information columns."""
        if not self.config.selection.scored:
            self._take_scores()
            return
        self.reference()
        folder = self._claim(self.chain.scores)
        scorer = VInformationScorer(str(self.chain.reference.folder), self.config.score, self.config.device)
        shards = existing_shards(self.chain.patches.folder)
        total = sum(count_rows(path) for path in shards)
        with self._bar(total, "scores", " patches") as bar:
            for i, path in enumerate(shards):
                target = folder / path.name
                if i % self.world == self.rank and not target.exists():
                    patches = _read_dataset(path)
                    write_parquet(to_arrow(self._map(patches, scorer, scorer.features, bar, rows=256)), target)
                else:
                    bar.update(count_rows(path))
        wait_for((folder / path.name for path in shards), self.first)

    def _take_scores(self) -> None:
        """Of another output, for the report's figures alone: this strategy does not look at them."""
        if self.config.reuse and self.rank == 0:
            for stage in (self.chain.reference, self.chain.scores):
                stage.take_over(Path(self.config.reuse))

    def reference(self) -> None:
        """The models that score: a given checkpoint calibrated on the pool, or two fitted by cross-fitting."""
        folder, config, score = self._claim(self.chain.reference), self.config.reference, self.config.score
        if self.rank == 0:
            keys = read_columns(self.chain.patches.folder, ["source", "group"])
            folds = assign_folds(keys["group"].to_pylist(), keys["source"].to_pylist(), config.reference_seed)
            patches = _undecoded(read_rows(self.chain.patches.folder, _sample(len(keys), config)))
            if any(folder.glob("fold-*")):  # of these settings, as the stage's record says
                write_settings(folder, config, score)
            with single_process(), self._given_up_unless_begun(folder):
                if config.reference:
                    calibrate_checkpoint(patches, folder, config, score, self.config.device)
                else:
                    fit_scorer(patches, folder, config, score, folds, self.config.device)
        wait_for([folder / "reliability.json"], self.first)  # the last file of the stage

    @contextmanager
    def _given_up_unless_begun(self, folder: Path) -> Iterator[None]:
        """Remove the reference folder where fitting is refused before any model is saved: other flags may follow."""
        try:
            yield
        except UserError:
            if not any(path.is_dir() for path in folder.iterdir()):
                shutil.rmtree(folder)
            raise

    def selection(self) -> None:
        """Choose by columns alone; the draft becomes `selection.parquet` when its mosaics have their hashes."""
        path = self._claim(self.chain.selection) / "draft.parquet"
        if self.rank == 0 and not path.exists():
            try:
                write_parquet(self._draft(), path)
            except UserError:  # other flags may follow, such as more repeats upon those that a pilot ran
                self.chain.selection.release()
                raise
        wait_for([path], self.first)

    def _draft(self) -> pa.Table:
        table = self._candidates()
        options = {**asdict(self.config.selection), "images": self._usable_images()}
        facts: dict[str, Any] = {}
        if self.config.selection.strategy == AUTO:
            options, facts = self._run_pilot(table, options)
        selected = select(table, explain=True, **options)
        selected.facts.update(facts)
        return draft_selection(table, selected)

    def _run_pilot(self, table: pa.Table, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the pilot names."""
        stage, config = self.chain.selection, self.config
        of_a_run = {name: value for name, value in stage.fields.items() if name != "pilot_repeats"}
        record = stage.folder / f"pilot-{digest([of_a_run, stage.upstream])[:12]}.json"
        return settle_strategy(
            table, options, self.chain.patches.folder, record, config.pilot, config.reference, config.device
        )

    def curated(self) -> None:
        """Render the mosaics, then publish the list with their hashes."""
        folder = self._claim(self.chain.curated)
        chosen = read_table(self.chain.selection.folder / "draft.parquet")
        size = self.config.mosaic.image_size
        curated_shards(chosen, self._find_source, size, folder, self.config.images_per_shard, self.first)
        if self.rank == 0 and not self.published.exists():
            funnel = json.loads(chosen.schema.metadata[METADATA_KEY])["counts"]
            tile = size // grid_side(self.config.selection.tiles_per_mosaic)
            sizes = {"image_size": size, "tile_size": tile, "images_per_shard": self.config.images_per_shard}
            facts = {**sizes, "counts": {**self._funnel(), **funnel}, "hash": self.chain.curated.hash}
            if self.config.patches.unit != PatchConfig.unit:
                facts["unit"] = self.config.patches.unit
            publish_selection(chosen, self._find_source, folder, self.published, facts)
        wait_for([self.published], self.first)

    def _claim(self, stage: Stage) -> Path:
        if self.rank == 0:
            stage.forget_what_made_nothing()
            if self.config.reuse:
                stage.take_over(Path(self.config.reuse))
            stage.claim()
        self.first.has_stopped()  # seen at work once, it is missed when it stops within a moment
        wait_for([stage.folder / "config.json"], self.first)
        return stage.claim()

    def _map(
        self, dataset: Dataset, stage: Callable[..., dict], features: Features, bar: tqdm, rows: int = 32
    ) -> Dataset:
        """Run a stage's callable over one shard in this process, in memory: no second copy lies in a cache."""
        if not len(dataset):  # all of a shard's images gave nothing; `map` would leave the columns out
            return Dataset.from_dict({name: [] for name in features}, features=features)

        def counted(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            result = stage(batch, self.rank if self.world > 1 else None)
            bar.update(len(next(iter(batch.values()))))
            return result

        quiet = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            return dataset.map(
                counted,
                batched=True,
                batch_size=rows,
                features=features,
                remove_columns=dataset.column_names,
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint=stage.__class__.__name__,
            )
        finally:
            if quiet:
                enable_progress_bars()

    def _write_patches(self, rows: Dataset, path: Path, reasons: Path) -> None:
        table = to_arrow(rows)
        kept = pc.is_null(table["rejected"])
        gone = table.filter(pc.invert(kept)).select(["source", "rejected"]).rename_columns(["source", "reason"])
        schema = KEPT_FEATURES.arrow_schema
        patches = table.filter(kept).select(list(KEPT_FEATURES)).cast(schema).replace_schema_metadata(schema.metadata)
        write_parquet(gone.replace_schema_metadata(None), reasons)
        write_parquet(patches, path)  # last: its existence says that the shard is finished

    def _source_rows(self, rows: list[int]) -> Dataset:
        """A shard of the sources in memory; to add a column in place datasets would copy every image to its cache."""
        part = self.sources.select(rows)
        images = [value if value and any(value.values()) else None for value in part["image"]]
        columns = {"image": images, "source": part["source"], "group": [self.groups[row] for row in rows]}
        names = Features({"source": Value("string"), "group": Value("string")})
        return Dataset.from_dict(columns, features=Features({"image": Image(decode=False), **names}))

    def _list_held_out(self) -> None:
        path = self.output / "held_out.parquet"
        if self.held_out and self.rank == 0 and not path.exists():
            rows = [row for row, group in enumerate(self.groups) if group in self.held_out]
            write_parquet(self.inputs.select(["source", "group"]).take(rows), path)

    def _tell_rejected(self, patches: Path, rejected: Path) -> None:
        """Say what could not be used; a `UserError` where that was everything."""
        reasons = Counter(read_columns(rejected, ["reason"])["reason"].to_pylist())
        if not reasons:
            return
        reason, count = reasons.most_common(1)[0]
        if sum(count_rows(path) for path in existing_shards(patches)):
            gave, seen = reasons.total(), len(self.seen)
            logger.info("%d of %d images gave no patch (see %s), %d of them: %s", gave, seen, rejected, count, reason)
            return
        loosen = "loosen --pred_iou_thresh, --stability_score_thresh or --min_area, or use another --sam"
        way_out = loosen if NO_PATCH in reasons else "give images that can be used"
        raise UserError(
            f"No key patch in {len(self.sources)} images; {count} of them: {reason}. See {rejected}, and {way_out}."
        )

    def _candidates(self) -> pa.Table:
        if not self.config.selection.scored:
            columns = [name for name in KEPT_FEATURES if name != "image"]
            return read_columns(self.chain.patches.folder, columns)
        names = list(read_schema(existing_shards(self.chain.scores.folder)[0]).names)
        unused = None if self.config.selection.embedding else "embedding"
        return read_columns(self.chain.scores.folder, [name for name in names if name != unused])

    def _usable_images(self) -> int:
        """Source images that could be opened, whether or not SAM found a patch in them."""
        return self._funnel()["usable"]

    def _funnel(self) -> dict[str, int]:
        reasons = Counter(read_columns(self.output / "rejected", ["reason"])["reason"].to_pylist())
        broken = reasons.total() - reasons[NO_PATCH]
        return {
            "inputs": len(self.sources),
            "held_out": len(self.sources) - len(self.seen),
            "rejected": broken,
            "usable": len(self.seen) - broken,
            "without_patch": reasons[NO_PATCH],
        }

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {source: row for row, source in enumerate(self.sources["source"])}

    def _find_source(self, source: str) -> dict[str, Any]:
        return self.sources[self._row_of[source]]["image"]

    def _bar(self, total: int, title: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=title, unit=unit, disable=self.rank > 0)

    def record(self) -> None:
        """Write the whole configuration: last, so that one which a stage refuses does not replace what was used."""
        if self.rank > 0:
            return
        packages = ("optidel_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "pyarrow")
        versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
        machine = hardware(resolve_device(self.config.device))
        record = {**asdict(self.config), "versions": versions, "hardware": machine, "command": self._command()}
        for how in ("device", "reuse", "output_dir"):
            record.pop(how)
        write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", self.output / "config.json")

    def _command(self) -> str:
        """The command line that makes the same dataset, wherever it is written and whatever it runs on."""
        c = self.config
        flags = as_flags(c.inputs, c.patches, c.reference, c.score, c.selection, c.mosaic, c.pilot)
        if c.images_per_shard != CurationConfig.images_per_shard:
            flags.append(f"--images_per_shard={c.images_per_shard}")
        return shlex.join(["optidel", "curate", *flags])


def _read_dataset(path: Path) -> Dataset:
    return _undecoded(read_table(path))


def _undecoded(table: pa.Table) -> Dataset:
    return Dataset(table).cast_column("image", Image(decode=False))


def _sample(rows: int, config: ReferenceConfig) -> range:
    """Evenly spaced rows, enough for both folds: patches of all sources, whatever the size of the pool."""
    return range(0, rows, max(1, rows // (2 * config.max_reference_patches)))
