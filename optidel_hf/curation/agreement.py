"""
How far reference models agree on the order of patches that none of them has trained on.

Written to `reliability.json` of the reference folder: Spearman's rank correlation of `difficulty` between the two
folds' models and, where a second reference is named, between the first fold's and that one. Every model's expectation
of error from contrast and size is fitted on these very patches, so that only the order within them counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from optidel_hf.curation import vinfo
from optidel_hf.curation.calibration import Reference, load_calibration, load_reference, open_reference
from optidel_hf.curation.scoring import ScoreConfig, measure_patches
from optidel_hf.evaluation.statistics import rank_correlation
from optidel_hf.files import write_text


FILE = "reliability.json"
MOST_PATCHES = 1000  # a correlation's standard error is then at most 0.03


def write_agreement(folder: Path, patches: Dataset, score: ScoreConfig, second: str | None, device: str) -> None:
    """
    Compare the models of a reference folder with each other and with a second checkpoint.

    Args:
        folder (`Path`): the reference folder, its folds finished.
        patches (`datasets.Dataset`): sorted patches of groups that were kept from every fold's training.
        score ([`ScoreConfig`]).
        second (`str`, *optional*): another ViTMAE checkpoint.
        device (`str`): of torch.
    """
    step = -(-len(patches) // MOST_PATCHES)
    sample = patches.select(range(0, len(patches), step))
    partitions = range(score.partitions or load_calibration(str(folder), 0).partitions)

    def ranked(reference: Reference) -> Tensor:
        return _difficulty(reference, sample, score, partitions)

    first = ranked(load_reference(str(folder), 0, device))
    crossed = (folder / "fold-1").exists()
    facts: dict[str, Any] = {
        "score": "difficulty",
        "patches": len(sample),
        "between_folds": rank_correlation(first, ranked(load_reference(str(folder), 1, device))) if crossed else None,
        "second_reference": second,
        "between_models": rank_correlation(first, ranked(open_reference(second, None, device))) if second else None,
    }
    write_text(json.dumps(facts, indent=2) + "\n", folder / FILE)


def _difficulty(reference: Reference, patches: Dataset, score: ScoreConfig, partitions: range) -> Tensor:
    measured = measure_patches(reference, patches, score, partitions)
    error = measured.errors.mean((1, 2))
    sides = torch.tensor([crop[2] for crop in patches["crop"]], dtype=torch.float32)
    return vinfo.fit_difficulty(error, measured.variance, sides).difficulty(error, measured.variance, sides)
