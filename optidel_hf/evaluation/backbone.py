"""
The encoders that are judged: a ViT from a folder or the Hub, or a fresh one of the same architecture.

A MAE checkpoint loads into `ViTModel` exactly (its decoder is left out); through `ViTMAEModel` it would hide a random
three quarters of the tokens at every call.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import ViTConfig, ViTModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD
from transformers.utils import CONFIG_NAME

from optidel_hf.checkpoints import locate_file, quiet_about_unused_weights, refuse_pickle
from optidel_hf.errors import UserError
from optidel_hf.pretraining.objectives.vit import initialise, seeded


logger = logging.getLogger(__name__)


@dataclass
class Backbone:
    """
    An encoder with the normalisation it was trained under.

    Args:
        encoder (`transformers.ViTModel`): float32, without pooler.
        mean (`tuple[float, ...]`): mean per channel of pixels in [0, 1].
        std (`tuple[float, ...]`): standard deviation per channel.
    """

    encoder: ViTModel
    mean: tuple[float, ...] = tuple(MEAN)
    std: tuple[float, ...] = tuple(STD)

    def fingerprint(self) -> str:
        """The first 16 hex digits of the SHA-256 of all weights and of the normalisation."""
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        for name, tensor in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()[:16]


def load_backbone(model: str) -> Backbone:
    """
    Load an encoder in float32 from safetensors.

    Args:
        model (`str`):
            A local folder or Hub id of a `ViTModel` or `ViTMAEForPreTraining` checkpoint. Where it has a subfolder
            `backbone/`, that one is taken.

    Returns:
        [`Backbone`], in evaluation mode.

    Raises:
        `UserError`: if there is no such model, or if its weights are not those of a ViT.
    """
    subfolder = "backbone" if locate_file(model, f"backbone/{CONFIG_NAME}") else ""
    if Path(model).is_dir() and not (Path(model) / subfolder / CONFIG_NAME).exists():
        raise UserError(f"'{model}' holds no model: there is no {CONFIG_NAME}, which `save_pretrained` writes.")
    try:
        refuse_pickle(model, subfolder=subfolder)
        with quiet_about_unused_weights():
            encoder, report = ViTModel.from_pretrained(
                model,
                subfolder=subfolder,
                add_pooling_layer=False,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
            )
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"No ViT can be loaded from '{model}': {reason} Give a local folder or a Hub id.") from None
    if report["missing_keys"]:
        raise UserError(
            f"'{model}' is no ViT or ViT-MAE checkpoint: {len(report['missing_keys'])} weights of a ViT are not in "
            f"it, '{sorted(report['missing_keys'])[0]}' for one."
        )
    return Backbone(encoder.eval(), *_normalisation(model, subfolder))


def fresh_backbone(like: Backbone, seed: int) -> Backbone:
    """
    An untrained encoder with the architecture and normalisation of another: the arm without pre-training.

    It starts as pre-training starts a new one ([`initialise`]), so that it differs from the other arms in nothing but
    the training.

    Args:
        like ([`Backbone`]): gives architecture and normalisation.
        seed (`int`): seed of the weights.
    """
    config = ViTConfig.from_dict(like.encoder.config.to_dict())
    with seeded(seed):
        encoder = ViTModel(config, add_pooling_layer=False)
        initialise(encoder, encoder.embeddings, encoder.embeddings.position_embeddings)
    return Backbone(encoder.eval(), like.mean, like.std)


def _normalisation(model: str, subfolder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(model, subfolder=subfolder)
    except OSError:
        logger.warning("%s has no preprocessor_config.json: normalising by ImageNet's mean and deviation", model)
        return tuple(MEAN), tuple(STD)
    return (
        tuple(processor.get("image_mean", MEAN)),
        tuple(processor.get("image_std", STD)),
    )
