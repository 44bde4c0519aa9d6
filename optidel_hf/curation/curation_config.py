"""What a curation is told: one dataclass a stage, and what is refused before any image is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from optidel_hf.checkpoints import checkpoint_commit, require_kind
from optidel_hf.curation.curated import MosaicConfig, check_grid
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.pilot import PilotConfig
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import LEARNABILITY, ScoreConfig
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.files import refuse_stage_folder
from optidel_hf.flags import check_run
from optidel_hf.sources import is_pattern


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CurationConfig:
    """Everything that determines a curated dataset, one dataclass a stage, and where and how it is computed."""

    inputs: InputConfig
    output_dir: str
    patches: PatchConfig = field(default_factory=PatchConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    images_per_shard: int = 256
    reuse: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_run(self.images_per_shard, self.reuse)


def refuse_early(config: CurationConfig) -> None:
    """
    What a late stage would refuse, before any image is read.

    Raises:
        `UserError`: naming the flag and the way out.
    """
    _refuse_place(config)
    resolve_device(config.device)
    _refuse_checkpoints(config)
    _refuse_sizes(config)
    if config.selection.ignored:
        flags = " and ".join(f"--{name}" for name in config.selection.ignored)
        logger.warning("The strategy '%s' does not look at %s: left aside.", config.selection.strategy, flags)
    if config.selection.score == LEARNABILITY and not config.score.learnability:
        raise UserError("--score learnability needs --learnability, which adds that column.")
    if config.reference.reference and config.score.learnability:
        raise UserError(
            "--learnability compares an early and a late model of one training, and --reference is a late one "
            "alone: leave one of the two out."
        )


def at_commits(config: CurationConfig) -> CurationConfig:
    """
    The configuration with the commits for which its checkpoints' revisions on the Hub stand now.

    All stages then see the same weights, however long they take, and the record says which.
    """
    patches, reference = config.patches, config.reference
    if patches.unit == "patch" and (commit := checkpoint_commit(patches.sam, patches.sam_revision)):
        patches = replace(patches, sam_revision=commit)
    if reference.reference and (commit := checkpoint_commit(reference.reference, reference.reference_revision)):
        reference = replace(reference, reference_revision=commit)
    return replace(config, patches=patches, reference=reference)


def _refuse_place(config: CurationConfig) -> None:
    if not config.output_dir:
        raise UserError("--output_dir is empty: give a folder, new or of an earlier run.")
    output = Path(config.output_dir)
    refuse_stage_folder(output)
    for place in (output, *output.parents):
        if place.exists() and not place.is_dir():
            where = "" if place == output else f": {place}"
            raise UserError(f"--output_dir {output}{where} is a file: give a folder, new or of an earlier run.")
    if (output / "pretrain_config.json").exists():
        raise UserError(f"--output_dir {output} holds a model: give another folder, new or of an earlier curation.")
    dataset = Path(config.inputs.dataset).expanduser()
    if output.resolve() == (dataset.parent if is_pattern(dataset) else dataset).resolve():
        raise UserError(f"--output_dir {output} is the folder of --dataset itself: give another one.")


def _refuse_checkpoints(config: CurationConfig) -> None:
    patches, reference = config.patches, config.reference
    if patches.unit == "patch":
        require_kind("--sam", patches.sam, patches.sam_revision, "sam", "facebook/sam-vit-base")
    if reference.reference:
        revision = reference.reference_revision
        require_kind("--reference", reference.reference, revision, "vit_mae", "facebook/vit-mae-base")
    if reference.second_reference:
        require_kind("--second_reference", reference.second_reference, None, "vit_mae", "facebook/vit-mae-base")


def _refuse_sizes(config: CurationConfig) -> None:
    check_grid(config.selection.tiles_per_mosaic, config.mosaic.image_size)
    if config.reference.reference:  # whose tokens are its own
        return
    side, token = config.patches.patch_size, config.reference.reference_token
    if side % token:
        raise UserError(
            f"patch_size {side} is no multiple of reference_token {token}, the side of the reference model's tokens."
        )
    tokens = (side // token) ** 2
    if config.selection.scored and tokens < max(4, config.score.masks):
        raise UserError(
            f"A patch of patch_size {side} has {tokens} token(s) of reference_token {token}, too few to hide some and "
            f"show some by {config.score.masks} masks: a larger --patch_size or a smaller --reference_token is needed."
        )
