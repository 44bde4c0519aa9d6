"""The report: one HTML file that shows what a curation did and what came of it.

It is self-contained (styles, charts and thumbnails are inside, nothing is loaded), so it can be mailed, opened from a
cluster's disk, or kept beside the data it describes. Every figure in it is read from the run's files, or handed over
by who knows the wing that it comes from; a part of a run that is not there leaves its panel out or says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from optidel_hf.errors import UserError
from optidel_hf.files import write_text
from optidel_hf.publishing.figures import figure, number
from optidel_hf.publishing.measures import pilot_text, set_measures
from optidel_hf.publishing.panels.evidence import Evidence, evidence_panel
from optidel_hf.publishing.panels.groups import coverage_panel
from optidel_hf.publishing.panels.pilot import Errors, pilot_panel
from optidel_hf.publishing.panels.results import goal_agreement, results_panel
from optidel_hf.publishing.panels.scores import confounder_correlations, fold_means, score_figures
from optidel_hf.publishing.panels.strategies import Compared, strategy_panel
from optidel_hf.publishing.panels.training import reconstructions, training_curves
from optidel_hf.publishing.records import CONFOUNDERS, CurationRecord, funnel, read_curation
from optidel_hf.publishing.sheets import mosaic_sheet, patch_sheets


logger = logging.getLogger(__name__)

MOST_BYTES = 10_000_000
"""Of a page. Every picture has a limit of its own, and their sum stays under half of this."""


def build_report(
    curation_dir: str | Path,
    output: str | Path,
    pretrain_dirs: Mapping[str, str | Path] | None = None,
    results: str | Path | None = None,
    evidence: Evidence | None = None,
    compared: Sequence[Compared] = (),
    theory: Errors | None = None,
) -> Path:
    """
    Writes the report of a curation and, where there are any, of the trainings and evaluations that followed.

    Args:
        curation_dir (`str` or `Path`): The `--output_dir` of the curation.
        output (`str` or `Path`): The HTML file to write.
        pretrain_dirs (`Mapping[str, str | Path]`, *optional*): Output folders of pre-trainings, by the arm's name.
        results (`str` or `Path`, *optional*): The `results.json` of an evaluation, or the folder that holds it.
        evidence ([`Evidence`], *optional*): A grid's results and what judges them.
        compared (`Sequence[Compared]`, *optional*): What other strategies would choose from the same patches.
        theory (`Callable`, *optional*): The perceptron's errors, to stand beside a pilot's.

    Returns:
        `Path`: The file that was written.

    Raises:
        UserError: If one of the folders is missing or no run has written it.
    """
    record = read_curation(curation_dir)
    trained = {name: Path(folder) for name, folder in (pretrain_dirs or {}).items()}
    _refuse_places(Path(output), trained)
    evaluated = results_panel(results) if results else None
    script = files("optidel_hf.publishing").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            name=record.folder.resolve().name,
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            summary=summarize(record),
            evidence=evidence_panel(evidence),
            funnel=funnel(record),
            measures=set_measures(record),
            goal=goal_agreement(record, evaluated["rows"] if evaluated else []),
            reasons=selection_reasons(record),
            scores=score_figures(record),
            confounders=CONFOUNDERS,
            follows=confounder_correlations(record),
            strategies=strategy_panel(record, compared),
            pilot=pilot_panel(record.facts, theory),
            sheets=patch_sheets(record),
            mosaics=mosaic_sheet(record),
            coverage=coverage_panel(record),
            folds=fold_means(record),
            training=training_curves(trained),
            pictures=reconstructions(trained),
            results=evaluated,
            configurations={"curation": record.config, **record.stages},
            versions=record.config.get("versions", {}) | record.facts.get("versions", {}),
        )
    )
    output = write_text(page, Path(output))
    if output.stat().st_size > MOST_BYTES:
        logger.warning("%s has %.1f MB: the tables of this run are that long.", output, output.stat().st_size / 1e6)
    return output


def _refuse_places(output: Path, pretrain_dirs: dict[str, Path]) -> None:
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give a file, such as {output / 'report.html'}.")
    for folder in pretrain_dirs.values():
        if not folder.is_dir():
            raise UserError(f"--pretrain_dirs {folder}: no such folder; give the output of a pre-training.")


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


def selection_reasons(record: CurationRecord) -> list[tuple[str, int]]:
    """Why key patches were kept or dropped and how many, most first; empty where the selection does not say."""
    return sorted(record.facts.get("reasons", {}).items(), key=lambda item: -item[1])


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("optidel_hf.publishing"),
        undefined=StrictUndefined,
        autoescape=True,  # file names and reasons come from strangers' data
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["figure"] = figure
    environment.filters["json"] = lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return environment
