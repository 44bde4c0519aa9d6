"""Training a small `SamModel` from scratch on procedural scenes, with the losses of Segment Anything.

After Kirillov et al. 2023 (arXiv 2304.02643), section 3 and appendix A. For a prompt with mask logits `m_1 .. m_K` and
target mask `t` the loss is `min_k [10 focal(m_k, t) + dice(m_k, t) + s bce(m_k, t)]`, plus twice the squared error of
*every* predicted IoU against the true one. Three in four point prompts lie on an object, the rest anywhere: a point on
no object has no mask to learn, but its K predicted IoUs are pulled to 0, which is what lets automatic mask generation
tell objects from background. `s` rises from 0 to 1 once masks follow objects: the cross-entropy sharpens logits that
are already right; from the start on it would teach that everything is background. An auxiliary affinity loss teaches
the image encoder directly which of its tokens belong to one object.

The learning rate warms up, stays, and decays to 0 at the end. Until the decay begins nothing depends on `steps`, so
that a run that proves too short goes on from its checkpoint as if it had been planned longer.

Shapes: `B` scenes, `P` prompts a scene, `K` masks a prompt, `S` side of the input, `L = S / 4` side of the logits.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from tqdm import tqdm
from transformers import SamConfig, SamModel

from optidel_hf.errors import UserError, changes
from optidel_hf.files import write_text
from optidel_hf.sample.sam_batches import make_batch, scene_pool


logger = logging.getLogger(__name__)


@dataclass
class SamTrainingConfig:
    """Everything that determines the trained weights."""

    output_dir: str = field(
        default="runs/sam-tiny", metadata={"help": "Where the scene cache, checkpoint and log go."}
    )
    start_from: str | None = field(
        default=None, metadata={"help": "Start from this model, exported with --logit_scale 1, and a fresh optimizer."}
    )
    steps: int = field(default=9000, metadata={"help": "Optimisation steps."})
    seed: int = field(default=0, metadata={"help": "Seed of the scenes, the weights and the order."})
    scenes: int = field(
        default=6000, metadata={"help": "Scenes painted once and cached; held-out ones are another series."}
    )
    scenes_per_batch: int = field(default=6, metadata={"help": "Scenes a step."})
    prompts_per_scene: int = field(default=8, metadata={"help": "Prompts a scene and step."})
    learning_rate: float = field(default=6e-4, metadata={"help": "Learning rate of AdamW between warm-up and decay."})
    warmup_steps: int = field(default=100, metadata={"help": "Steps of linear warm-up."})
    decay_share: float = field(default=0.2, metadata={"help": "Last share of the steps: linear decay to 0."})
    sharpen_from: int = field(default=1000, metadata={"help": "Step from which the cross-entropy's weight rises."})
    sharpen_until: int = field(default=3000, metadata={"help": "Step from which the cross-entropy's weight is 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of matrices and kernels."})
    ema_decay: float = field(
        default=0.998, metadata={"help": "Decay of the averaged weights, which are what is exported."}
    )
    image_size: int = field(default=256, metadata={"help": "Side of the input in pixels, a multiple of 16."})
    hidden_size: int = field(default=192, metadata={"help": "Width of the image encoder."})
    hidden_layers: int = field(default=6, metadata={"help": "Layers of the image encoder."})
    decoder_size: int = field(default=128, metadata={"help": "Width of the prompt encoder and the mask decoder."})
    checkpoint_steps: int = field(default=250, metadata={"help": "Steps between checkpoints."})
    bf16: bool = field(default=False, metadata={"help": "Run the forward pass in bfloat16 autocast."})

    def __post_init__(self) -> None:
        if self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of the patch size 16, got {self.image_size}.")
        for name in ("steps", "scenes", "scenes_per_batch", "prompts_per_scene", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def build_sam(config: SamTrainingConfig) -> SamModel:
    """A fresh `SamModel` that can learn.

    transformers initialises a bare `SamModel` for loading, not for training: an image encoder scaled by 1e-10 and
    Fourier features of the wrong scale. Here the encoder gets 0.02, the Fourier features are N(0, 1) and frozen, the
    tokens N(0, 1), and the decoder's layers have torch's own initialisation.
    """
    torch.manual_seed(config.seed)
    width, grid = config.decoder_size, config.image_size // 16
    vision = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.hidden_layers,
        "num_attention_heads": max(1, config.hidden_size // 32),
        "output_channels": width,
        "num_pos_feats": width // 2,
        "image_size": config.image_size,
        "global_attn_indexes": list(range(config.hidden_layers)),
        "use_rel_pos": False,
        "initializer_range": 0.02,
    }
    prompt = {"hidden_size": width, "image_size": config.image_size, "image_embedding_size": grid}
    decoder = {"hidden_size": width, "mlp_dim": 4 * width, "iou_head_hidden_dim": width}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    for module in [*model.mask_decoder.modules(), *model.prompt_encoder.modules()]:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            module.reset_parameters()  # an embedding's own initialisation is N(0, 1)
    nn.init.normal_(model.vision_encoder.pos_embed, std=0.02)
    for features in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        nn.init.normal_(features.positional_embedding).requires_grad_(False)
    model.tie_weights()
    attend_to_the_prompt(model)
    return model


def initial_model(config: SamTrainingConfig) -> SamModel:
    """The model that training begins with: the exported one at `start_from`, or a fresh one."""
    if not config.start_from:
        return build_sam(config)
    try:
        model = SamModel.from_pretrained(config.start_from, dtype="float32", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise UserError(f"--start_from {config.start_from} is no SamModel's folder or Hub id: {error}") from None
    _refuse_other_sizes(model, config)
    for features in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        features.positional_embedding.requires_grad_(False)
    return model


def _refuse_other_sizes(model: SamModel, config: SamTrainingConfig) -> None:
    vision, decoder = model.config.vision_config, model.config.mask_decoder_config
    has = (vision.image_size, vision.hidden_size, vision.num_hidden_layers, decoder.hidden_size)
    for name, size in zip(("image_size", "hidden_size", "hidden_layers", "decoder_size"), has):
        if getattr(config, name) != size:
            raise UserError(f"--start_from {config.start_from} has {name} {size}: give --{name} {size} as well.")


@torch.no_grad()
def attend_to_the_prompt(model: SamModel) -> None:
    """Let cross-attention begin at the prompt: one projection, three times as large, for queries and keys.

    Attention scores are then inner products of Fourier features, largest where token and image position coincide, so
    the masks depend on the point from the first step. The two projections are not tied: training moves them apart.
    """
    transformer = model.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        attention.q_proj.weight.mul_(3)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()


def boxes_of(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Boxes (B, P, 4), xyxy in input pixels, around masks (B, P, L, L), each side moved by up to a tenth."""
    spans = []
    for axis in (-2, -1):
        touched = (masks > 0.5).any(axis).float()
        spans += [touched.argmax(-1), masks.shape[-1] - touched.flip(-1).argmax(-1)]
    x0, x1, y0, y1 = (4.0 * span for span in spans)
    reach = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], -1) * 0.1
    return torch.stack([x0, y0, x1, y1], -1) + reach * (2 * torch.rand(reach.shape, generator=generator) - 1)


