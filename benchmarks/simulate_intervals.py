"""How often 95 % intervals hold the truth, on simulated experiments whose truth is known.

    OMP_NUM_THREADS=1 python benchmarks/simulate_intervals.py

Prints the tables and writes `benchmarks/intervals_[date].md`.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from optidel_hf.curation import heldout
from optidel_hf.evidence import inference


SEEDS, IMAGES = (2, 5, 11), (6, 10, 20, 80)
GROUPS, FRAMES_PER_GROUP = (10, 20, 50), 4
DEVIATIONS = {
    "seeds": (0.03, 0.0, 0.0),
    "images": (0.0, 0.12, 0.0),
    "their residual": (0.0, 0.0, 0.12),
    "all three": (0.02, 0.08, 0.08),
}
"""Standard deviations of an arm's recall from seed to seed, from image to image, and of a seed on an image."""


def draw_confusion(
    rng: np.random.Generator, seeds: int, images: int, deviations: tuple[float, float, float]
) -> np.ndarray:
    """
    Confusion matrices `(2, S, N, 2, 2)`, as shares of an image, of two arms on the same images, of recall 0.70 and
    0.65. Objects differ in size, most within a factor of four of a tenth; half of what is missed is found elsewhere.
    """
    size = np.exp(rng.normal(-2.2, 0.7, images)).clip(0.01, 0.5)
    shapes = [(2, seeds, 1), (2, 1, images), (2, seeds, images)]
    recall = np.array([0.70, 0.65])[:, None, None] + np.zeros((2, seeds, images))
    for shape, deviation in zip(shapes, deviations):
        recall = recall + rng.normal(0, deviation, shape)
    found = size * recall.clip(0.02, 0.98)
    missed = size - found
    return np.stack([1 - size - missed / 2, missed / 2, missed, found], axis=-1).reshape(*recall.shape, 2, 2)


def true_difference(deviations: tuple[float, float, float], repeats: int = 200) -> float:
    """The first arm's mIoU minus the second's over 10,000 seeds, each on 4,000 images."""
    rng = np.random.default_rng(0)
    parts = (inference.pooled_miou(draw_confusion(rng, 50, 4000, deviations)) for _ in range(repeats))
    return float(np.mean([first.mean() - second.mean() for first, second in parts]))


def holds_difference(experiment: int, seeds: int, images: int, deviations: tuple, truth: float) -> bool:
    """Whether the interval of one experiment holds the true difference."""
    arms = draw_confusion(np.random.default_rng([1, experiment]), seeds, images, deviations)
    found = inference.paired_interval(*arms, seed=experiment)
    return found.low <= truth <= found.high


def draw_frames(rng: np.random.Generator, groups: int) -> tuple[heldout.Moments, list[str]]:
    """What held-out V-information is made of, for groups of frames alike in brightness, contrast and error."""
    frames = groups * FRAMES_PER_GROUP
    brightness, contrast, error = (
        np.repeat(rng.normal(0, spread, groups), FRAMES_PER_GROUP) + rng.normal(0, spread / 2, frames)
        for spread in (0.5, 0.3, 0.5)
    )
    moments = heldout.Moments(0.1 * np.exp(error), brightness[:, None], (brightness**2 + np.exp(contrast))[:, None])
    return moments, [str(frame // FRAMES_PER_GROUP) for frame in range(frames)]


def true_information(groups: int = 200_000) -> float:
    """The V-information of so many groups that their scatter is gone."""
    moments, names = draw_frames(np.random.default_rng(0), groups)
    with mock.patch.object(heldout, "interval", return_value=(None, None)):
        return heldout.information(moments, names)["v_information"]


def holds_information(experiment: int, groups: int, truth: float) -> bool:
    """Whether the interval of one experiment holds the true V-information."""
    found = heldout.information(*draw_frames(np.random.default_rng([1, experiment]), groups), seed=experiment)
    return found["low"] <= truth <= found["high"]


def coverage(holds: Callable[..., bool], experiments: int, *case: object) -> str:
    """Per cent of the experiments whose interval holds the truth, and in brackets without the widening for few."""
    shares = []
    for widening in (heldout.bootstrap_correction, lambda count: 1.0):
        with (
            mock.patch.object(heldout, "bootstrap_correction", widening),
            mock.patch.object(inference, "bootstrap_correction", widening),
        ):
            shares.append(100 * np.mean([holds(experiment, *case) for experiment in range(experiments)]))
    return "{:.1f} ({:.1f})".format(*shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    arguments = parser.parse_args()
    error = 100 * np.sqrt(0.95 * 0.05 / arguments.experiments)
    lines = [
        "# How often 95 % intervals hold the truth",
        "",
        "`OMP_NUM_THREADS=1 python benchmarks/simulate_intervals.py`: per cent of "
        f"{arguments.experiments} simulated experiments (standard error {error:.1f}), in brackets without the "
        "widening for few images or groups.",
        "",
        "A difference of two arms' mIoU, by what makes it vary:",
        "",
        "| varies with | seeds | " + " | ".join(f"{images} images" for images in IMAGES) + " |",
        "|---" * (len(IMAGES) + 2) + "|",
    ]
    for name, deviations in DEVIATIONS.items():
        truth = true_difference(deviations)
        for seeds in SEEDS:
            shares = [
                coverage(holds_difference, arguments.experiments, seeds, images, deviations, truth)
                for images in IMAGES
            ]
            lines.append(f"| {name} | {seeds} | " + " | ".join(shares) + " |")
    lines += [
        "",
        f"Held-out V-information, over groups of {FRAMES_PER_GROUP} frames:",
        "",
        "| " + " | ".join(f"{groups} groups" for groups in GROUPS) + " |",
        "|---" * len(GROUPS) + "|",
    ]
    truth = true_information()
    shares = [coverage(holds_information, arguments.experiments, groups, truth) for groups in GROUPS]
    lines.append("| " + " | ".join(shares) + " |")
    report = "\n".join(lines) + "\n"
    print(report)
    (Path(__file__).parent / f"intervals_{arguments.date}.md").write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
