"""
Downstream segmentation: arms (encoders) x modes (fine-tuning, probing) x seeds, each tested by mIoU.

All arms see the same images, steps, labels, head weights and batches of a seed; what differs is the encoder. Every run
that is finished lies in `OUT/runs/` as one JSON file, so that an evaluation that was killed goes on where it stood.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from optidel_hf.arguments import named_paths
from optidel_hf.devices import PRECISIONS, resolve_device, resolve_precision
from optidel_hf.errors import UserError, changes, named_by
from optidel_hf.evaluation.backbone import Backbone, fresh_backbone, load_backbone
from optidel_hf.evaluation.downstream import DownstreamSet, list_pairs, load_downstream, refuse_unknown, shared_image
from optidel_hf.evaluation.metrics.normdel.normdel import normdel
from optidel_hf.evaluation.protocol import labelled_rows, score, train_segmenter
from optidel_hf.evaluation.statistics import markdown_table, summarise
from optidel_hf.files import alone_in, read_json, write_text


logger = logging.getLogger(__name__)

MODES = ("finetune", "probe")
NO_PRETRAINING = "none"
# What may differ between two calls on one OUT: it says which runs there are, or leaves them as they are (of the images
# their hashes tell).
GRID_FIELDS = ("models", "modes", "seeds", "seed", "data_ratio", "device", "output_dir", "revision", "dataset_config")


@dataclass
class EvaluateConfig:
    """What [`evaluate_segmentation`] does. Raises `UserError` on values that cannot be meant."""

    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The arms: `name=path or Hub id`, or the path alone (the name is then its last part). `none` is a "
            "fresh encoder with the architecture of the first model given."
        },
    )
    dataset: str = field(
        default="",
        metadata={"help": "Folder with images/ and masks/ (same stem), or a table or Hub id with both as columns."},
    )
    output_dir: str = field(default="", metadata={"help": "Folder for runs/, results.json and results.md."})
    image_size: int | None = field(
        default=None, metadata={"help": "Side in pixels, for all arms. Default: the first model's."}
    )
    modes: list[str] = field(
        default_factory=lambda: list(MODES),
        metadata={"help": "finetune (encoder and head are trained) and probe (the head alone)."},
    )
    seeds: int = field(default=3, metadata={"help": "Number of seeds; a seed draws labels, head, order and flips."})
    seed: int = field(default=0, metadata={"help": "The first seed; the others follow."})
    steps: int = field(default=200, metadata={"help": "Optimiser steps, the same for every arm."})
    batch_size: int = field(default=32, metadata={"help": "Images a step."})
    learning_rate: float = field(
        default=5e-4,
        metadata={"help": "Peak rate of fine-tuning. The default suits small encoders; for ViT-B take 1e-4."},
    )
    probe_learning_rate: float = field(default=1e-3, metadata={"help": "Peak rate of probing."})
    mixed_precision: str = field(
        default="auto",
        metadata={"help": "Fine-tuning in bf16, no (float32), or auto: bf16 on a GPU that has it, else float32."},
    )
    labels: int = field(
        default=0, metadata={"help": "Labelled training images, drawn by the seed. 0: all of the split."}
    )
    train_split: str = field(default="train", metadata={"help": "Split with the labelled images."})
    test_split: str = field(default="test", metadata={"help": "Split on which mIoU is measured."})
    exclude: list[str] = field(
        default_factory=list, metadata={"help": "Names (file stems) to leave out, such as duplicates across splits."}
    )
    image_column: str = field(default="image", metadata={"help": "Image column of a table or Hub dataset."})
    mask_column: str = field(default="mask", metadata={"help": "Mask column of a table or Hub dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset with several."})
    data_ratio: list[float] = field(
        default_factory=list,
        metadata={"help": "Share of the pre-training data of each model, aligned with models: adds NormDEL."},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps or xpu."})

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("dataset", "output_dir"):
            if not getattr(self, name):
                raise UserError(f"{name} is needed.")
        for name in ("seeds", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size must be at least 1, got {self.image_size}.")
        if self.seed < 0:
            raise UserError(f"seed must be at least 0, got {self.seed}.")
        for name in ("learning_rate", "probe_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.labels < 0:
            raise UserError(f"labels must be at least 1, or 0 for all, got {self.labels}.")
        if not self.modes or set(self.modes) - set(MODES):
            raise UserError(f"modes must be among {', '.join(MODES)}, got {self.modes}.")
        if len(set(self.modes)) < len(self.modes):
            raise UserError(f"modes names one twice, got {self.modes}.")
        if self.mixed_precision not in PRECISIONS:
            raise UserError(f"mixed_precision must be among {', '.join(PRECISIONS)}, got '{self.mixed_precision}'.")
        if self.train_split == self.test_split:
            raise UserError(f"train_split and test_split are both '{self.train_split}': name two splits.")
        if self.data_ratio and len(self.data_ratio) != len(self.models):
            raise UserError(f"data_ratio has {len(self.data_ratio)} values for {len(self.models)} models.")
        if not all(0 <= ratio <= 1 for ratio in self.data_ratio):
            raise UserError(f"data_ratio holds shares from 0 to 1, got {self.data_ratio}.")
        self.arms()

    def arms(self) -> dict[str, str]:
        """Name and path of every arm, in the order given."""
        arms = named_paths(self.models)
        for entry, (name, path) in zip(self.models, arms.items()):
            if not path or not re.fullmatch(r"[\w.%+=-]+", name):
                raise UserError(f"'{entry}' is no `name=path`: a name has letters, digits and any of _ . % + = -")
        if all(path == NO_PRETRAINING for path in arms.values()):
            raise UserError("models needs at least one path or Hub id, which also gives 'none' its architecture.")
        return arms


def evaluate_segmentation(config: EvaluateConfig) -> list[dict[str, Any]]:
    """
    Run what is not yet finished of a configuration, then write `results.json` and `results.md` into its folder.

    Args:
        config ([`EvaluateConfig`]): arms, data and protocol.

    Returns:
        `list[dict]`: one row a run, arm by arm, mode by mode, seed by seed: `arm`, `model`, `mode`, `seed`, `miou`
        (fraction), `iou` (per class, `None` for a class that occurs nowhere), `steps`, `labels`, `seconds` and
        `weights` (fingerprint of the encoder that was started from).

    Raises:
        `UserError`: if a model or the data cannot be used, or the folder holds runs of another configuration.
    """
    arms = config.arms()
    given = _load_arms(arms)
    image_size = config.image_size or next(iter(given.values())).encoder.config.image_size
    _check_patches(given, image_size)
    _refuse_shared(config)
    data = {split: _load_split(config, split, image_size) for split in (config.train_split, config.test_split)}
    if config.labels > (available := len(data[config.train_split])):
        raise UserError(f"--labels {config.labels}: split '{config.train_split}' has {available} images; 0 takes all.")
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    with alone_in(out):
        _claim(out, _determining(config, image_size, data))
        rows = _run_all(config, out, given, data)
        _write_results(out, config, image_size, rows)
    return rows


def _run_all(
    config: EvaluateConfig, out: Path, given: dict[str, Backbone], data: dict[str, DownstreamSet]
) -> list[dict[str, Any]]:
    arms, rows = config.arms(), []
    with tqdm(total=len(arms) * len(config.modes) * config.seeds, desc="runs", unit="run") as bar:
        for arm, path in arms.items():
            start = partial(_start, path, given[arm])
            base = {"arm": arm, "model": path, "weights": start(0).fingerprint()}
            for mode in config.modes:
                for seed in range(config.seed, config.seed + config.seeds):
                    run = partial(_run, config, start, data, mode, seed)
                    rows.append(_finished_or_run(out, base | {"mode": mode, "seed": seed}, run))
                    bar.update()
    return rows


def _load_arms(arms: dict[str, str]) -> dict[str, Backbone]:
    """The encoder given for every arm; for the arm without pre-training, the one whose architecture it takes."""
    loaded = {arm: load_backbone(path) for arm, path in arms.items() if path != NO_PRETRAINING}
    first = next(iter(loaded.values()))
    return {arm: loaded.get(arm, first) for arm in arms}


def _check_patches(given: dict[str, Backbone], image_size: int) -> None:
    for arm, backbone in given.items():
        patch = backbone.encoder.config.patch_size
        if image_size % patch:
            raise UserError(f"image_size {image_size} is no multiple of the {patch}-pixel patches of arm '{arm}'.")


def _start(path: str, given: Backbone, seed: int) -> Backbone:
    """What a run of an arm starts from, to be trained in place."""
    return fresh_backbone(given, seed) if path == NO_PRETRAINING else copy.deepcopy(given)


def _run(
    config: EvaluateConfig, start: Callable[[int], Backbone], data: dict[str, DownstreamSet], mode: str, seed: int
) -> dict[str, Any]:
    began = time.perf_counter()
    train_set = data[config.train_split]
    labelled = train_set.subset(labelled_rows(len(train_set), config.labels, seed))
    model = train_segmenter(
        start(seed),
        labelled,
        mode,
        seed=seed,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate if mode == "finetune" else config.probe_learning_rate,
        device=resolve_device(config.device),
        mixed_precision=config.mixed_precision,
    )
    result = score(model, data[config.test_split], config.batch_size)
    return {
        "miou": result["mean_iou"],
        # JSON has no NaN
        "iou": [None if value != value else value for value in result["per_category_iou"]],
        "steps": config.steps,
        "labels": len(labelled),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _finished_or_run(out: Path, key: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    file = out / "runs" / f"{key['arm']}-{key['mode']}-seed{key['seed']}.json"
    if not file.exists():
        _write_json(file, key | run())
    row = read_json(file)
    if not row.keys() >= {*key, "miou", "iou"}:
        raise UserError(f"{file} is damaged (no finished run): delete it, and the same command makes it again.")
    if row["weights"] != key["weights"]:
        raise UserError(
            f"{file} was made with other weights than '{key['model']}' has now: remove the runs of arm "
            f"'{key['arm']}', or give another output_dir."
        )
    logger.info("%s, %s, seed %d: mIoU %.4f", row["arm"], row["mode"], row["seed"], row["miou"])
    return row


def _refuse_shared(config: EvaluateConfig) -> None:
    """Refuse splits of which one has images of the other, as `train` has all of `train_val`."""
    splits, excluded = (config.train_split, config.test_split), set(config.exclude)
    listed = []
    for flag, split in zip(("train_split", "test_split"), splits):
        with named_by(split=flag, revision="revision", dataset_config="dataset_config"):
            listed.append(list_pairs(config.dataset, split, **_where(config)))
    refuse_unknown(config.exclude, listed, f"split '{splits[0]}' or '{splits[1]}' of {config.dataset}")
    train, test = ([pair for pair in pairs if pair[0] not in excluded] for pairs in listed)
    if name := shared_image(train, test):
        raise UserError(
            f"'{name}' is in split '{config.train_split}' and in '{config.test_split}': name two that are apart."
        )


def _load_split(config: EvaluateConfig, split: str, image_size: int) -> DownstreamSet:
    return load_downstream(config.dataset, split, image_size, config.exclude, **_where(config))


def _where(config: EvaluateConfig) -> dict[str, Any]:
    """Where images and masks are in a dataset that is no folder."""
    columns = {"image_column": config.image_column, "mask_column": config.mask_column}
    return columns | {"revision": config.revision, "config": config.dataset_config}


def _determining(config: EvaluateConfig, image_size: int, data: dict[str, DownstreamSet]) -> dict[str, Any]:
    """The fields that fix what one (arm, mode, seed) gives, with the size and the data they led to."""
    fields = {name: value for name, value in asdict(config).items() if name not in GRID_FIELDS}
    hashes = {f"{split} images": part.sha256() for split, part in data.items()}
    precision = resolve_precision(config.mixed_precision, resolve_device(config.device))  # what `auto` is here
    return fields | {"image_size": image_size, "mixed_precision": precision} | hashes


def _claim(out: Path, determining: dict[str, Any]) -> None:
    """Write the configuration into a new folder, or compare it with the one that stands there."""
    file = out / "evaluate_config.json"
    if not file.exists():
        return _write_json(file, determining)
    if changed := changes(read_json(file), determining):
        raise UserError(f"{out} holds runs of another configuration ({changed}): give another --output_dir.")


def _write_results(out: Path, config: EvaluateConfig, image_size: int, rows: list[dict[str, Any]]) -> None:
    ratios = dict(zip(config.arms(), config.data_ratio))
    summary = summarise(rows)
    for line in summary:
        if line["arm"] in ratios:
            line["normdel"] = normdel(line["miou_mean"], ratios[line["arm"]])
    results = {"config": asdict(config) | {"image_size": image_size}, "rows": rows, "summary": summary}
    _write_json(out / "results.json", results)
    write_text(markdown_table(results) + "\n", out / "results.md")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", file)
