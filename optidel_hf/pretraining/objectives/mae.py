"""
Masked autoencoding (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022): the model and its loss.

A share `mask_ratio` of an image's `L` patches is hidden. The encoder sees the visible ones, the decoder sees their
codes and one learned token for each hidden patch, and the loss is the squared error over the hidden patches alone:

    loss = sum_i m_i ||y_i - f(x, m)_i||^2 / D  /  sum_i m_i

where `y_i` is patch `i`'s `D` pixel values, made zero-mean and unit-variance within the patch if `norm_pix_loss`.

Shapes: `B` images, `L` patches (tokens), `D` values in a patch (patch_size^2 * 3), `W` width of the transformer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel
from transformers.image_processing_base import ImageProcessingMixin

from optidel_hf.pretraining.objectives.objective import Objective, save_model
from optidel_hf.pretraining.objectives.vit import VIT_FIELDS, initialise, load, seeded


if TYPE_CHECKING:
    from optidel_hf.pretraining.config import PretrainConfig


class MaskedAutoencoding(Objective):
    """
    A masked autoencoder and its loss.

    Args:
        model (`ViTMAEForPreTraining`):
            Its configuration says how much is masked and whether targets are normalised patch by patch.
    """

    def __init__(self, model: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_config(cls, config: PretrainConfig, attn_implementation: str) -> MaskedAutoencoding:
        return cls(
            build_mae(
                config.model,
                config.model_revision,
                mask_ratio=config.mask_ratio,
                norm_pix_loss=config.norm_pix_loss,
                attn_implementation=attn_implementation,
                seed=config.seed,
                **config.sizes(),
            )
        )

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The mean squared error over the hidden patches; those with the smallest `noise` stay visible."""
        encoded = self.model.vit(pixel_values, noise=noise)
        predicted = self.model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits.float()  # (B, L, D)
        errors = (predicted - self.target(pixel_values)).square().mean(dim=-1)  # (B, L)
        return (errors * encoded.mask).sum() / encoded.mask.sum()

    def target(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The values `(B, L, D)` to be predicted: the patches, normalised one by one if `norm_pix_loss`."""
        patches = self.model.patchify(pixel_values)
        if not self.model.config.norm_pix_loss:
            return patches
        centred = patches - patches.mean(dim=-1, keepdim=True)
        variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)  # var_mean is slow on CPUs
        return centred / (variance + 1e-6).sqrt()

    def backbone(self) -> ViTModel:
        """
        Same weights, but it sees every patch, in order.

        A `ViTMAEModel` hides a random share of the tokens at each call and so is no feature extractor.
        """
        config = ViTConfig(**{name: getattr(self.model.config, name) for name in VIT_FIELDS})
        vit = ViTModel(config, add_pooling_layer=False)
        vit.load_state_dict(self.model.vit.state_dict())
        return vit.eval()

    def save(self, folder: Path, processor: ImageProcessingMixin) -> None:
        """Write the autoencoder beside its backbone: `ViTMAEForPreTraining.from_pretrained(folder)` opens it."""
        super().save(folder, processor)
        save_model(self.model, processor, folder)


def build_mae(
    checkpoint: str | None = None,
    revision: str | None = None,
    *,
    mask_ratio: float = 0.75,
    norm_pix_loss: bool = True,
    attn_implementation: str = "eager",
    seed: int = 0,
    **sizes: int,
) -> ViTMAEForPreTraining:
    """
    Make a masked autoencoder from sizes, or load one.

    Args:
        checkpoint (`str`, *optional*): Hub id or folder of a ViT-MAE with its decoder; without one the model is new.
        revision (`str`, *optional*): branch, tag or commit of a checkpoint on the Hub.
        mask_ratio (`float`, *optional*, defaults to 0.75): share of the patches that are hidden (the paper's).
        norm_pix_loss (`bool`, *optional*, defaults to `True`): normalise a patch's target by its mean and variance.
        attn_implementation (`str`, *optional*, defaults to `"eager"`):
            `"eager"` is the fastest on CPUs in bfloat16 and equal in float32; `"sdpa"` is for GPUs.
        seed (`int`, *optional*, defaults to 0): seed of a new model's weights.
        sizes (`int`): fields of `ViTMAEConfig` (`image_size`, ...) of a new model; a checkpoint has its own.

    Returns:
        `ViTMAEForPreTraining` in float32, its two position tables frozen.

    Raises:
        `UserError`: if the checkpoint cannot be found, is another architecture, or lacks weights.
    """
    options: dict[str, Any] = {
        "mask_ratio": mask_ratio,
        "norm_pix_loss": norm_pix_loss,
        "attn_implementation": attn_implementation,
    }
    if checkpoint is not None:
        return load_mae(checkpoint, revision, **options)
    with seeded(seed):
        model = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **options))
        initialise(model, model.vit.embeddings, *position_tables(model))
        nn.init.normal_(model.decoder.mask_token, std=0.02)
    return _freeze_positions(model)


def load_mae(checkpoint: str, revision: str | None = None, **options: Any) -> ViTMAEForPreTraining:
    """A masked autoencoder with its decoder; `options` are fields of its configuration to set anew."""
    what = "a ViT-MAE with its decoder"
    return _freeze_positions(load(ViTMAEForPreTraining, checkpoint, ["vit_mae"], what, revision, **options))


def position_tables(model: ViTMAEForPreTraining) -> tuple[nn.Parameter, nn.Parameter]:
    """The fixed position tables `(1, 1 + L, W)` of encoder and decoder."""
    return model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed


def _freeze_positions(model: ViTMAEForPreTraining) -> ViTMAEForPreTraining:
    """The tables are constants (the paper's appendix A.1), yet `from_pretrained` returns them as trainable."""
    for table in position_tables(model):
        table.requires_grad_(False)
    return model
