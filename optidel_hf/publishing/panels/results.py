"""The panel of one evaluation's results: mean IoU of its arms with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from optidel_hf.evaluation.statistics import rank_correlation
from optidel_hf.publishing.figures import intervals, number
from optidel_hf.publishing.records import CurationRecord, read_results


MIOU = ("miou_mean", "miou_low", "miou_high")


def results_panel(results: str | Path) -> dict[str, Any]:
    """
    The evaluation's summary, as a table and one chart a mode.

    Args:
        results (`str` or `Path`): `results.json`, or the folder that holds it.

    Returns:
        `dict`: `rows` (the summary, mIoU in per cent), `charts` and `normdel` (whether any row has it).

    Raises:
        `UserError`: if it is another JSON file.
    """
    summary = read_results(results)["summary"]
    rows = [row | {key: None if row[key] is None else 100 * row[key] for key in MIOU} for row in summary]
    modes: dict[str, list[tuple[str, float, float | None, float | None]]] = {}
    for row in rows:
        modes.setdefault(row["mode"], []).append((row["arm"], *(row[key] for key in MIOU)))
    return {
        "rows": rows,
        "charts": [intervals(arms, f"mean IoU, % ({mode})") for mode, arms in modes.items()],
        "normdel": any("normdel" in row for row in rows),
    }


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
                rho = rank_correlation(information, np.array([both[arm] for arm in arms]))
                if rho is not None:
                    sentences.append(f"{number(rho, 2)} over {len(arms)} arms ({mode}{where})")
    return sentences
