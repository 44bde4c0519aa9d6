"""What the objectives' ViTs have in common: how they begin, how a checkpoint is opened, which sizes they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedModel, ViTConfig, ViTModel

from optidel_hf.checkpoints import quiet_about_unused_weights, refuse_pickle
from optidel_hf.errors import UserError


Model = TypeVar("Model", bound=PreTrainedModel)

VIT_FIELDS = (
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


def sincos_positions(grid: int, width: int) -> torch.Tensor:
    """
    MAE's fixed position table for a square grid of patches, row by row, behind a zero row for the class token.

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


@torch.no_grad()
def initialise(model: PreTrainedModel, embeddings: Any, *tables: nn.Parameter) -> None:
    """
    Initialise a ViT as MAE does (He et al. 2022, appendix A.1), whatever transformers left in it.

    Several releases return new MAE models whose position tables and tokens are all zero: such a model cannot tell
    where a patch lies. Their N(0, 0.02) for the linear layers is too narrow for small models: 300 steps on gradients
    end at a loss of 0.15 at width 32, and at 0.014 to 0.018 from Xavier's spread. At width 192 the former is better by
    4 % after 100 steps on real frames, which is no reason to leave the paper.

    Args:
        model (`transformers.PreTrainedModel`): its linear layers are drawn anew.
        embeddings (`torch.nn.Module`): the encoder's, with `cls_token` and `patch_embeddings`.
        tables (`torch.nn.Parameter` of shape `(1, 1 + L, W)`): position tables to fill.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    grid = model.config.image_size // model.config.patch_size
    for table in tables:
        table.copy_(sincos_positions(grid, table.shape[-1]))
    nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))
    nn.init.normal_(embeddings.cls_token, std=0.02)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw new weights from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_vit(
    checkpoint: str | None, seed: int, attn_implementation: str, revision: str | None = None, **sizes: int
) -> ViTModel:
    """
    Make an encoder from sizes, or load one: a ViT, or the encoder of a ViT-MAE. It has no pooling layer.

    Args:
        checkpoint (`str`, *optional*): Hub id or folder; `None` for a new encoder.
        seed (`int`): seed of a new encoder's weights.
        attn_implementation (`str`): `"eager"` or `"sdpa"`.
        revision (`str`, *optional*): branch, tag or commit of a checkpoint on the Hub.
        sizes (`int`): fields of `ViTConfig` of a new encoder; others, such as a decoder's, are passed over.

    Returns:
        `ViTModel` in float32, its position table frozen as MAE's is.

    Raises:
        `UserError`: if the checkpoint cannot be found, is another architecture, or lacks weights.
    """
    options: dict[str, Any] = {"add_pooling_layer": False, "attn_implementation": attn_implementation}
    if checkpoint is not None:
        model = load(ViTModel, checkpoint, ["vit", "vit_mae"], "a ViT", revision, **options)
    else:
        config = ViTConfig(**{name: sizes[name] for name in VIT_FIELDS if name in sizes})
        config._attn_implementation = attn_implementation
        with seeded(seed):
            model = ViTModel(config, add_pooling_layer=False)
            initialise(model, model.embeddings, model.embeddings.position_embeddings)
    model.embeddings.position_embeddings.requires_grad_(False)
    return model


def load(
    architecture: type[Model],
    checkpoint: str,
    kinds: Sequence[str],
    what: str,
    revision: str | None = None,
    **options: Any,
) -> Model:
    """
    Load a checkpoint in float32, from safetensors only.

    Args:
        architecture (`type`): class of the model.
        checkpoint (`str`): Hub id or folder.
        kinds (`Sequence[str]`): the `model_type`s that will do.
        what (`str`): what is asked for, as messages call it.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        options (`Any`): further arguments of `from_pretrained`.

    Raises:
        `UserError`: if the checkpoint cannot be found, is another architecture, or lacks weights.
    """
    try:
        kind = AutoConfig.from_pretrained(checkpoint, revision=revision).model_type
        if kind not in kinds:
            raise UserError(f"{checkpoint} is a '{kind}', not a '{kinds[0]}': give {what}.")
        refuse_pickle(checkpoint, revision)
        with quiet_about_unused_weights():
            model, report = architecture.from_pretrained(
                checkpoint,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{checkpoint} is no folder or Hub id of {what} in safetensors: {error}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{checkpoint} lacks {len(missing)} weights of {what}, such as {missing[0]}.")
    return model
