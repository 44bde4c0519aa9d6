"""
From the rows of `results.parquet` to arms compared: an arm's runs over seeds, and two arms on the seeds both have.

Columns are read by name: `arm`, `budget`, `seed`, `labels`, `mode`, `split`, `step`, `steps` and `confusion`, the flat
confusion matrices of all judged images. Arms without a budget have budget 0 (no pre-training) or 1 (the whole pool).

S seeds, N images, C classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.errors import UserError
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.inference import (
    FEWEST_SEEDS,
    Components,
    Interval,
    minimum_detectable_difference,
    miou_interval,
    paired_interval,
    variance_components,
)


VALIDATION, TEST = "validation", "test"
WITHOUT_BUDGET = tuple(name for name, arm in ARMS.items() if arm.unit is None or not arm.budgeted)
CLASSES = 2


class Setting(NamedTuple):
    """Where arms are compared: the share of the pool, and the number of labelled images."""

    budget: float
    labels: int

    def __str__(self) -> str:
        return f"{100 * self.budget:g} % of the pool, {self.labels or 'all'} labels"


PRIMARY = Setting(0.05, 100)
ENDPOINT = (("optidel", "random_images"), ("optidel", "full"))
ENDPOINT_MODES = ("finetune", "probe")
"""The primary endpoint: where, which contrasts and in which modes, fixed beforehand."""
BASELINES = ("random_images", "full")
"""What every arm is compared with."""


@dataclass(frozen=True)
class Series:
    """
    The runs of one arm, one a seed.

    Args:
        arm (`str`): Name of the arm.
        setting ([`Setting`]): Its budget and labels.
        mode (`str`): `finetune` or `probe`.
        runs (`dict[int, np.ndarray]`): Confusion matrices `(N, C, C)` by seed.
    """

    arm: str
    setting: Setting
    mode: str
    runs: dict[int, np.ndarray]

    def confusion(self, seeds: Sequence[int] | None = None) -> np.ndarray:
        """
        Confusion matrices `(S, N, C, C)` of these seeds, by default of all.

        Raises:
            `UserError`: if they are of different images.
        """
        runs = [self.runs[seed] for seed in seeds or sorted(self.runs)]
        if len(counts := {len(run) for run in runs}) > 1:
            raise UserError(
                f"Arm {self.arm} ({self.mode}, {self.setting}) was judged on {' and '.join(map(str, sorted(counts)))} "
                "images, depending on the seed: results of different test parts cannot be put together."
            )
        return np.stack(runs)

    def interval(self) -> Interval:
        """The arm's own mIoU."""
        return miou_interval(self.confusion())


@dataclass(frozen=True)
class Comparison:
    """
    One arm minus another, in one mode, on the seeds that both have.

    Args:
        a (`str`): The arm.
        b (`str`): What is subtracted.
        mode (`str`): `finetune` or `probe`.
        interval ([`Interval`]): The difference.
        components ([`Components`]): What it varies with.
        detectable (`float`): The least true difference that so many seeds and images show, with 95 % power.
    """

    a: str
    b: str
    mode: str
    interval: Interval
    components: Components
    detectable: float

    @property
    def supports_claims(self) -> bool:
        """Whether there are seeds enough for a claim."""
        return self.interval.seeds >= FEWEST_SEEDS


