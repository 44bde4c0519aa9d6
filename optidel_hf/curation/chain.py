"""The stages of a curation's output: what determines each, and so what a changed field invalidates."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from optidel_hf.checkpoints import checkpoint_fingerprint
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.letters import weights_hash
from optidel_hf.curation.scoring import LEARNABILITY
from optidel_hf.curation.selection_config import AUTO, SelectionConfig
from optidel_hf.curation.stages import Stage, determining


class Chain:
    """
    The stages of one output, each tied by its hash to the one before it.

    Args:
        config ([`CurationConfig`]).
        inputs (`str`): hash of the source images, see [`inputs_hash`].
        held_out (`bool`): whether some of them are held out.
    """

    def __init__(self, config: CurationConfig, inputs: str, held_out: bool) -> None:
        self.config = config
        self.inputs = inputs
        self.held_out = held_out
        self.output = Path(config.output_dir)

    @cached_property
    def patches(self) -> Stage:
        """Key patches."""
        config = self.config.patches
        fields = determining(config) | {"images_per_shard": self.config.images_per_shard}
        if self.held_out:
            fields["held_out"] = self.config.inputs.held_out
        if config.unit == "patch":
            weights = checkpoint_fingerprint(config.sam, config.sam_revision)
            fields |= {**config.thresholds()._asdict(), "sam_weights": weights}
        return Stage(self.output / "patches", fields, self.inputs)

    @cached_property
    def rejected(self) -> Stage:
        """What gave no key patch, and why."""
        return Stage(self.output / "rejected", self.patches.fields, self.patches.upstream)

    @cached_property
    def reference(self) -> Stage:
        """The models that score."""
        config = self.config.reference
        fields = asdict(config) | {"score": self._scoring}
        if config.reference:
            fields["weights"] = checkpoint_fingerprint(config.reference, config.reference_revision)
        if config.second_reference:
            fields["second_weights"] = checkpoint_fingerprint(config.second_reference)
        return Stage(self.output / "reference", fields, self.patches.hash)

    @cached_property
    def scores(self) -> Stage:
        """V-information columns."""
        return Stage(self.output / "scores", self._scoring | {"letters": weights_hash()}, self.reference.hash)

    @property
    def _scoring(self) -> dict[str, Any]:
        """The fields of scoring; `learnability` where it is asked for alone: what was scored without it stays good."""
        fields = determining(self.config.score)
        return {name: value for name, value in fields.items() if name != LEARNABILITY or value}

    @cached_property
    def selection(self) -> Stage:
        """The draft of the list."""
        upstream = self.scores.hash if self.config.selection.scored else self.patches.hash
        fields = asdict(self.config.selection)
        for later in ("distance", "hardness_weight"):  # what was selected before there was a choice stays good
            if fields[later] == getattr(SelectionConfig, later):
                del fields[later]
        if self.config.selection.strategy == AUTO:
            fields |= asdict(self.config.pilot)
        return Stage(self.output / ".selection", fields, upstream)

    @cached_property
    def curated(self) -> Stage:
        """The mosaics."""
        return Stage(self.output / "curated", asdict(self.config.mosaic), self.selection.hash)
