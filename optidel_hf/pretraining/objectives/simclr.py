"""
SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020): two views of
an image are drawn together and pushed away from all other views of the batch.

With `h = f(x)` the encoder's class token and `z = g(h) = W2 relu(W1 h)` its projection (equation in section 2.1),

    l(i, j) = -log  exp(sim(z_i, z_j) / t)  /  sum_{k != i} exp(sim(z_i, z_k) / t)          (equation 1)

is averaged over all views `i`, `j` being the other view of the same image, `sim` the cosine and `t` the temperature.
The batch is the global one: projections are gathered over the processes, and gradients flow back through that.

Shapes: `B` images on this process, `R` processes, `W` width of the transformer, `P` width of a projection.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import ViTModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import CONFIG_NAME

from optidel_hf.pretraining.draws import Augmentation
from optidel_hf.pretraining.objectives.objective import Objective
from optidel_hf.pretraining.objectives.vit import build_vit, seeded


if TYPE_CHECKING:
    from optidel_hf.pretraining.config import PretrainConfig


class SimCLR(Objective):
    """
    A ViT with a projection head, and their contrastive loss.

    Args:
        model (`ViTModel`): the encoder, without pooling layer.
        temperature (`float`, *optional*, defaults to 0.1): the paper's for ImageNet.
        projection_size (`int`, *optional*, defaults to 128): width of a projection (the paper's).
    """

    augmentation = Augmentation(views=2, min_scale=0.08, jitter=1.0, grey=0.2, blur=0.5)  # appendix A
    separable = False  # a part of the batch has fewer negatives

    def __init__(self, model: ViTModel, temperature: float = 0.1, projection_size: int = 128) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        width = model.config.hidden_size
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_size, bias=False))

    @classmethod
    def from_config(cls, config: PretrainConfig, attn_implementation: str) -> SimCLR:
        model = build_vit(
            config.model,
            config.seed,
            revision=config.model_revision,
            attn_implementation=attn_implementation,
            **config.sizes(),
        )
        with seeded(config.seed):
            return cls(model, config.temperature, config.projection_size)

    def forward(self, first: torch.Tensor, second: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """The contrastive loss of two views `(B, 3, T, T)` of each image; nothing is masked, so `noise` is unused."""
        h = self.model(torch.cat([first, second])).last_hidden_state[:, 0]  # (2B, W)
        return nt_xent(self.head(h).float(), self.temperature)

    def backbone(self) -> ViTModel:
        """The encoder itself: the projection head is left out, as what it discards is wanted downstream."""
        return copy.deepcopy(self.model).eval()

    def save(self, folder: Path, processor: ImageProcessingMixin) -> None:
        """Write the head's weights as `projection_head.safetensors` beside `backbone/`, to go on training with."""
        super().save(folder, processor)
        unfinished = folder / ".projection_head.safetensors"
        save_file({name: weight.cpu().contiguous() for name, weight in self.head.state_dict().items()}, unfinished)
        shutil.copymode(folder / "backbone" / CONFIG_NAME, unfinished)
        os.replace(unfinished, folder / "projection_head.safetensors")


def nt_xent(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    The normalised temperature-scaled cross-entropy (equation 1) of this process's views against everybody's.

    Args:
        projections (`torch.Tensor` of shape `(2B, P)`): float32, the first views and then the second ones.
        temperature (`float`): divides the cosines.

    Returns:
        `torch.Tensor`: the mean over this process's `2B` views, a float32 scalar.
    """
    count = len(projections)
    rank = dist.get_rank() if dist.is_initialized() else 0
    own = torch.arange(count, device=projections.device)
    with torch.autocast(projections.device.type, enabled=False):
        z = functional.normalize(projections, dim=-1)
        similarity = z @ gather(z).T / temperature  # (2B, R 2B)
    similarity = similarity.index_put((own, rank * count + own), similarity.new_full((), float("-inf")))  # k != i
    other = rank * count + (own + count // 2) % count
    return functional.cross_entropy(similarity, other)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """All processes' rows `(R n, P)`, this one's `(n, P)` in the order of ranks, with their gradients."""
    return _Gather.apply(rows) if dist.is_initialized() and dist.get_world_size() > 1 else rows


class _Gather(torch.autograd.Function):
    """Everybody's losses depend on a process's rows, so their gradients are summed over all."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