@dataclass(frozen=True)
class Judged:
    """
    What was judged on one split, and the setting at which arms are compared there.

    Args:
        split (`str`): `validation` or `test`.
        rows (`pyarrow.Table`): The runs of last checkpoints.
        checkpoints (`pyarrow.Table`): The runs of all checkpoints.
        series (`list[Series]`): The runs of last checkpoints by arm, setting and mode, in order of appearance.
        setting ([`Setting`]): The primary endpoint's where an arm was run there, else that of most runs.
        modes (`list[str]`): The modes that occur.
        compared (`dict`): What [`~Judged.compare`] has found: tables and figure ask for the same contrasts.
    """

    split: str
    rows: pa.Table
    checkpoints: pa.Table
    series: list[Series]
    setting: Setting
    modes: list[str]
    compared: dict[tuple[str, str, str], Comparison | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, results: pa.Table, split: str | None = None) -> Judged:
        """Collect the rows of `results.parquet` of one split: the test part if any run was judged there by default."""
        split = split or (TEST if TEST in results["split"].to_pylist() else VALIDATION)
        checkpoints = results.filter(pc.equal(results["split"], split))
        rows = checkpoints.filter(pc.equal(checkpoints["step"], checkpoints["steps"]))
        series = _collect_series(rows)
        return cls(
            split, rows, checkpoints, series, _headline(series), list(dict.fromkeys(one.mode for one in series))
        )

    def find(self, arm: str, mode: str) -> Series | None:
        """An arm's runs at the headline setting; arms without a budget are found at any."""
        return next((one for one in self.headline(mode) if one.arm == arm), None)

    def headline(self, mode: str) -> list[Series]:
        """All arms' runs at the headline setting."""
        return [one for one in self.series if one.mode == mode and self.at_headline(one)]

    def at_headline(self, one: Series) -> bool:
        """Whether runs are at the setting at which arms are compared."""
        budgets = one.arm in WITHOUT_BUDGET or one.setting.budget == self.setting.budget
        return budgets and one.setting.labels == self.setting.labels

    def at(self, setting: Setting) -> Judged:
        """The same runs, with arms compared at another setting."""
        return replace(self, setting=setting, compared={})

    def compare(self, a: str, b: str, mode: str) -> Comparison | None:
        """
        One arm minus another at the headline setting, on the seeds that both have.

        Returns:
            [`Comparison`], or `None` where no seed has both.
        """
        if (a, b, mode) not in self.compared:
            first, second = self.find(a, mode), self.find(b, mode)
            self.compared[a, b, mode] = compare(first, second) if first and second else None
        return self.compared[a, b, mode]

    def curve(self, one: Series) -> tuple[list[int], np.ndarray, np.ndarray]:
        """
        An arm's mIoU at each checkpoint.

        Returns:
            `tuple` of the seeds of which every checkpoint was judged, the checkpoints' steps `(K,)`, mIoU `(S, K)`.
        """
        names = ("arm", "budget", "labels", "mode", "seed", "step", "miou")
        found: dict[int, dict[int, float]] = {}
        for arm, budget, labels, mode, seed, step, miou in zip(
            *(self.checkpoints[name].to_pylist() for name in names)
        ):
            if (arm, budget, labels, mode) == (one.arm, *one.setting, one.mode):
                found.setdefault(seed, {})[step] = miou
        steps = sorted({step for curve in found.values() for step in curve})
        whole = sorted(seed for seed, curve in found.items() if len(curve) == len(steps))
        values = np.array([[found[seed][step] for step in steps] for seed in whole])
        return whole, np.array(steps), values.reshape(len(whole), len(steps))


def compare(first: Series, second: Series) -> Comparison | None:
    """
    One arm minus another, on the seeds that both have.

    Returns:
        [`Comparison`], or `None` where no seed has both.

    Raises:
        `UserError`: if they were judged on different images.
    """
    if not (seeds := sorted(first.runs.keys() & second.runs.keys())):
        return None
    a, b = first.confusion(seeds), second.confusion(seeds)
    if a.shape != b.shape:
        raise UserError(
            f"Arms {first.arm} and {second.arm} ({first.mode}, {first.setting}) were judged on {a.shape[1]} and "
            f"{b.shape[1]} images: they cannot be compared image by image."
        )
    interval, components = paired_interval(a, b), variance_components(a, b)
    detectable = minimum_detectable_difference(components, interval.seeds, interval.images)
    return Comparison(first.arm, second.arm, first.mode, interval, components, detectable)


def _collect_series(rows: pa.Table) -> list[Series]:
    """The runs of each arm, budget, number of labels and mode, in order of appearance."""
    found: dict[tuple[str, Setting, str], dict[int, np.ndarray]] = {}
    names = ("arm", "budget", "labels", "mode", "seed", "confusion")
    for arm, budget, labels, mode, seed, flat in zip(*(rows[name] for name in names)):
        key = (arm.as_py(), Setting(budget.as_py(), labels.as_py()), mode.as_py())
        runs = found.setdefault(key, {})
        if seed.as_py() in runs:
            raise UserError("The results hold several runs of one cell: give the results.parquet of one grid.")
        runs[seed.as_py()] = flat.values.to_numpy().reshape(-1, CLASSES, CLASSES)
    return [Series(*key, runs) for key, runs in found.items()]


def _headline(series: Sequence[Series]) -> Setting:
    """The primary endpoint's setting where any arm was run there, else that of most runs of arms with a budget."""
    runs: Counter[Setting] = Counter()
    for one in series:
        if one.arm not in WITHOUT_BUDGET:
            runs[one.setting] += len(one.runs)
    if runs:
        return PRIMARY if PRIMARY in runs else runs.most_common(1)[0][0]
    return Setting(PRIMARY.budget, series[0].setting.labels if series else PRIMARY.labels)
