"""The panel of pre-training: the loss over the steps, and what a masked autoencoder sees in its holes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from optidel_hf.errors import UserError
from optidel_hf.files import read_json
from optidel_hf.publishing.figures import line_class, lines, thumbnail


CURVE_POINTS = 200
PICTURE_SIDE, PICTURE_BYTES = 800, 1_500_000
"""Of a reconstruction's longer side; and of all reconstructions together."""


def training_curves(pretrain_dirs: dict[str, Path]) -> list[dict[str, Any]]:
    """
    The loss over the steps, one chart an objective: losses of different objectives share no scale.

    Args:
        pretrain_dirs (`dict[str, Path]`): Output folders of pre-trainings, by the arm's name.

    Returns:
        `list[dict]`: One an objective: `objective`, `svg` and `arms` (`name`, `css`, `steps`, `final_loss`).
    """
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, folder in pretrain_dirs.items():
        objective = read_json(Path(folder) / "pretrain_config.json")["objective"]
        curves.setdefault(objective, {})[name] = read_curve(Path(folder) / "metrics.jsonl")
    return [
        {
            "objective": objective,
            "svg": lines(arms, "step", "loss"),
            "arms": [
                {"name": name, "css": line_class(number), "steps": int(steps[-1]), "final_loss": float(losses[-1])}
                for number, (name, (steps, losses)) in enumerate(arms.items())
            ],
        }
        for objective, arms in curves.items()
    ]


def read_curve(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """
    The loss curve of one training, thinned to `CURVE_POINTS` means over equal stretches.

    Args:
        path (`Path`): A training's `metrics.jsonl`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Steps and losses.

    Raises:
        UserError: If the file is missing or holds no step yet.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # else it was cut short
    if not rows:
        raise UserError(f"{path} holds no training step: leave this arm out or give a folder that `pretrain` wrote.")
    points = np.array([(row["step"], row["loss"]) for row in rows], dtype=np.float64)
    stretches = np.array_split(points, min(CURVE_POINTS, len(points)))
    steps = np.array([stretch[-1, 0] for stretch in stretches])
    return steps, np.array([stretch[:, 1].mean() for stretch in stretches])


def reconstructions(pretrain_dirs: dict[str, Path]) -> list[dict[str, Any]]:
    """
    The last picture of input, visible patches and reconstruction of every training that drew any.

    Args:
        pretrain_dirs (`dict[str, Path]`): Output folders of pre-trainings, by the arm's name.

    Returns:
        `list[dict]`: One a training: `arm`, `step` and `uri`.
    """
    drawn = {arm: sorted(Path(folder).glob("reconstructions/step-*.png")) for arm, folder in pretrain_dirs.items()}
    last = {arm: paths[-1] for arm, paths in drawn.items() if paths}
    return [
        {
            "arm": arm,
            "step": int(path.stem.removeprefix("step-")),
            "uri": thumbnail({"bytes": None, "path": str(path)}, PICTURE_SIDE, PICTURE_BYTES // len(last)),
        }
        for arm, path in last.items()
    ]