def mask_losses(logits: Tensor, target: Tensor, sharpness: float) -> Tensor:
    """`10 focal + dice + sharpness bce` (B, P, K), logits (B, P, K, L, L) against soft targets (B, P, L, L)."""
    target = target[:, :, None].expand_as(logits)
    probability = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (0.25 * (probability - target).square() * bce).mean((-2, -1))
    overlap, total = (probability * target).sum((-2, -1)), (probability + target).sum((-2, -1))
    return 10 * focal + 1 - (2 * overlap + 1) / (total + 1) + sharpness * bce.mean((-2, -1))


def true_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU (B, P, K) of the masks `logits > 0` (B, P, K, L, L) with targets (B, P, L, L) cut at 0.5; 0 for none."""
    mask, target = logits > 0, (target > 0.5)[:, :, None]
    return (mask & target).sum((-2, -1)) / (mask | target).sum((-2, -1)).clamp(min=1)


def affinity_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
    """How badly tokens of one object resemble each other more than those of others.

    Point prompts alone teach a fresh encoder little: masks stay blobs around the point, whatever the image shows. Here
    every pair of tokens is a lesson: the cross-entropy of "same object" given their cosine, same and different pairs
    weighing alike. Pairs of background tokens say nothing and are left out.

    Args:
        embeddings (`Tensor` of shape `(B, C, g, g)`): the image encoder's output.
        labels (`Tensor` of shape `(B, g, g)`): the object at each token, 0 for background.
    """
    tokens = F.normalize(embeddings.flatten(2), dim=1)
    logits = 10 * (tokens.transpose(1, 2) @ tokens) - 5
    objects = labels.flatten(1)
    same = objects[:, :, None] == objects[:, None, :]
    known = (objects[:, :, None] > 0) | (objects[:, None, :] > 0)
    losses = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none")
    means = [(losses * pairs).sum() / pairs.sum().clamp(min=1) for pairs in (same & known, ~same & known)]
    return 0.5 * (means[0] + means[1])


def training_loss(model: SamModel, batch: dict[str, Tensor], step: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """The loss and the mean best IoU (detached) of one batch; every eighth step prompts with boxes, not points."""
    boxes = step % 8 == 7
    generator = torch.Generator().manual_seed(step)
    prompts = {"input_boxes": boxes_of(batch["masks"], generator)} if boxes else {"input_points": batch["points"]}
    embeddings = model.vision_encoder(batch["pixel_values"]).last_hidden_state
    output = model(image_embeddings=embeddings, multimask_output=not boxes, **prompts)
    logits, predicted = output.pred_masks.float(), output.iou_scores.float()
    on_object = batch["masks"].amax((-2, -1)) > 0.5  # (B, P)
    iou = true_iou(logits.detach(), batch["masks"])
    best = mask_losses(logits, batch["masks"], sharpness).amin(-1)
    segmentation = (best * on_object).sum() / on_object.sum().clamp(min=1)
    # A box around nothing is no prompt; a point on nothing is one, whose masks are worth 0.
    ranking = (predicted - iou).square()[on_object if boxes else slice(None)]
    affinity = affinity_loss(embeddings.float(), batch["labels"])
    return segmentation + 2 * ranking.mean() + affinity, iou.amax(-1)[on_object].mean()


def make_optimizer(model: SamModel, config: SamTrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def learning_rate(step: int, config: SamTrainingConfig) -> float:
    """Linear warm-up, a plateau, and linear decay to 0 over the last `decay_share` of the steps."""
    warm = (step + 1) / max(1, config.warmup_steps)
    left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
    return config.learning_rate * min(1.0, warm, left)


def sharpness(step: int, config: SamTrainingConfig) -> float:
    """Weight of the cross-entropy: 0 until `sharpen_from`, rising to 1 at `sharpen_until`."""
    return min(1.0, max(0.0, (step - config.sharpen_from) / max(1, config.sharpen_until - config.sharpen_from)))


def average_gradients(model: SamModel) -> None:
    """Average the gradients over the processes of a `torchrun`; every process took its share of the batch."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


