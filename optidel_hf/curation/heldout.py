"""
Held-out V-information: what a model that was pre-trained on a selection predicts of frames that nothing has seen.

This, not the selected set's own figures, is the goal: hard samples raise H_V(Y|X) of the set, and so lower the
information that the set holds. A masked autoencoder is judged on whole frames of the pool that no stage saw
(`frames.py`) by

    I_V = 1/2 log2(s0^2 / s^2)      bits per value,

s^2 its mean squared error over hidden values, the same masks for every model, s0^2 the values' variance about their
channel means; both are refitted for every model. The target is the model's own, raw pixels or pixels normalised patch
by patch: figures of the two are not comparable. Intervals resample groups, as frames of one group are no independent
samples, and are widened for few groups as Student's t is. Under `FEWEST_GROUPS` there is none: in simulations with 4
frames a group it would hold the truth in 83 % of cases at 5 groups and 41 % at 2, at 10 groups in 89 %.

A contrastive model predicts no pixels. It is judged by the information of its own projection about which of C frames,
one a group, the other view shows (`contrastive.py`), at most log2 C bits a frame: bank and views are the same for
every model, and the temperature is refitted on the frames, as s^2 is. Of one parameter that overrates next to nothing,
while a part of a small set that is kept for it can miss it by far.

What is held out comes from the pool. Whether a model knows what it will be used for shows on the images of the
downstream set's validation part (`--images`, without masks), by the same measures.

Shapes: `n` frames, `C` channels, `B` frames at a time, `K` masks a partition, `L` tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from torch import Tensor
from transformers import ViTMAEForPreTraining

from optidel_hf.curation import contrastive
from optidel_hf.curation.calibration import Reference, open_reference
from optidel_hf.curation.contrastive import fit_temperature
from optidel_hf.curation.contrastive_scoring import HEAD_FILE, draw_bank, embed_views, load_encoder
from optidel_hf.curation.frames import Frames, downstream_frames, held_out_frames
from optidel_hf.curation.scoring import ScoreConfig, load_pixels, measure
from optidel_hf.curation.vinfo import LEAST_VARIANCE
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.evaluation.statistics import bootstrap_correction
from optidel_hf.files import read_json, write_text


logger = logging.getLogger(__name__)

MASKS, PARTITIONS = 4, 2
FRAMES_AT_ONCE = 64
RESAMPLES = 1000
FEWEST_GROUPS = 10  # of which there is an interval
LEAST_GROUPS = 3  # that a contrastive model is asked to tell apart
CANDIDATES = contrastive.candidates_in_batch(256)  # at most
VIEW = "other view"
"""Target of a contrastive model, where others have `raw` or `normalised` pixels."""
HELD_OUT_FILE, DOWNSTREAM_FILE = "held_out.json", "downstream.json"
FRAME_FEATURES = Features(
    {
        "image": Image(decode=False),
        "source": Value("string"),
        "group": Value("string"),
        "crop": List(Value("int32"), length=3),
    }
)


class Moments(NamedTuple):
    """What the information is made of, for each of `n` frames."""

    error: np.ndarray  # (n,) mean squared error over hidden values
    mean: np.ndarray  # (n, C) mean of the target's values
    square: np.ndarray  # (n, C) mean of their squares


def judge(
    models: Mapping[str, str | Path],
    curation_dir: str | Path | None = None,
    device: str = "auto",
    images: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
) -> dict[str, Any]:
    """
    V-information of pre-trained models on frames that none has seen.

    Written as `held_out.json`, or `downstream.json` for given `images`, into the curation and beside each model. What
    the curation's file says of other models stays, unless it was judged on other images.

    Args:
        models (`Mapping[str, str]`): folders of pre-trained ViT-MAEs, or of ViTs with a projection head, by the arm's
            name.
        curation_dir (`str` or `Path`): a curation that held images out; for given `images` any, or none.
        device (`str`, *optional*, defaults to `"auto"`).
        images (`str`, *optional*): folder or dataset of a downstream set's images to judge on instead.
        split (`str`, *optional*): split of `images`, as `load_dataset` tells them.
        image_column (`str`, *optional*): of `images`; needed where there are several, such as a column of masks.

    Returns:
        `dict`: by name, `v_information` with its 95 % interval `low` and `high`, the two entropies behind it,
        `frames`, `groups` and the `target`: `raw` or `normalised` pixels, in bits per value, or the `other view`, in
        bits a frame; and `images` and `split` as they were given.

    Raises:
        `UserError`: if the curation held nothing out or is none, no image can be read, or a model is of neither kind.
    """
    folder = Path(curation_dir) if curation_dir else None
    if folder and not (folder / "inputs.parquet").exists():
        raise UserError(f"--curation_dir {folder} is no output of `optidel curate`: it has no inputs.parquet.")
    frames = _frames(folder, images, split, image_column)
    file = DOWNSTREAM_FILE if images else HELD_OUT_FILE
    path = folder and folder / file
    given = {"images": images, "split": split} if images else {}
    before = read_json(path) if path and path.exists() else {}
    comparable = {name: figures for name, figures in before.items() if given.items() <= figures.items()}
    judged: dict[str, Any] = {}
    for name, checkpoint in models.items():
        judged[name] = {**judge_on(frames, checkpoint, device), **given}
        if path:
            write_text(json.dumps({**comparable, **judged}, indent=2) + "\n", path)
        if Path(checkpoint).is_dir():
            _write_beside(judged[name], Path(checkpoint) / file)
    return judged


def _frames(folder: Path | None, images: str | None, split: str | None, image_column: str | None) -> Frames:
    if images:
        return downstream_frames(images, split, image_column)
    if not folder:
        raise UserError("There is nothing to judge on: give a --curation_dir that held images out, or --images.")
    return held_out_frames(folder)


def _write_beside(figures: Mapping[str, Any], path: Path) -> None:
    """Beside a model, which may be another's to write to."""
    try:
        write_text(json.dumps(figures, indent=2) + "\n", path)
    except OSError as error:
        logger.warning("%s is not written: %s", path, error)


