"""
Masked autoencoding (He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022): the model and its loss.

A share `mask_ratio` of an image's `L` patches is hidden. The encoder sees the visible ones, the decoder sees their
codes and one learned token for each hidden patch, and the loss is the squared error over the hidden patches alone:

    loss = sum_i m_i ||y_i - f(x, m)_i||^2 / D  /  sum_i m_i

where `y_i` is patch `i`'s `D` pixel values, made zero-mean and unit-variance within the patch if `norm_pix_loss`.

Shapes: `B` images, `L` patches (tokens), `D` values in a patch (patch_size^2 * 3), `W` width of the transformer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from optidel_hf.errors import UserError


class MaskedAutoencoding(nn.Module):
    """
    A masked autoencoder and its loss.

    Args:
        model (`ViTMAEForPreTraining`):
            Its configuration says how much is masked and whether targets are normalised patch by patch.
    """

    def __init__(self, model: ViTMAEForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): normalised images.
            noise (`torch.Tensor` of shape `(B, L)`): the patches with the smallest values stay visible.

        Returns:
            `torch.Tensor`: the mean squared error over the hidden patches, a float32 scalar.
        """
        encoded = self.model.vit(pixel_values, noise=noise)
        predicted = self.model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits.float()  # (B, L, D)
        errors = (predicted - self.target(pixel_values)).square().mean(dim=-1)  # (B, L)
        return (errors * encoded.mask).sum() / encoded.mask.sum()

    def target(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The values `(B, L, D)` to be predicted: the patches, normalised one by one if `norm_pix_loss`."""
        patches = self.model.patchify(pixel_values)
        if not self.model.config.norm_pix_loss:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


def build_mae(
    checkpoint: str | None = None,
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
        checkpoint (`str`, *optional*):
            Hub id or folder of a ViT-MAE with its decoder. Without one the model is new.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Share of the patches that are hidden (the paper's).
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Whether a patch's target is normalised by its own mean and variance.
        attn_implementation (`str`, *optional*, defaults to `"eager"`):
            `"eager"` is the fastest on CPUs in bfloat16 and equal in float32; `"sdpa"` is for GPUs.
        seed (`int`, *optional*, defaults to 0):
            Seed of a new model's weights; the global generator is left as it was.
        sizes (`int`):
            Fields of `ViTMAEConfig` (`image_size`, `hidden_size`, ...) of a new model; a checkpoint has its own.

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
        return load_mae(checkpoint, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **options))
        _initialise(model)
    return _freeze_positions(model)


def load_mae(checkpoint: str, revision: str | None = None, **options: Any) -> ViTMAEForPreTraining:
    """
    Load a masked autoencoder with its decoder, in float32, from safetensors only.

    Args:
        checkpoint (`str`): Hub id or folder.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        options (`Any`): fields of its configuration to set anew, such as `norm_pix_loss`.

    Raises:
        `UserError`: if the checkpoint cannot be found, is another architecture, or lacks weights.
    """
    try:
        kind = AutoConfig.from_pretrained(checkpoint, revision=revision).model_type
        if kind != "vit_mae":
            raise UserError(f"{checkpoint} is a '{kind}', not a 'vit_mae': give a ViTMAE checkpoint with its decoder.")
        model, report = ViTMAEForPreTraining.from_pretrained(
            checkpoint,
            revision=revision,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{checkpoint} is no folder or Hub id of a ViT-MAE in safetensors: {error}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{checkpoint} lacks {len(missing)} weights of a ViT-MAE, such as {missing[0]}.")
    return _freeze_positions(model)


def backbone(model: ViTMAEForPreTraining) -> ViTModel:
    """
    The encoder as a plain `ViTModel` without pooler: same weights, but it sees every patch, in order.

    A `ViTMAEModel` hides a random share of the tokens at each call and so is no feature extractor.
    """
    config = ViTConfig(**{name: getattr(model.config, name) for name in _SHARED_FIELDS})
    vit = ViTModel(config, add_pooling_layer=False)
    vit.load_state_dict(model.vit.state_dict())
    return vit.eval()


def position_tables(model: ViTMAEForPreTraining) -> tuple[nn.Parameter, nn.Parameter]:
    """The fixed position tables `(1, 1 + L, W)` of encoder and decoder."""
    return model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """
    The paper's fixed position table for a square grid of patches, row by row, behind a zero row for the class token.

    One position is `[sin x, cos x, sin y, cos y]`, a quarter of the width each, at frequencies 10000^(-4k/width). The
    column comes first, as in the authors' code: published weights rely on it.

    Args:
        grid (`int`): patches along a side.
        width (`int`): length of a row, a multiple of 4.

    Returns:
        `torch.Tensor` of shape `(1 + grid * grid, width)`.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    places = torch.arange(grid, dtype=torch.float64)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    x, y = (axis.flatten().outer(frequencies) for axis in (columns, rows))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])


_SHARED_FIELDS = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "qkv_bias",
)


@torch.no_grad()
def _initialise(model: ViTMAEForPreTraining) -> None:
    """
    Initialise as the paper does (appendix A.1), whatever transformers left in the model.

    Several releases return new models whose position tables and tokens are all zero: such a model cannot tell where a
    patch lies. Their N(0, 0.02) for the linear layers is too narrow for small models: 300 steps on gradients end
    at a loss of 0.15 at width 32, and at 0.014 to 0.018 from Xavier's spread. At width 192 the former is better by 4 %
    after 100 steps on real frames, which is no reason to leave the paper.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    grid = model.config.image_size // model.config.patch_size
    for table in position_tables(model):
        table.copy_(sincos_positions(grid, table.shape[-1]))
    projection = model.vit.embeddings.patch_embeddings.projection
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    nn.init.normal_(model.vit.embeddings.cls_token, std=0.02)
    nn.init.normal_(model.decoder.mask_token, std=0.02)


def _freeze_positions(model: ViTMAEForPreTraining) -> ViTMAEForPreTraining:
    """The tables are constants (the paper's appendix A.1), yet `from_pretrained` returns them as trainable."""
    for table in position_tables(model):
        table.requires_grad_(False)
    return model
