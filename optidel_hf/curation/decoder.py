"""
SAM's mask decoder for many points of one image: what points share is computed once, the rest as a low-rank update.

The stock decoder (Kirillov et al. 2023, arXiv 2304.02643, appendix A) repeats the `L` image tokens for every point and
projects them anew in every layer. But a layer changes them only by its image-to-token attention, whose output is a
mix of `H T` vectors a point, and by a LayerNorm. So the image tokens of point `p` are, after any number of layers,

    tokens[p, l] = scale[p, l] * (shared[l] + sum_r mix[p, r, l] * basis[p, r]) + shift

with `shared` and `shift` the same for all points, and `H T` more basis vectors a layer. All that is asked of image
tokens is linear in them (keys, queries, values, the first upscaling) or quadratic (the LayerNorm's variance): a term
of `shared` that is projected once an image, and a product with `mix`. The tokens themselves are never computed. This
is exact, up to rounding. Masks are upscaled only for points with a predicted IoU that passes the filter.

Shapes: `P` points, `T` tokens a point (IoU, masks, prompt), `D` width of the decoder, `H` heads of width `c`,
`L = g * g` image tokens, `R` basis vectors a point, `K` masks a point, `N` masks that pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel


class Decoded(NamedTuple):
    """The masks of some points that pass the predicted-IoU filter, in order of points."""

    logits: Tensor  # (N, 4g, 4g)
    ious: Tensor  # (N,) predicted
    points: Tensor  # (N,) index of the point


class PointDecoder:
    """
    Masks for any number of points of one image, from a `SamModel`'s own weights.

    Gives what `model(image_embeddings=..., input_points=...)` gives, one foreground point a prompt and all multimask
    outputs, to about 1e-5 in float32.

    Args:
        model (`SamModel`): in evaluation mode; any weights, any number of decoder layers.
        embedding (`Tensor` of shape `(D, g, g)`): the image's, from `model.get_image_embeddings`.
        compiled (`bool`, *optional*, defaults to `False`): through `torch.compile`: a slow start once a process.

    Example:

    ```python
    decoder = PointDecoder(model, model.get_image_embeddings(pixel_values)[0])
    decoded = decoder(torch.tensor([[512.0, 300.0], [64.0, 80.0]]), least_iou=0.88)
    ```
    """

    def __init__(self, model: SamModel, embedding: Tensor, compiled: bool = False) -> None:
        self.steps = _compiled_steps() if compiled else (PointDecoder._transform, PointDecoder._masks)
        self.prompt_encoder, self.decoder = model.prompt_encoder, model.mask_decoder
        self.grid = embedding.shape[-1]
        positions = _as_tokens(model.get_image_wide_positional_embeddings()[0])
        no_mask = self.prompt_encoder.no_mask_embed.weight[0]
        stage = _Stage(_as_tokens(embedding) + no_mask, torch.zeros_like(no_mask), [])
        self.layers = []
        for layer in self.decoder.transformer.layers:
            self.layers.append(_Layer(layer, stage, positions))
            stage = self.layers[-1].norm.after
        self.final = _TokenToImage(self.decoder.transformer.final_attn_token_to_image, stage, positions)
        self.upscaling = _Projection(stage, *_as_linear(self.decoder.upscale_conv1), heads=1)

    def __call__(self, points: Tensor, least_iou: float = float("-inf")) -> Decoded:
        """
        Decode `points`.

        Args:
            points (`Tensor` of shape `(P, 2)`): x and y in pixels of SAM's input.
            least_iou (`float`, *optional*, defaults to minus infinity): a mask must be predicted a greater IoU.
        """
        transform, masks = self.steps
        tokens, image = transform(self, points)
        ious = self.decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()  # (P, K), without the single-mask output
        point, mask = (ious > least_iou).nonzero(as_tuple=True)
        chosen, place = point.unique(return_inverse=True)
        logits = masks(self, tokens[chosen], image.of(chosen))
        return Decoded(logits[place, mask], ious[point, mask], point)

    def _transform(self, points: Tensor) -> tuple[Tensor, _ImageTokens]:
        """The two-way transformer: the tokens `(P, T, D)` and the image tokens of every point."""
        labels = torch.ones(1, len(points), 1, dtype=torch.int, device=points.device)
        sparse, _ = self.prompt_encoder(points[None, :, None], labels, None, None)
        output = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        prompt = torch.cat([output.expand(len(points), -1, -1), sparse[0].to(output.dtype)], dim=1)
        tokens, image = prompt, _ImageTokens.same_for_all(prompt, self.grid**2)
        for layer in self.layers:
            tokens, image = layer(tokens, prompt, image)
        tokens = tokens + self.final(tokens + prompt, image)
        return self.decoder.transformer.layer_norm_final_attn(tokens), image

    def _masks(self, tokens: Tensor, image: _ImageTokens) -> Tensor:
        """Image tokens upscaled fourfold, times the hypernetworks' outputs: logits `(P, K, 4g, 4g)`."""
        decoder = self.decoder
        networks = list(decoder.output_hypernetworks_mlps)[1:]
        weights = torch.stack([network(tokens[:, 2 + k]) for k, network in enumerate(networks)], dim=1)
        norm = decoder.upscale_layer_norm
        # A transposed convolution of kernel and stride 2 is a linear map of a token to 2 x 2 pixels.
        quarters = image.project(self.upscaling).unflatten(-1, (4, -1))  # (P, L, 4, D / 4)
        quarters = F.layer_norm(quarters, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        pixels = F.linear(decoder.activation(quarters), *_as_linear(decoder.upscale_conv2))
        pixels = decoder.activation(pixels).unflatten(-1, (4, -1)).flatten(1, 3)  # (P, 16 L, D / 8)
        return _as_image(weights @ pixels.transpose(1, 2), self.grid)


@lru_cache(maxsize=1)
def _compiled_steps() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two steps of a decoder compiled, for those of all images: what is compiled for one serves the next."""
    return torch.compile(PointDecoder._transform), torch.compile(PointDecoder._masks)


class _Stage(NamedTuple):
    """What the image tokens of all points have in common between two LayerNorms."""

    shared: Tensor  # (L, D)
    shift: Tensor  # (D,)
    frames: list[Tensor]  # one a layer so far, (H, c + 1, D): the map from a point's values to its basis


class _Projection:
    """
    A linear map of the image tokens, split into heads: the terms that do not depend on the point.

    Args:
        stage ([`_Stage`]): of the image tokens.
        weight (`Tensor` of shape `(E, D)`).
        bias (`Tensor` of shape `(E,)`).
        heads (`int`): among which the `E` outputs are divided.
        positions (`Tensor`, *optional*, defaults to 0): positional encoding `(L, D)` added to the tokens.
    """

    def __init__(
        self, stage: _Stage, weight: Tensor, bias: Tensor, heads: int, positions: Tensor | float = 0.0
    ) -> None:
        self.shared = _by_head(F.linear(stage.shared, weight), heads)  # (H, L, E / H)
        self.fixed = _by_head(F.linear(torch.atleast_2d(stage.shift + positions), weight, bias), heads)
        self.frames = [F.linear(frame, weight) for frame in stage.frames]
        self.first = self.shared + self.fixed  # the whole, while the image tokens are the same for all points


class _Norm:
    """
    The LayerNorm after an image-to-token attention: what its statistics and its result share among points.

    Args:
        norm (`nn.LayerNorm`).
        attention (`SamAttention`): whose output is added before the norm.
        stage ([`_Stage`]): before both.

    Attributes:
        after ([`_Stage`]): after both.
    """

    def __init__(self, norm: nn.LayerNorm, attention: Any, stage: _Stage) -> None:
        heads = attention.num_attention_heads
        # The weights of a head sum to 1, so a constant can ride on a value that is 1 for every token.
        constant = ((attention.out_proj.bias + stage.shift) / heads).expand(heads, 1, -1)
        added = attention.out_proj.weight.T.unflatten(0, (heads, -1))
        frames = [*stage.frames, torch.cat([added, constant], dim=1)]
        shared, *frames = (part - part.mean(-1, keepdim=True) for part in (stage.shared, *frames))
        self.squares = shared.float().square().sum(-1)  # (L,)
        self.products = [2 * frame @ shared.T for frame in frames]  # (H, c + 1, L) each
        self.frames = frames
        self.eps, self.width = norm.eps, shared.shape[-1]
        self.after = _Stage(shared * norm.weight, norm.bias, [frame * norm.weight for frame in frames])


class _ImageTokens(NamedTuple):
    """The image tokens of `P` points after some layers: what depends on the point (see the top of the file)."""

    scale: Tensor  # (P, L)
    mix: Tensor  # (P, R a layer, L)
    values: list[Tensor]  # one a layer so far, (P, H, T, c + 1): `basis` is these times a stage's frames

    @classmethod
    def same_for_all(cls, prompt: Tensor, length: int) -> _ImageTokens:
        """The tokens before the first layer; `prompt` says how many points, on which device."""
        return cls(prompt.new_ones(len(prompt), length), prompt.new_empty(len(prompt), 0, length), [])

    def of(self, points: Tensor) -> _ImageTokens:
        """Those of some points only."""
        return _ImageTokens(self.scale[points], self.mix[points], [values[points] for values in self.values])

    def basis(self, frames: list[Tensor]) -> Tensor:
        """`(P, R, E)` for frames `(H, c + 1, E)`."""
        parts = [torch.einsum("phtc,hce->phte", *pair).flatten(1, 2) for pair in zip(self.values, frames)]
        return torch.cat(parts, dim=1)

    def score(self, tokens: Tensor, projection: _Projection) -> Tensor:
        """Dot products of `(P, H, T, c)` with the projected image tokens: `(P, H, T, L)`."""
        if not self.values:
            return _dot(tokens, projection.first)
        basis = self.basis(projection.frames).unflatten(-1, (tokens.shape[1], -1))
        mixed = torch.einsum("phtc,prhc->phtr", tokens, basis).flatten(1, 2) @ self.mix
        scaled = mixed.unflatten(1, tokens.shape[1:3]).add_(_dot(tokens, projection.shared))
        return scaled.mul_(self.scale[:, None, None]).add_(_dot(tokens, projection.fixed))

    def gather(self, weights: Tensor, projection: _Projection) -> Tensor:
        """Means of the projected image tokens under weights `(P, H, T, L)` that sum to 1: `(P, H, T, c)`."""
        if not self.values:
            return torch.einsum("phtl,hlc->phtc", weights, projection.first)
        weights = weights * self.scale[:, None, None]
        basis = self.basis(projection.frames).unflatten(-1, (weights.shape[1], -1))
        mixed = (weights.flatten(1, 2) @ self.mix.transpose(1, 2)).unflatten(1, weights.shape[1:3])
        shared = torch.einsum("phtl,hlc->phtc", weights, projection.shared)
        return shared + torch.einsum("phtr,prhc->phtc", mixed, basis) + projection.fixed

    def project(self, projection: _Projection) -> Tensor:
        """The projected image tokens themselves, of a projection with one head: `(P, L, E)`."""
        mixed = self.mix.transpose(1, 2) @ self.basis(projection.frames)
        return torch.addcmul(projection.fixed, mixed.add_(projection.shared), self.scale.unsqueeze(-1))

    def attend(self, weights: Tensor, values: Tensor, norm: _Norm) -> _ImageTokens:
        """The image tokens plus the weighted values `(P, H, T, c)`, normalised. Weights `(P, H, T, L)` sum to 1."""
        mix = torch.cat([self.mix, (weights / self.scale[:, None, None]).flatten(1, 2)], dim=1)
        grown = _ImageTokens(self.scale, mix, [*self.values, F.pad(values, (0, 1), value=1.0)])
        basis = grown.basis(norm.frames)
        # |shared + mix basis|^2 = |shared|^2 + mix (2 basis shared + basis basis^T mix)
        products = torch.baddbmm(grown.basis(norm.products), basis @ basis.transpose(1, 2), mix)
        squares = norm.squares + products.mul_(mix).sum(1, dtype=torch.float32)
        variance = self.scale.square() * squares / norm.width
        scale = (self.scale * (variance + norm.eps).rsqrt()).to(mix.dtype)
        return _ImageTokens(scale, grown.mix, grown.values)


class _TokenToImage:
    """Attention from tokens to image tokens."""

    def __init__(self, attention: Any, stage: _Stage, positions: Tensor) -> None:
        self.attention, self.heads = attention, attention.num_attention_heads
        self.keys = _projection(attention.k_proj, stage, self.heads, positions)
        self.values = _projection(attention.v_proj, stage, self.heads)

    def __call__(self, queries: Tensor, image: _ImageTokens) -> Tensor:
        """`(P, T, D)` to `(P, T, D)`."""
        queries = _by_head(self.attention.q_proj(queries), self.heads) * self.attention.scaling
        weights = image.score(queries, self.keys).softmax(-1)
        return self.attention.out_proj(image.gather(weights, self.values).transpose(1, 2).flatten(2))


class _Layer:
    """One two-way layer, after transformers' `SamTwoWayAttentionBlock.forward`."""

    def __init__(self, layer: Any, stage: _Stage, positions: Tensor) -> None:
        self.layer, self.attention = layer, layer.cross_attn_image_to_token
        self.to_image = _TokenToImage(layer.cross_attn_token_to_image, stage, positions)
        self.queries = _projection(self.attention.q_proj, stage, self.attention.num_attention_heads, positions)
        self.norm = _Norm(layer.layer_norm4, self.attention, stage)

    def __call__(self, tokens: Tensor, prompt: Tensor, image: _ImageTokens) -> tuple[Tensor, _ImageTokens]:
        """Tokens `(P, T, D)` and image tokens after the layer; `prompt` serves as the tokens' positions."""
        layer, heads = self.layer, self.attention.num_attention_heads
        tokens = layer.layer_norm1(self._mix_tokens(tokens, prompt))
        tokens = layer.layer_norm2(tokens + self.to_image(tokens + prompt, image))
        tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
        keys = _by_head(self.attention.k_proj(tokens + prompt), heads) * self.attention.scaling
        weights = image.score(keys, self.queries).softmax(2)  # over the tokens: here the image asks
        return tokens, image.attend(weights, _by_head(self.attention.v_proj(tokens), heads), self.norm)

    def _mix_tokens(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        placed = (tokens if self.layer.skip_first_layer_pe else tokens + prompt).unsqueeze(0)
        mixed, _ = self.layer.self_attn(query=placed, key=placed, value=tokens.unsqueeze(0))
        return mixed[0] if self.layer.skip_first_layer_pe else tokens + mixed[0]


def _projection(linear: nn.Linear, stage: _Stage, heads: int, positions: Tensor | float = 0.0) -> _Projection:
    return _Projection(stage, linear.weight, linear.bias, heads, positions)


def _dot(tokens: Tensor, image: Tensor) -> Tensor:
    return torch.einsum("phtc,hlc->phtl", tokens, image)


def _by_head(values: Tensor, heads: int) -> Tensor:
    """`(..., L, H c)` to `(..., H, L, c)`."""
    return values.unflatten(-1, (heads, -1)).transpose(-2, -3)


def _as_tokens(image: Tensor) -> Tensor:
    """`(D, g, g)` to `(L, D)`."""
    return image.flatten(1).T


def _as_linear(convolution: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear map from one token to its 2 x 2 pixels, row by row."""
    return convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias.repeat(4)


def _as_image(values: Tensor, grid: int) -> Tensor:
    """`(P, K, 16 L)`, twice 2 x 2 pixels a token, to `(P, K, 4g, 4g)`."""
    tiles = values.unflatten(-1, (grid, grid, 2, 2, 2, 2))
    return tiles.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(*values.shape[:2], 4 * grid, 4 * grid)
