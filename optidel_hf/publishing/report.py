"""The report: one HTML file that shows what a curation did and what came of it.

It is self-contained (styles, charts and thumbnails are inside, nothing is loaded), so it can be mailed, opened from a
cluster's disk, or kept beside the data it describes. Every figure in it is read from the run's files.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.stats import spearmanr

from optidel_hf.errors import UserError
from optidel_hf.publishing.figures import histogram, intervals, line_class, lines
from optidel_hf.publishing.measures import chosen_rows, pilot_text, set_measures
from optidel_hf.publishing.records import NUISANCES, SCORES, CurationRecord, funnel, read_curation, read_json
from optidel_hf.publishing.sheets import mosaic_sheet, patch_sheets


CURVE_POINTS = 200
MIOU = ("miou_mean", "miou_low", "miou_high")


def build_report(
    curation_dir: str | Path,
    output: str | Path,
    pretrain_dirs: dict[str, Path] | None = None,
    results: str | Path | None = None,
) -> Path:
    """
    Writes the report of a curation and, where there are any, of the trainings and evaluations that followed.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of the curation.
        output (`str` or `Path`): The HTML file to write.
        pretrain_dirs (`dict[str, Path]`, *optional*): Output folders of pre-trainings, by the arm's name.
        results (`str` or `Path`, *optional*): The `results.json` of an evaluation, or the folder that holds it.

    Returns:
        `Path`: The file that was written.

    Raises:
        UserError: If one of the folders is missing or no run has written it.
    """
    record = read_curation(curation_dir)
    evaluated = read_results(results) if results else None
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            name=record.folder.resolve().name,
            summary=summarize(record),
            funnel=funnel(record),
            measures=set_measures(record),
            goal=goal_agreement(record, evaluated["rows"] if evaluated else []),
            reasons=selection_reasons(record),
            scores=score_figures(record),
            nuisances=NUISANCES,
            follows=nuisance_correlations(record),
            sheets=patch_sheets(record),
            mosaics=mosaic_sheet(record),
            folds=fold_means(record),
            training=training_curves(pretrain_dirs or {}),
            results=evaluated,
            configurations={"curation": record.config, **record.stages},
            versions=record.config.get("versions", {}) | record.facts.get("versions", {}),
        )
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, output)
    return output


def summarize(record: CurationRecord) -> str:
    """What was done, in one sentence with its numbers."""
    cut = f"{record.patches:,} key patches were cut from {record.with_patches:,} of {record.sources:,} source images"
    if record.selection is None:
        return f"{cut}; nothing has been selected yet."
    facts = record.facts
    by = f" by {facts['score']}" if facts["score"] else ""
    done = (
        f"{cut}; the strategy “{facts['strategy']}” chose {record.selection.num_rows:,} of them{by}, which make "
        f"{record.mosaics:,} mosaics of {facts['tiles_per_mosaic']} at {facts['tile_size']} px a tile."
    )
    return f"{done} {pilot_text(facts)}".strip()


def score_figures(record: CurationRecord) -> list[dict[str, Any]]:
    """
    A histogram of each score, the chosen over all.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One a score that has any finite value: `name`, `svg`, `mean` and `chosen_mean` (or `None`).
    """
    figures, rows = [], chosen_rows(record)
    for name in SCORES.keys() & record.columns.keys():
        everything = record.columns[name]
        chosen = everything[rows]
        if np.isfinite(everything).any():
            svg = histogram(everything, chosen, f"{name} ({SCORES[name]})")
            figures.append({"name": name, "svg": svg, "mean": _mean(everything), "chosen_mean": _mean(chosen)})
    return sorted(figures, key=lambda figure: list(SCORES).index(figure["name"]))


def selection_reasons(record: CurationRecord) -> list[tuple[str, int]]:
    """Why key patches were kept or dropped and how many, most first; empty where the selection does not say."""
    return sorted(record.facts.get("reasons", {}).items(), key=lambda item: -item[1])


def goal_agreement(record: CurationRecord, rows: list[dict[str, Any]]) -> list[str]:
    """
    How the arms' V-information ranks them beside their mean IoU, one sentence a mode of evaluation.

    Arms whose targets differ, such as raw pixels and other views, are ranked apart: their bits are not comparable.

    Args:
        record (`CurationRecord`): A curation on whose held-out images the arms' models were judged, or for which they
            were judged on downstream images.
        rows (`list[dict]`): The evaluation's rows, with `arm`, `mode` and `miou_mean`.
    """
    sentences = []
    for judged, where in ((record.judged, ""), (record.downstream, ", on downstream images")):
        targets = {arm: figures["target"] for arm, figures in judged.items()}
        for mode in dict.fromkeys(row["mode"] for row in rows):
            for target in sorted(set(targets.values())):
                both = {row["arm"]: row["miou_mean"] for row in rows if row["mode"] == mode}
                arms = [arm for arm in both if targets.get(arm) == target]
                information = np.array([judged[arm]["v_information"] for arm in arms])
                rho = _rank_correlation(information, np.array([both[arm] for arm in arms]))
                if rho is not None:
                    sentences.append(f"{_number(rho, 2)} over {len(arms)} arms ({mode}{where})")
    return sentences


def nuisance_correlations(record: CurationRecord) -> dict[str, list[float | None]]:
    """Spearman's rank correlation of each score with what it should not merely repeat, in the order of `NUISANCES`."""
    columns = record.columns
    return {
        name: [_rank_correlation(columns[name], columns[nuisance]) for nuisance in NUISANCES]
        for name in SCORES
        if name in columns
    }