def judge_on(frames: Frames, checkpoint: str | Path, device: str) -> dict[str, Any]:
    """What [`judge`] says of one model."""
    judge_model = _judge_contrastive if (Path(checkpoint) / HEAD_FILE).exists() else _judge_masked
    return judge_model(str(checkpoint), frames, str(resolve_device(device)))


def _judge_masked(checkpoint: str, frames: Frames, device: str) -> dict[str, Any]:
    reference = open_reference(checkpoint, None, device)
    figures = information(measure_images(reference, frames.images), frames.groups)
    target = "normalised" if reference.model.config.norm_pix_loss else "raw"
    return {**figures, "target": target, "masks": MASKS, "partitions": PARTITIONS}


def _judge_contrastive(checkpoint: str, frames: Frames, device: str) -> dict[str, Any]:
    whole = [[0, 0, 0]] * len(frames.images)  # views are seeded by source and crop
    columns = {"image": frames.images, "source": frames.sources, "group": frames.groups, "crop": whole}
    table = Dataset.from_dict(columns, features=FRAME_FEATURES)
    encoder = load_encoder(checkpoint, device)
    groups = sorted(set(frames.groups), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(groups) < LEAST_GROUPS:
        raise UserError(
            f"A contrastive model tells images apart, and these are of {len(groups)} group(s): give at least "
            f"{LEAST_GROUPS}."
        )
    bank = draw_bank(encoder, table, groups[:CANDIDATES], seed=0)
    first, second = embed_views(encoder, table[:], seed=0)
    temperature = fit_temperature(*bank.both_ways(first, second, frames.groups))
    bits = contrastive.information(bank.loss(first, second, frames.groups, temperature), bank.candidates).numpy()
    low, high = interval(lambda weight: float(weight @ bits / weight.sum()), frames.groups)
    known, ceiling = float(bits.mean()), math.log2(bank.candidates)
    return {
        "v_information": known,
        "low": low,
        "high": high,
        "null_entropy": ceiling,
        "conditional_entropy": ceiling - known,
        "frames": len(bits),
        "groups": len(groups),
        "target": VIEW,
        "candidates": bank.candidates,
        "temperature": temperature,
    }


def measure_images(reference: Reference, images: list[Any]) -> Moments:
    """[`measure_frames`] over undecoded images, a part of them in memory at a time."""
    starts = range(0, len(images), FRAMES_AT_ONCE)
    parts = [
        measure_frames(reference.model, load_pixels(images[start : start + FRAMES_AT_ONCE], reference))
        for start in starts
    ]
    return Moments(*(np.concatenate(values) for values in zip(*parts)))


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
    return Moments(*(figure.cpu().numpy().astype(np.float64) for figure in figures))  # MPS has no float64


def information(moments: Moments, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """I_V with its 95 % interval over resampled groups, and the two entropies whose difference it is."""
    known, null, conditional = _information(moments, np.ones(len(groups)))
    low, high = interval(lambda weight: _information(moments, weight)[0], groups, seed)
    return {
        "v_information": known,
        "low": low,
        "high": high,
        "null_entropy": null,
        "conditional_entropy": conditional,
        "frames": len(groups),
        "groups": len(set(groups)),
    }


def interval(
    estimate: Callable[[np.ndarray], float], groups: Sequence[str], seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """
    The 95 % interval, over resampled groups, of what `estimate` gives for frames that count `weight` times; none of
    fewer than `FEWEST_GROUPS`.
    """
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    number = int(codes.max()) + 1
    if number < FEWEST_GROUPS:
        return None, None
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
    middle = estimate(np.ones(len(codes)))
    ends = np.quantile([estimate(times[codes]) for times in drawn], [0.025, 0.975])
    low, high = middle + bootstrap_correction(number) * (ends - middle)
    return float(low), float(high)


def _information(moments: Moments, weight: np.ndarray) -> tuple[float, float, float]:
    """I_V, H_V(Y|0) and H_V(Y|X) of frames that count `weight` times, bits per value."""
    share = weight / weight.sum()
    mean, square = share @ moments.mean, share @ moments.square
    null, conditional = (
        0.5 * np.log2(2 * np.pi * np.e * max(v, LEAST_VARIANCE))
        for v in ((square - mean**2).mean(), share @ moments.error)
    )
    return float(null - conditional), float(null), float(conditional)
