"""
What a grid of evidence is told: arms x budgets x seeds, their training, and how few labels judge them.

One seed redraws everything (subset, folds, pre-training, labels, head), and all arms share it, as they share steps and
samples seen. The configuration's hash is over what one cell's result depends on: not over which cells there are, where
they lie, or what computes them, so that cells of several machines can be put together.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from optidel_hf.checkpoints import checkpoint_fingerprint
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.mosaic import grid_side
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import LEARNABILITY, ScoreConfig
from optidel_hf.curation.stages import determining
from optidel_hf.devices import PRECISIONS
from optidel_hf.errors import UserError
from optidel_hf.evaluation.segmentation import MODES, EvaluateConfig
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.comparison import TEST, VALIDATION
from optidel_hf.evidence.pool import Pool
from optidel_hf.flags import EMBEDDED
from optidel_hf.pretraining.config import PretrainConfig, at_checkpoint_sizes


# The core and what its gate needs besides.
DEFAULT_ARMS = (*(name for name, arm in ARMS.items() if arm.core), "oracle")
PREFIX = "pretrain_"
# What the grid itself says of a pre-training.
OWN_FIELDS = (
    "output_dir",
    "seed",
    "device",
    "resume",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate_every",
    "last_share",
)
# Which cells there are, where they lie, what computes them and how they are put together: no cell depends on it.
FREE_FIELDS = (
    "pool",
    "pool_image_column",
    "downstream",
    "downstream_image_column",
    "downstream_mask_column",
    "downstream_groups",
    "arms",
    "budgets",
    "seeds",
    "seed",
    "output_dir",
    "curation_dir",
    "merge",
    "final",
    "test_reads",
    "device",
)


@dataclass(frozen=True)
class ReproduceConfig:
    """The grid and its few-label protocol. Raises `UserError` on values that cannot be meant."""

    pool: str = field(
        default=EMBEDDED, metadata={"help": "Images to select from: folder, tables or Hub id; or 'embedded'."}
    )
    pool_image_column: str | None = field(default=None, metadata={"help": "Needed where the pool has several."})
    group_column: str | None = field(
        default=None, metadata={"help": "The pool's video or patient (else near-duplicate groups)."}
    )
    limit: int | None = field(default=None, metadata={"help": "Take the first N images of the pool only."})
    held_out: float = field(
        default=0.1, metadata={"help": "Share of the pool that no arm sees, for held-out V-information; 0: none."}
    )
    downstream: str = field(
        default=EMBEDDED,
        metadata={"help": "Folder with images/ and masks/, or a table or Hub id with both; or 'embedded'."},
    )
    downstream_image_column: str = field(default="image", metadata={"help": "Image column of a table or Hub id."})
    downstream_mask_column: str = field(default="mask", metadata={"help": "Mask column of a table or Hub id."})
    arms: list[str] = field(
        default_factory=lambda: list(DEFAULT_ARMS),
        metadata={"help": "What to compare; by default the core arms and the gate's oracle."},
    )
    budgets: list[float] = field(default_factory=lambda: [0.05], metadata={"help": "Shares of the pool's images."})
    seeds: int = field(default=11, metadata={"help": "Number of seeds; a seed redraws everything, for all arms."})
    seed: int = field(default=0, metadata={"help": "The first seed; the others follow."})
    labels: list[int] = field(
        default_factory=lambda: [100], metadata={"help": "Numbers of labelled images, drawn by the seed; 0: all."}
    )
    label_draws: int = field(
        default=1,
        metadata={"help": "Draws of labels, head and order that judge a model, put together: less noise a seed."},
    )
    modes: list[str] = field(
        default_factory=lambda: list(MODES), metadata={"help": "finetune (encoder and head) and probe (the head)."}
    )
    label_split: str = field(default="train", metadata={"help": "Split that labels are drawn from."})
    label_range: str | None = field(
        default=None, metadata={"help": "FIRST:LAST, the names in that split that labels are drawn from; else all."}
    )
    validation_split: str = field(default="validation", metadata={"help": "Split that judges without --final."})
    test_split: str = field(default="test", metadata={"help": "Split that judges with --final."})
    test_range: str | None = field(
        default=None, metadata={"help": "FIRST:LAST, names of the label split that are a part of the test as well."}
    )
    downstream_groups: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression that finds the video or patient in a downstream image's name (in parentheses, "
            "if more is needed to find it): intervals take its images for one."
        },
    )
    exclude: list[str] = field(default_factory=list, metadata={"help": "Names to leave out, such as duplicates."})
    near_distance: int = field(
        default=40, metadata={"help": "Label candidates are dropped within this dHash distance of a test image."}
    )
    finetune_steps: int = field(
        default=EvaluateConfig.steps, metadata={"help": "Steps of fine-tuning, for every arm."}
    )
    finetune_learning_rate: float = field(
        default=EvaluateConfig.learning_rate, metadata={"help": "Peak rate of fine-tuning."}
    )
    finetune_mixed_precision: str = field(
        default="auto", metadata={"help": "bf16, no (float32), or auto: bf16 on a GPU that has it, else float32."}
    )
    probe_steps: int = field(default=EvaluateConfig.steps, metadata={"help": "Steps of probing, for every arm."})
    probe_learning_rate: float = field(
        default=EvaluateConfig.probe_learning_rate, metadata={"help": "Peak rate of probing."}
    )
    downstream_batch_size: int = field(default=EvaluateConfig.batch_size, metadata={"help": "Labelled images a step."})
    curation_steps: int = field(
        default=0,
        metadata={
            "help": "Steps that curation's time would buy, for the arms of equal compute; results.md says how many."
        },
    )
    checkpoints: int = field(
        default=1, metadata={"help": "Evenly spaced checkpoints that are judged; the last is the end of training."}
    )
    measured: bool = field(
        default=True, metadata={"help": "Measure each arm's entropies and coverage, which scores every seed's pool."}
    )
    output_dir: str = field(default="runs/reproduce", metadata={"help": "Folder for cells, models and results."})
    curation_dir: str | None = field(
        default=None, metadata={"help": "Folder of the arms' data, which grids may share; else in output_dir."}
    )
    merge: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of the same configuration, from other machines."}
    )
    final: bool = field(
        default=False, metadata={"help": "Judge on the test labels, which nothing else opens, and write that down."}
    )
    test_reads: str = field(
        default="benchmarks/test_reads.md", metadata={"help": "File in which readings of the test labels are listed."}
    )
    device: str = field(default="auto", metadata={"help": "auto (cuda, mps, xpu, then cpu) or one of these."})

    def __post_init__(self) -> None:
        positive = ("seeds", "label_draws", "finetune_steps", "probe_steps", "downstream_batch_size", "checkpoints")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not self.arms or not self.budgets or not self.labels:
            raise UserError("arms, budgets and labels each need at least one value.")
        for name in ("arms", "budgets", "labels", "modes"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"{name} names something twice: {getattr(self, name)}.")
        if not self.modes or set(self.modes) - set(MODES):
            raise UserError(f"modes must be among {', '.join(MODES)}, not {self.modes}.")
        if self.finetune_mixed_precision not in PRECISIONS:
            told = self.finetune_mixed_precision
            raise UserError(f"finetune_mixed_precision must be among {', '.join(PRECISIONS)}, not '{told}'.")
        if not all(0 < budget <= 1 for budget in self.budgets):
            raise UserError(f"budgets are shares of the pool, above 0 and at most 1, not {self.budgets}.")
        if min(self.labels) < 0 or self.seed < 0 or self.near_distance < 0:
            raise UserError("labels, seed and near_distance must not be negative.")
        if len({self.label_split, self.validation_split, self.test_split}) < 3:
            raise UserError("label_split, validation_split and test_split must be three splits.")
        for name in ("label_range", "test_range"):
            self.names(name)
        try:
            re.compile(self.downstream_groups or "")
        except re.error as error:
            raise UserError(f"downstream_groups '{self.downstream_groups}': {error}.") from None

    @property
    def split(self) -> str:
        """Which part judges: validation, or the test where the reading is final."""
        return TEST if self.final else VALIDATION

    def schedule(self, mode: str) -> tuple[int, float]:
        """Steps and peak learning rate of fine-tuning or probing."""
        if mode == "finetune":
            return self.finetune_steps, self.finetune_learning_rate
        return self.probe_steps, self.probe_learning_rate

    def names(self, which: str) -> tuple[str, str] | None:
        """First and last name of `label_range` or `test_range`; none where there is no limit."""
        value = getattr(self, which)
        if value is None:
            return None
        first, _, last = value.partition(":")
        if not first or not last or first > last:
            raise UserError(f"{which} is '{value}': it is FIRST:LAST, two names in the order of the alphabet.")
        return first, last


_HINTS = get_type_hints(PretrainConfig)
# Every field of a pre-training as a flag `--pretrain_...`, but for those that the grid sets itself.
PretrainFlags: type = make_dataclass(
    "PretrainFlags",
    [
        (PREFIX + option.name, _HINTS[option.name], field(default=option.default, metadata=option.metadata))
        for option in fields(PretrainConfig)
        if option.name not in OWN_FIELDS
    ],
    frozen=True,
)


# What `optidel reproduce` is asked, in the order that `make_experiment` takes.
FLAGS = (ReproduceConfig, PretrainFlags, PatchConfig, ReferenceConfig, ScoreConfig)


@dataclass(frozen=True)
class Experiment:
    """
    Everything that determines the cells of a grid.

    Args:
        grid ([`ReproduceConfig`]): which cells, and how they are judged.
        pretrain ([`PretrainConfig`]): the same for every arm; the grid sets its seed, folder and checkpoints.
        patches ([`PatchConfig`], *optional*): how key patches are cut.
        reference ([`ReferenceConfig`], *optional*): the reference models; each seed fits its own.
        score ([`ScoreConfig`], *optional*): how patches are scored.

    Raises:
        `UserError`: if the checkpoints to be judged do not divide the steps, or an arm cannot be made so: its tiles
            do not divide the images, the scores lack what it ranks by, or what equal compute needs is missing.
    """

    grid: ReproduceConfig
    pretrain: PretrainConfig
    patches: PatchConfig = field(default_factory=PatchConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        if self.pretrain.steps % self.grid.checkpoints:
            raise UserError(f"steps {self.pretrain.steps} must be a multiple of checkpoints {self.grid.checkpoints}.")
        if self.patches.unit != PatchConfig.unit or self.reference.reference_seed != ReferenceConfig.reference_seed:
            raise UserError("unit and reference_seed are each arm's own and each seed's: leave them out.")
        for arm in self.grid.arms:
            if arm in ARMS:
                self._check_arm(arm)

    @property
    def output(self) -> Path:
        """The grid's folder."""
        return Path(self.grid.output_dir)

    def steps(self, arm: str) -> int:
        """Steps of an arm's pre-training: one that pays for curation has more, less those the scorer took for it."""
        steps, rule = self.pretrain.steps, ARMS[arm]
        if not rule.pays_curation:
            return steps
        images = self.reference.reference_steps * self.reference.reference_batch_size if rule.from_scorer else 0
        return steps + self.grid.curation_steps - images // self.pretrain.batch_size

    def _check_arm(self, arm: str) -> None:
        """Refuse at the start what would end the grid at the arm's turn, hours later."""
        rule, size = ARMS[arm], self.pretrain.image_size
        side = grid_side(rule.tiles * rule.shrink**2)
        if size % side:
            raise UserError(f"{arm} has {side} tiles along a side, which do not divide image_size {size}.")
        if rule.score == LEARNABILITY and not self.score.learnability:
            raise UserError(f"{arm} ranks by a column that the scores have with --learnability true alone.")
        if rule.pays_curation:
            self._check_longer(arm)

    def _check_longer(self, arm: str) -> None:
        steps, checkpoints = self.steps(arm), self.grid.checkpoints
        if steps <= self.pretrain.steps:
            raise UserError(
                f"{arm} spends curation's time on steps, but curation_steps is {self.grid.curation_steps}: give what "
                "the table of costs in results.md says of optidel."
            )
        if ARMS[arm].from_scorer and (told := self._scorer_differs()):
            raise UserError(f"{arm} goes on from the reference model, but {told}: give one to the other.")
        if steps % checkpoints:
            raise UserError(f"steps {steps} of {arm} must be a multiple of checkpoints {checkpoints}.")

    def _scorer_differs(self) -> str:
        """In what the seed's reference model is not what is pre-trained; empty if it is in nothing."""
        own, trained = self.reference, self.pretrain
        if own.reference or trained.model or trained.objective != "mae":
            return "reference and model are given, or the objective is not mae"
        pairs = {
            ("reference_width", "hidden_size"): (own.reference_width, trained.hidden_size),
            ("reference_layers", "num_hidden_layers"): (own.reference_layers, trained.num_hidden_layers),
            ("reference_token", "patch_size"): (own.reference_token, trained.patch_size),
            ("patch_size", "image_size"): (self.patches.patch_size, trained.image_size),
        }
        differing = ((*names, *values) for names, values in pairs.items() if values[0] != values[1])
        return ", ".join(f"{one} is {a} and pre-training's {other} {b}" for one, other, a, b in differing)

    def pool(self) -> Pool:
        """What every arm is cut from."""
        grid = self.grid
        return Pool(
            InputConfig(
                grid.pool,
                image_column=grid.pool_image_column,
                group_column=grid.group_column,
                limit=grid.limit,
                held_out=grid.held_out,
            ),
            Path(grid.curation_dir or self.output / "curation"),
            self.patches,
            self.reference,
            self.score,
            MosaicConfig(self.pretrain.image_size),
            grid.device,
            grid.measured,
        )

    def determining(self) -> dict[str, Any]:
        """The fields that one cell's result depends on; weights and not where they lie."""
        told = {name: determining(getattr(self, name)) for name in ("patches", "reference", "score")}
        told["patches"]["sam"] = checkpoint_fingerprint(self.patches.sam, self.patches.sam_revision)
        told["pretrain"] = {name: v for name, v in self.pretrain.determining().items() if name not in OWN_FIELDS}
        for part, name, revision in (
            ("pretrain", "model", told["pretrain"].pop("model_revision")),
            ("reference", "reference", self.reference.reference_revision),
            ("reference", "second_reference", None),
        ):
            if told[part][name]:
                told[part][name] = checkpoint_fingerprint(told[part][name], revision)
        told["grid"] = {name: value for name, value in asdict(self.grid).items() if name not in FREE_FIELDS}
        return {f"{part}.{name}": value for part, values in told.items() for name, value in values.items()}


def make_experiment(grid: ReproduceConfig, flags: Any, *stages: Any) -> Experiment:
    """
    An [`Experiment`] from what was parsed.

    Args:
        grid ([`ReproduceConfig`]).
        flags (`PretrainFlags`).
        stages ([`PatchConfig`], [`ReferenceConfig`], [`ScoreConfig`]).

    Raises:
        `UserError`: if pre-training refuses a value, or the values do not go together.
    """
    given = {name.removeprefix(PREFIX): value for name, value in vars(flags).items()}
    try:
        pretrain = PretrainConfig(**given)
    except UserError as error:
        raise UserError(f"pre-training: {error}") from None
    return Experiment(grid, at_checkpoint_sizes(pretrain), *stages)
