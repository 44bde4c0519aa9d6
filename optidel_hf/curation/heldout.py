"""
Held-out V-information: what a model that was pre-trained on a selection predicts of frames that nothing has seen.

This, not the selected set's own figures, is the goal: hard samples raise H_V(Y|X) of the set, and so lower the
information that the set holds. A share of the images, in whole near-duplicate groups, is held out before any patch is
cut, so that neither the reference models nor any strategy sees them; the choice depends on the groups' names alone, so
all arms of one pool hold out the same. A masked autoencoder is judged there on whole frames by

    I_V = 1/2 log2(s0^2 / s^2)      bits per value,

s^2 its mean squared error over hidden values, the same masks for every model, s0^2 the values' variance about their
channel means; both are refitted for every model. The target is the model's own, raw pixels or pixels normalised patch
by patch: figures of the two are not comparable. Intervals resample groups, as frames of one group are no independent
samples.

Shapes: `n` frames, `C` channels, `B` frames at a time, `K` masks a partition, `L` tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import ViTMAEForPreTraining

from optidel_hf.curation.inputs import InputConfig, open_sources
from optidel_hf.curation.reference import open_reference
from optidel_hf.curation.scoring import ScoreConfig, load_pixels, measure
from optidel_hf.curation.shards import write_text
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.images import decode_reason


MASKS, PARTITIONS = 4, 2
FRAMES_AT_ONCE = 64
RESAMPLES = 1000


class Moments(NamedTuple):
    """What the information is made of, for each of `n` frames."""

    error: np.ndarray  # (n,) mean squared error over hidden values
    mean: np.ndarray  # (n, C) mean of the target's values
    square: np.ndarray  # (n, C) mean of their squares


def hold_out(groups: Sequence[str], share: float, seed: int = 0) -> set[str]:
    """
    Whole groups, in the order of their names' hashes, until they hold `share` of the images; never the largest.

    Args:
        groups (`Sequence[str]`): group of each image.
        share (`float`): 0 holds out nothing.
        seed (`int`, *optional*, defaults to 0): of the hashes; 0 for what all arms of a pool hold out.

    Raises:
        `UserError`: if a share is asked for and all images are of one group.
    """
    images = Counter(groups)
    if share and len(images) < 2:
        raise UserError("--held_out needs at least two groups of images, and these are all of one.")
    order = sorted(images, key=lambda name: hashlib.sha256(f"held out {seed}:{name}".encode()).hexdigest())
    largest = max(order, key=images.__getitem__, default=None)
    held: set[str] = set()
    wanted = share * len(groups)
    for group in order:
        if wanted > 0 and group != largest:
            held.add(group)
            wanted -= images[group]
    return held


def judge(models: Mapping[str, str | Path], curation_dir: str | Path, device: str = "auto") -> dict[str, Any]:
    """
    Held-out V-information of pre-trained models; written as `held_out.json` into the curation and beside each model.

    Args:
        models (`Mapping[str, str]`): folders of pre-trained ViT-MAEs, by the arm's name.
        curation_dir (`str` or `Path`): a curation that held images out.

    Returns:
        `dict`: by name, `v_information` with its 95 % interval `low` and `high`, the two entropies behind it,
        `frames`, `groups` and the `target`.

    Raises:
        `UserError`: if the curation held nothing out or a model is no masked autoencoder.
    """
    folder = Path(curation_dir)
    frames, groups = held_out_frames(folder)
    judged = {}
    for name, checkpoint in models.items():
        judged[name] = judge_on(frames, groups, checkpoint, device)
        if Path(checkpoint).is_dir():
            write_text(json.dumps(judged[name], indent=2) + "\n", Path(checkpoint) / "held_out.json")
    path = folder / "held_out.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    write_text(json.dumps({**before, **judged}, indent=2) + "\n", path)
    return judged


def judge_on(frames: Sequence[Any], groups: Sequence[str], checkpoint: str | Path, device: str) -> dict[str, Any]:
    """What [`judge`] says of one model, on undecoded frames and the group of each."""
    reference = open_reference(str(checkpoint), None, str(resolve_device(device)))
    starts = range(0, len(frames), FRAMES_AT_ONCE)
    parts = [
        measure_frames(reference.model, load_pixels(list(frames[start : start + FRAMES_AT_ONCE]), reference))
        for start in starts
    ]
    figures = information(Moments(*(np.concatenate(values) for values in zip(*parts))), groups)
    target = "normalised" if reference.model.config.norm_pix_loss else "raw"
    return {**figures, "target": target, "masks": MASKS, "partitions": PARTITIONS}


def held_out_frames(folder: Path) -> tuple[list[Any], list[str]]:
    """The readable frames that a curation held out, undecoded, and the group of each."""
    path = folder / "held_out.parquet"
    if not path.exists():
        raise UserError(f"{folder} held no image out: curate into another folder with --held_out 0.1.")
    held = dict(zip(*(pq.read_table(path)[name].to_pylist() for name in ("source", "group"))))
    config = InputConfig(**json.loads((folder / "config.json").read_text())["inputs"])
    sources = open_sources(config)
    rows = [row for row, source in enumerate(sources["source"]) if source in held]
    frames = sources.select(rows)
    readable = [(v, held[s]) for v, s in zip(frames["image"], frames["source"]) if decode_reason(v)[0] is not None]
    if not readable:
        raise UserError(f"None of the {len(held)} images that {path} lists can be read.")
    return [value for value, _ in readable], [group for _, group in readable]


@torch.inference_mode()
def measure_frames(model: ViTMAEForPreTraining, pixels: Tensor) -> Moments:
    """
    Errors and moments of frames under one model, over complementary masks that are the same for every model.

    Args:
        model (`ViTMAEForPreTraining`): left with another `mask_ratio`.
        pixels (`Tensor` of shape `(B, C, S, S)`): normalised as the model's processor does.
    """
    measures = measure(model, pixels.to(model.device), ScoreConfig(masks=MASKS, variance="channel"), range(PARTITIONS))
    figures = measures.errors.mean((1, 2)), measures.mean[..., 0], measures.square[..., 0]
    return Moments(*(figure.double().cpu().numpy() for figure in figures))


def information(moments: Moments, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """I_V with its 95 % interval over resampled groups, and the two entropies whose difference it is."""
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    number = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    estimate = _information(moments, np.ones(len(codes)))
    spread = [_information(moments, times[codes])[0] for times in drawn]
    low, high = np.quantile(spread, [0.025, 0.975]) if number > 1 else (None, None)
    return {
        "v_information": estimate[0],
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "null_entropy": estimate[1],
        "conditional_entropy": estimate[2],
        "frames": len(codes),
        "groups": number,
    }


def _information(moments: Moments, weight: np.ndarray) -> tuple[float, float, float]:
    """I_V, H_V(Y|0) and H_V(Y|X) of frames that count `weight` times, bits per value."""
    share = weight / weight.sum()
    mean, square = share @ moments.mean, share @ moments.square
    null, conditional = (
        0.5 * np.log2(2 * np.pi * np.e * v) for v in ((square - mean**2).mean(), share @ moments.error)
    )
    return float(null - conditional), float(null), float(conditional)