def fold_means(record: CurationRecord) -> list[dict[str, Any]]:
    """
    What each fold's reference model gave, side by side.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One a fold: `fold`, `patches`, `means` (by score), `v_information` (held out, or
        `None`), `calibration` (mean of (y - mu)^2 / s^2 over all its patches, s fitted on the held-out ones, or
        `None`) and `reliability` of the ranks under other masks (or `None`).
    """
    if not record.columns:
        return []
    folds = record.columns["fold"]
    calibration = dict(enumerate(record.calibration))
    return [
        {
            "fold": int(fold),
            "patches": int((folds == fold).sum()),
            "means": {name: _mean(record.columns[name][folds == fold]) for name in SCORES if name in record.columns},
            "v_information": calibration.get(int(fold), {}).get("v_information_held_out"),
            "calibration": _calibration(record.columns["cond_entropy"][folds == fold], calibration.get(int(fold), {})),
            "reliability": calibration.get(int(fold), {}).get("reliability"),
        }
        for fold in np.unique(folds[np.isfinite(folds)])
    ]


def _calibration(entropies: np.ndarray, calibration: dict[str, Any]) -> float | None:
    """A Gaussian's code length exceeds its entropy by (e / s^2 - 1) / (2 ln 2) bits."""
    expected, mean = calibration.get("conditional_entropy_held_out"), _mean(entropies)
    return None if expected is None or mean is None else 1 + 2 * math.log(2) * (mean - expected)


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
    rows = [json.loads(line) for line in path.read_text().splitlines() if line] if path.is_file() else []
    if not rows:
        raise UserError(f"{path} holds no training step: leave this arm out or give a folder that `pretrain` wrote.")
    points = np.array([(row["step"], row["loss"]) for row in rows], dtype=np.float64)
    stretches = np.array_split(points, min(CURVE_POINTS, len(points)))
    steps = np.array([stretch[-1, 0] for stretch in stretches])
    return steps, np.array([stretch[:, 1].mean() for stretch in stretches])


def read_results(results: str | Path) -> dict[str, Any]:
    """
    The evaluation's summary, as a table and one chart a mode.

    Args:
        results (`str` or `Path`): `results.json`, or the folder that holds it.

    Returns:
        `dict`: `rows` (the summary, mIoU in per cent), `charts` and `normdel` (whether any row has it).
    """
    path = Path(results)
    summary = read_json(path / "results.json" if path.is_dir() else path)["summary"]
    rows = [row | {key: None if row[key] is None else 100 * row[key] for key in MIOU} for row in summary]
    modes: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    for row in rows:
        modes.setdefault(row["mode"], []).append((row["arm"], *(row[key] for key in MIOU)))
    return {
        "rows": rows,
        "charts": [intervals(arms, f"mean IoU, % ({mode})") for mode, arms in modes.items()],
        "normdel": any("normdel" in row for row in rows),
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("optidel_hf.publishing"),
        undefined=StrictUndefined,
        autoescape=True,  # file names and reasons come from strangers' data
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return environment


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """`None` where it is not defined: fewer than three patches, or one of the two constant."""
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