class SamTrainer:
    """Trains to `config.steps`, going on from the checkpoint in `output_dir` where there is one.

    Args:
        config ([`SamTrainingConfig`]): the run.

    Attributes:
        average (`SamModel`): the exponential moving average of the weights, the model to evaluate and export.
        step (`int`): steps done.
    """

    def __init__(self, config: SamTrainingConfig) -> None:
        self.config = config
        self.folder = Path(config.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = initial_model(config)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = make_optimizer(self.model, config)
        self.step = 0
        self.recent: list[tuple[float, float]] = []
        self.rank, self.ranks = 0, 1
        if distributed.is_initialized():
            self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        if self.ranks > config.scenes_per_batch:
            raise UserError(f"{self.ranks} processes share {config.scenes_per_batch} scenes a step: start fewer.")
        if (self.folder / "checkpoint.pt").exists():
            self._resume()

    def _resume(self) -> None:
        file = self.folder / "checkpoint.pt"
        try:
            state = torch.load(file, weights_only=True)
        except (OSError, RuntimeError, ValueError, UnpicklingError) as error:
            raise UserError(f"{file} is damaged ({error}): delete it to begin anew.") from None
        if changed := changes(state.get("told", self._told()), self._told()):  # earlier checkpoints tell nothing
            raise UserError(f"{self.folder} holds another run ({changed}): give another --output_dir.")
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if (step := state["step"]) > self.config.steps:
            raise UserError(f"{self.folder} has taken {step} steps: give --steps {step} or more, or another folder.")
        self.step, self.recent = step, state.get("recent", [])
        if self.rank == 0:
            _forget_after(step, self.folder / "log.jsonl")
        logger.info("Resuming at step %d.", self.step)

    def _told(self) -> dict[str, Any]:
        """What determines the weights of a step, whatever the number of steps is."""
        free = ("output_dir", "steps", "checkpoint_steps")
        return {name: value for name, value in asdict(self.config).items() if name not in free}

    def save(self) -> None:
        """Write `output_dir/checkpoint.pt`: whole or not at all."""
        parts = {"model": self.model, "average": self.average, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": self.step, "told": self._told()}
        state["recent"] = self.recent
        torch.save(state, self.folder / "checkpoint.part")
        os.replace(self.folder / "checkpoint.part", self.folder / "checkpoint.pt")

    def _train_step(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bf16):
            loss, iou = training_loss(self.model, batch, self.step, sharpness(self.step, self.config))
        self.optimizer.zero_grad()
        loss.backward()
        if self.ranks > 1:
            average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        # A young average must forget the random weights that it began with.
        weight = 1 - min(self.config.ema_decay, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)
        return loss.item(), iou.item()

    def train(self) -> Iterator[dict[str, float]]:
        """Run to `steps`, yielding the mean loss, IoU and rate every 25 steps, which also go to `log.jsonl`."""
        config = self.config
        if self.rank > 0:
            distributed.barrier()  # the first process paints the scenes, the others find them there
        pool = scene_pool(self.folder, config.seed, config.scenes, config.image_size)
        if self.rank == 0 and self.ranks > 1:
            distributed.barrier()
        places = range(self.rank, config.scenes_per_batch, self.ranks)
        progress = tqdm(
            total=self.config.steps, initial=self.step, unit="step", desc="training", disable=self.rank > 0
        )
        first, began = self.step, time.perf_counter()
        while self.step < config.steps:
            batch = make_batch(pool, places, config.prompts_per_scene, config.seed, self.step)
            self.recent.append(self._train_step(batch))
            progress.update()
            if self.step % 25 == 0 or self.step == self.config.steps:
                loss, iou = np.nanmean(self.recent, axis=0)
                rate = (self.step - first) / (time.perf_counter() - began)
                record = {"step": self.step, "loss": float(loss), "iou": float(iou), "steps_per_second": rate}
                if self.rank == 0:
                    with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
                        log.write(json.dumps(record) + "\n")
                progress.set_postfix(loss=f"{loss:.3f}", iou=f"{iou:.3f}")
                self.recent, first, began = [], self.step, time.perf_counter()
                yield record
            if self.rank == 0 and (self.step % config.checkpoint_steps == 0 or self.step == config.steps):
                self.save()


def _forget_after(step: int, log: Path) -> None:
    """Leave out of a log what is about to be done again: the lines after the checkpoint's step, and a torn one."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        write_text("".join(kept), log)
