"""What an objective is: a model, how its views are made, a loss of them, and what is saved of it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, ViTModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import CONFIG_NAME

from optidel_hf.pretraining.draws import Augmentation


if TYPE_CHECKING:
    from optidel_hf.pretraining.config import PretrainConfig


class Objective(nn.Module, ABC):
    """
    A model and its loss, and nothing of the loop around them.

    Attributes:
        augmentation ([`~optidel_hf.pretraining.draws.Augmentation`]): how the paper makes views.
        separable (`bool`): whether a batch's loss is the mean of its parts' losses, so that gradients may be
            accumulated over parts.
        model (`transformers.PreTrainedModel`): what is trained, or the part of it that has a configuration.
    """

    augmentation: ClassVar[Augmentation] = Augmentation()
    separable: ClassVar[bool] = True
    model: PreTrainedModel

    @classmethod
    @abstractmethod
    def from_config(cls, config: PretrainConfig, attn_implementation: str) -> Objective:
        """The objective with a new model or a checkpoint's, as the configuration says."""

    @abstractmethod
    def forward(self, *views: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        The loss of this process's part of the batch; the mean over processes is the loss of the step.

        Args:
            views (`torch.Tensor` of shape `(B, 3, T, T)`): `augmentation.views` of each image, normalised.
            noise (`torch.Tensor` of shape `(B, L)`): a random number from 0 to 1 for each patch.
        """

    @abstractmethod
    def backbone(self) -> ViTModel:
        """The encoder as a plain `ViTModel` without pooling layer, in evaluation mode."""

    def save(self, folder: Path, processor: ImageProcessingMixin) -> None:
        """Write `backbone/` with its image processor into `folder`; an objective adds what else it has."""
        save_model(self.backbone(), processor, folder / "backbone")


def save_model(model: PreTrainedModel, processor: ImageProcessingMixin, folder: Path) -> None:
    """
    Save beside the folder's files and move them in, so that no file is ever half-written, also by a power cut.

    Weights get the mode that other files have: safetensors lets their owner alone read them.
    """
    unfinished = folder / ".unfinished"
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    mode = (unfinished / CONFIG_NAME).stat().st_mode
    for path in sorted(unfinished.iterdir()):
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, folder / path.name)
    unfinished.rmdir()
