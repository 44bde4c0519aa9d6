"""What a pre-training run is told: `PretrainConfig`, parsed by `HfArgumentParser` and saved beside the model."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from transformers import AutoConfig

from optidel_hf.devices import PRECISIONS
from optidel_hf.errors import UserError
from optidel_hf.pretraining.draws import Augmentation
from optidel_hf.pretraining.objectives import OBJECTIVES


# Fields that do not affect the result and may change when a run is resumed.
FREE_FIELDS = (
    "output_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "resume",
    "log_every",
    "evaluate_every",
    "reconstruct_every",
    "report_to",
    "gradient_checkpointing",
    "device",
    "residency",
    "workers",
)

TRACKERS = ("auto", "none", "trackio", "tensorboard", "wandb")

SIZE_FIELDS = (
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
)


@dataclass
class PretrainConfig:
    """
    How a model is pre-trained; the images come apart from it. Each field's `help` says what it is.

    Raises:
        `UserError`: if a field is out of its range, with a sentence that names it.
    """

    output_dir: str = field(
        default="runs/pretrain", metadata={"help": "Folder for the model, its checkpoints and metrics.jsonl."}
    )
    objective: str = field(
        default="mae", metadata={"help": "What is trained: mae (masked autoencoding) or simclr (contrastive views)."}
    )
    model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a ViT-MAE (simclr: or ViT) to start from, whose sizes replace those given "
            "here; none: new."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it."})
    image_size: int = field(default=64, metadata={"help": "Side of a model input in pixels."})
    patch_size: int = field(default=8, metadata={"help": "Side of a patch in pixels; divides image_size."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the encoder."})
    num_hidden_layers: int = field(default=6, metadata={"help": "Depth of the encoder."})
    num_attention_heads: int = field(default=3, metadata={"help": "Attention heads of the encoder."})
    intermediate_size: int = field(default=768, metadata={"help": "Width of the encoder's MLPs."})
    decoder_hidden_size: int = field(default=128, metadata={"help": "Width of the decoder; its MLPs are 4 times it."})
    decoder_num_hidden_layers: int = field(default=2, metadata={"help": "Depth of the decoder."})
    decoder_num_attention_heads: int = field(default=4, metadata={"help": "Attention heads of the decoder."})
    mask_ratio: float = field(default=0.75, metadata={"help": "Share of the patches that are hidden (MAE: 0.75)."})
    norm_pix_loss: bool = field(
        default=True, metadata={"help": "Normalise each target patch by its own mean and variance (MAE's best)."}
    )
    temperature: float = field(default=0.1, metadata={"help": "simclr: what cosines are divided by (SimCLR: 0.1)."})
    projection_size: int = field(default=128, metadata={"help": "simclr: width of a projection (SimCLR: 128)."})
    steps: int = field(default=400, metadata={"help": "Optimisation steps; the schedule ends there."})
    last_share: float = field(
        default=0.0, metadata={"help": "Share of the steps, the last ones, that are taken on --last_dataset."}
    )
    batch_size: int = field(
        default=64, metadata={"help": "Images in a step over all processes and accumulation together."}
    )
    base_learning_rate: float = field(
        default=1.5e-4,
        metadata={"help": "Peak learning rate at 256 images a step, scaled by batch_size / 256 (MAE)."},
    )
    weight_decay: float = field(
        default=0.05, metadata={"help": "AdamW's decay, of matrices only; biases and norms are spared (MAE: 0.05)."}
    )
    warmup_steps: int | None = field(
        default=None, metadata={"help": "Steps of linear warm-up before the cosine; by default a tenth of the steps."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients with a larger 2-norm are scaled to it."})
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Parts in which a process takes its share of the batch, to save memory."}
    )
    mixed_precision: str = field(
        default="auto", metadata={"help": "bf16, no (float32), or auto: bf16 on a GPU that has it, else float32."}
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Keep no activation inside a layer and compute it again for the gradient, to save memory."},
    )
    compile: bool = field(
        default=False, metadata={"help": "Compile the model with torch.compile: slow to start, then faster."}
    )
    min_crop_scale: float | None = field(
        default=None,
        metadata={"help": "Smallest random crop in shares of the image's area, 1: none (mae: 0.2, simclr: 0.08)."},
    )
    residency: str = field(
        default="auto",
        metadata={
            "help": "Where the images lie: device, ram (8-bit pixels), stream (decoded as needed), or auto, by size."
        },
    )
    workers: int | None = field(
        default=None,
        metadata={"help": "Threads of a process that decode images; by default its share of the cores."},
    )
    flip: bool = field(default=True, metadata={"help": "Mirror half of the views."})
    color_jitter: float | None = field(
        default=None, metadata={"help": "Strength of the colour jitter, 0: none (mae: 0, simclr: 1)."}
    )
    grayscale: float | None = field(
        default=None, metadata={"help": "Share of the views without colour (mae: 0, simclr: 0.2)."}
    )
    blur: float | None = field(
        default=None, metadata={"help": "Share of the views that are blurred (mae: 0, simclr: 0.5)."}
    )
    tile_augmentation: bool = field(
        default=False,
        metadata={
            "help": "Crop and mirror the tiles of mosaics one by one, and pair them anew at each step; half of the "
            "images show one tile, enlarged. All views of an image show the same tiles."
        },
    )
    tiles_per_mosaic: int | None = field(
        default=None,
        metadata={
            "help": "tile_augmentation: tiles of a stored image, 1, 4, 9 or 16; by default what a curated dataset's "
            "column 'tiles' says."
        },
    )
    checkpoint_every: int = field(default=100, metadata={"help": "Steps between checkpoints; the last step has one."})
    keep_checkpoints: int = field(default=2, metadata={"help": "How many of the newest checkpoints stay."})
    resume: str = field(
        default="auto",
        metadata={
            "help": "auto: go on from the newest good checkpoint in output_dir; never: remove the run that is there "
            "and start over."
        },
    )
    log_every: int = field(
        default=10, metadata={"help": "Steps between looks at the loss; metrics.jsonl has every step all the same."}
    )
    evaluate_every: int = field(
        default=0, metadata={"help": "Steps between evaluations of the encoder by the probes that are given; 0: none."}
    )
    reconstruct_every: int = field(
        default=0,
        metadata={"help": "Steps between pictures of input, masked input and reconstruction (mae); 0: none."},
    )
    report_to: str = field(
        default="auto",
        metadata={
            "help": "Where losses and pictures go beside output_dir: trackio (local, no account), tensorboard, wandb, "
            "none, or auto: trackio if it is installed."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, crops and masks."})
    device: str = field(default="auto", metadata={"help": "auto (cuda, mps, xpu, then cpu) or one of these."})

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        if self.model is None:
            self._check_sizes()
            if self.model_revision is not None:
                raise UserError(f"model_revision is {self.model_revision!r}, but no model is given that it is of.")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up: base_learning_rate * batch_size / 256 (Goyal et al. 2017)."""
        return self.base_learning_rate * self.batch_size / 256

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""
        return self.steps // 10 if self.warmup_steps is None else self.warmup_steps

    @property
    def last_steps(self) -> int:
        """Steps that are taken on other images than the first."""
        return round(self.last_share * self.steps)

    def sizes(self) -> dict[str, int]:
        """The fields of `transformers.ViTMAEConfig` that give a new model its sizes."""
        sizes = {name: getattr(self, name) for name in SIZE_FIELDS}
        return {**sizes, "decoder_intermediate_size": 4 * self.decoder_hidden_size}

    def augmentation(self) -> Augmentation:
        """The augmentation of the objective's paper, with the fields that were given in place of its own."""
        asked: dict[str, Any] = {
            "tiles": self.tiles_per_mosaic,
            "min_scale": self.min_crop_scale,
            "jitter": self.color_jitter,
            "grey": self.grayscale,
            "blur": self.blur,
        }
        given = {name: value for name, value in asked.items() if value is not None}
        return replace(OBJECTIVES[self.objective].augmentation, flip=self.flip, **given)

    def determining(self) -> dict[str, Any]:
        """The fields on which the result depends; a run is resumed only where they are equal."""
        return {name: value for name, value in asdict(self).items() if name not in FREE_FIELDS}

    def _check_choices(self) -> None:
        choices = {
            "objective": tuple(OBJECTIVES),
            "residency": ("auto", "device", "ram", "stream"),
            "mixed_precision": PRECISIONS,
            "resume": ("auto", "never"),
            "report_to": TRACKERS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")

    def _check_ranges(self) -> None:
        positive = ("steps", "batch_size", "base_learning_rate", "max_grad_norm", "temperature", "projection_size")
        often = ("gradient_accumulation_steps", "checkpoint_every", "keep_checkpoints", "log_every")
        for name in (*positive, *often, *SIZE_FIELDS):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("seed", "weight_decay", "evaluate_every", "reconstruct_every", "workers"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UserError(f"{name} must not be negative, but is {getattr(self, name)}.")
        if not 0 <= self.last_share < 1:
            raise UserError(f"last_share must be a share, at least 0 and below 1, not {self.last_share}.")
        if self.last_share and not 0 < self.last_steps < self.steps:
            share = f"last_share {self.last_share:g} of {self.steps} steps"
            raise UserError(f"{share} is {self.last_steps} of them: there must be some before and some after.")
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"mask_ratio must lie between 0 and 1, not at {self.mask_ratio}.")
        if not 0 < self.augmentation().min_scale <= 1:
            raise UserError(f"min_crop_scale must be a share, above 0 and at most 1, not {self.min_crop_scale}.")
        for name in ("color_jitter", "grayscale", "blur"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, not at {getattr(self, name)}.")
        if self.tiles_per_mosaic is not None and not self.tile_augmentation:
            raise UserError("tiles_per_mosaic is for tile_augmentation: else a mosaic is an image like any other.")
        if self.gradient_accumulation_steps > 1 and not OBJECTIVES[self.objective].separable:
            raise UserError(
                f"{self.objective} compares each image with its whole batch, which accumulation would tear apart: "
                f"gradient_accumulation_steps must be 1, not {self.gradient_accumulation_steps}; take more processes."
            )
        if self.objective == "simclr" and self.batch_size < 2:
            raise UserError("batch_size must be at least 2 for simclr, which tells images of a batch apart.")
        if self.reconstruct_every and self.objective != "mae":
            raise UserError(f"reconstruct_every is for mae: {self.objective} reconstructs nothing.")
        if not 0 <= self.warmup <= self.steps:
            raise UserError(f"warmup_steps must lie between 0 and steps ({self.steps}), not at {self.warmup_steps}.")

    def _check_sizes(self) -> None:
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}.")
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("decoder_hidden_size", "decoder_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise UserError(
                    f"{width} {getattr(self, width)} must be a multiple of {heads} {getattr(self, heads)}."
                )
            if getattr(self, width) % 4:
                raise UserError(f"{width} {getattr(self, width)} must be a multiple of 4: positions take 4 quarters.")
        tokens = (self.image_size // self.patch_size) ** 2
        if not 0 < int(tokens * (1 - self.mask_ratio)) < tokens:
            raise UserError(f"mask_ratio {self.mask_ratio} must leave some of {tokens} patches visible, some hidden.")


def at_checkpoint_sizes(config: PretrainConfig) -> PretrainConfig:
    """
    The configuration with the sizes of the checkpoint that training starts from: what images and record go by.

    Args:
        config ([`PretrainConfig`]): returned as it is without a checkpoint, or where none is found, which is reported
            when it is loaded.
    """
    if config.model is None:
        return config
    try:
        found = AutoConfig.from_pretrained(config.model, revision=config.model_revision)
    except (OSError, ValueError):
        return config
    sizes = {name: getattr(found, name, None) for name in SIZE_FIELDS}
    known: dict[str, Any] = {name: size for name, size in sizes.items() if isinstance(size, int)}
    return replace(config, **known)
