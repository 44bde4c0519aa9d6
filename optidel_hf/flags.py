"""What the commands themselves are asked; the flags of a stage are its own configuration's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from optidel_hf.errors import UserError


EMBEDDED = "embedded"
SAMPLE_DIR = Path("runs/sample")
SAMPLE_CURATION_DIR = Path("runs/curate")


def check_run(images_per_shard: int, reuse: str | None) -> None:
    """Refuse, with a `UserError`, shards without images and an output that is none to take stages over from."""
    if images_per_shard < 1:
        raise UserError(f"images_per_shard is {images_per_shard}: a shard holds at least one image.")
    if reuse and not Path(reuse, "inputs.parquet").exists():
        raise UserError(f"--reuse {reuse} is no output of `optidel curate`: it has no inputs.parquet.")


@dataclass(frozen=True)
class RunConfig:
    """Where and how a curation runs; nothing here changes its result but `images_per_shard`."""

    output_dir: str = field(default=str(SAMPLE_CURATION_DIR), metadata={"help": "Folder for all stages."})
    reuse: str | None = field(default=None, metadata={"help": "Output to take over finished stages from."})
    device: str = field(default="auto", metadata={"help": "auto (cuda, mps, xpu, then cpu) or one of these."})
    images_per_shard: int = field(default=256, metadata={"help": "Source images in a shard, the unit of resume."})

    def __post_init__(self) -> None:
        check_run(self.images_per_shard, self.reuse)


@dataclass(frozen=True)
class ImagesConfig:
    """The images to pre-train on."""

    dataset: str = field(
        default=EMBEDDED,
        metadata={"help": "Curated folder, folder of images, .parquet/.arrow files, or Hub id; or 'embedded'."},
    )
    split: str | None = field(default=None, metadata={"help": "One split; all of them by default."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset with several."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where there are several."})
    limit: int | None = field(default=None, metadata={"help": "Take the first N images only."})
    last_dataset: str | None = field(
        default=None, metadata={"help": "Images that the last steps are taken on, as many as --last_share says."}
    )
    last_split: str | None = field(default=None, metadata={"help": "One split of these; all of them by default."})
    last_image_column: str | None = field(default=None, metadata={"help": "Needed where they have several."})
    dry_run: bool = field(
        default=False,
        metadata={"help": "Take a few steps, say what the run would need and how long it would take; write nothing."},
    )


@dataclass(frozen=True)
class ReportConfig:
    """What the report shows."""

    curation_dir: str = field(default=str(SAMPLE_CURATION_DIR), metadata={"help": "Output of `optidel curate`."})
    output: str | None = field(default=None, metadata={"help": "HTML file (else report.html in curation_dir)."})
    pretrain_dirs: list[str] = field(
        default_factory=list, metadata={"help": "`name=folder` of pre-trained models, for their training curves."}
    )
    results: str | None = field(default=None, metadata={"help": "results.json of `optidel evaluate`."})
    evidence: str | None = field(default=None, metadata={"help": "results.parquet of `optidel reproduce`."})


@dataclass(frozen=True)
class InformationConfig:
    """Which models to judge, on which images."""

    models: list[str] = field(metadata={"help": "`name=folder` of pre-trained models (mae or simclr)."})
    curation_dir: str | None = field(
        default=None, metadata={"help": "Output of `optidel curate --held_out ...`; with --images, any or none."}
    )
    images: str | None = field(
        default=None,
        metadata={"help": "A downstream set's images to judge on instead: a folder (without masks) or dataset."},
    )
    split: str | None = field(
        default=None, metadata={"help": "Its validation part, a split as `load_dataset` tells them."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Of --images; needed where there are several."})
    device: str = field(default="auto", metadata={"help": "auto (cuda, mps, xpu, then cpu) or one of these."})


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


@dataclass(frozen=True)
class SampleConfig:
    """Which generated images, and how many."""

    domain: str = field(default="colonoscopy", metadata={"help": "colonoscopy (the embedded sample) or cells."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for pool/ and downstream/ (else runs/ and the domain's name)."}
    )
    frames: int = field(default=600, metadata={"help": "Images in the pool."})
    train: int = field(default=100, metadata={"help": "Labelled images to train on."})
    validation: int = field(default=40, metadata={"help": "Labelled images to validate on."})
    test: int = field(default=100, metadata={"help": "Labelled images to test on."})
    image_size: int = field(default=128, metadata={"help": "Side in pixels."})
    seed: int = field(default=0, metadata={"help": "Another seed is another sample."})

    def __post_init__(self) -> None:
        if self.image_size < 16:
            raise UserError(f"image_size is {self.image_size}: frames need at least 16 pixels a side.")
        if min(self.frames, self.train, self.validation, self.test) < 0:
            raise UserError("frames, train, validation and test count images and must not be negative.")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: it is at least 0.")
