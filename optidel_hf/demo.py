"""The whole method on the embedded sample: what `make demo` runs. Every step resumes, so a killed demo goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from optidel_hf import commands
from optidel_hf.sample import write_sample


RECIPE = Path(__file__).parents[1] / "recipes" / "pretrain.py"
BUDGET = 0.05
# Coarser than the defaults, so that the demo ends within minutes on two cores.
QUICK = {"points_per_side": 10, "max_patches": 8, "reference_steps": 120}
# For a small ViT and a few hundred steps; MAE's rate of 1.5e-4 and its normalised target are for ViT-B and hundreds of
# epochs.
SHORT = {"base_learning_rate": 4e-3, "norm_pix_loss": False}


def run_demo(output: Path, frames: int, steps: int, seeds: int) -> None:
    """
    Curate, pre-train, evaluate and report on the embedded sample.

    Args:
        output (`Path`): gets `sample/`, `optidel/` with the report, `random/`, `models/` and `evaluation/`.
        frames (`int`): size of the pool.
        steps (`int`): pre-training steps, the same for every arm.
        seeds (`int`): seeds of the downstream training.
    """
    started = time.monotonic()
    sample = write_sample(output / "sample", frames=frames)
    pool = sample / "pool" / "images"
    curated, random = output / "optidel", output / "random"
    commands.curate(_flags(dataset=pool, output_dir=curated, budget=BUDGET, **QUICK))
    whole = {"unit": "image", "strategy": "random", "tiles_per_mosaic": 1}
    commands.curate(_flags(dataset=pool, output_dir=random, budget=BUDGET, **whole))
    arms = {"optidel-5%": curated / "curated", "random-5%": random / "curated", "full": pool}
    models = {arm: output / "models" / arm.rstrip("%") for arm in arms}
    for arm, dataset in arms.items():
        _launch(dataset, models[arm], steps)
    evaluation = output / "evaluation"
    named = [f"{arm}={folder}" for arm, folder in models.items()]
    downstream = {"dataset": sample / "downstream", "output_dir": evaluation, "seeds": seeds}
    commands.evaluate(["--models", *named, "none", *_flags(**downstream, steps=100, batch_size=16)])
    commands.report(
        ["--pretrain_dirs", *named, *_flags(curation_dir=curated, results=evaluation / "results.json")],
    )
    commands.say(
        f"curated dataset: {curated / 'curated'}\ncheckpoint: {models['optidel-5%']}\n"
        f"report: {curated / 'report.html'}\nThe demo took {time.monotonic() - started:.0f} s."
    )


def _launch(dataset: Path, model: Path, steps: int) -> None:
    """Pre-train in a process of its own, as a user does."""
    target = [str(RECIPE)] if RECIPE.exists() else ["--module", "optidel_hf.cli", "pretrain"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    flags = _flags(dataset=dataset, output_dir=model, steps=steps, **SHORT)
    commands.say(f"accelerate launch recipes/pretrain.py {' '.join(flags)}")
    subprocess.run([*launcher, *target, *flags], check=True)


def _flags(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]
