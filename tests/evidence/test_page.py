"""A grid's results as the report shows them, through the statistics of the evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from optidel_hf.errors import UserError
from optidel_hf.evidence.inference import miou_interval, paired_interval
from optidel_hf.evidence.page import detectable, read_evidence
from optidel_hf.evidence.summary import summary_text
from optidel_hf.publishing.panels.evidence import evidence_panel


LEVELS = {"none": 0.2, "full": 0.1, "random_images": 0.15, "oracle": 0.11, "optidel": 0.12}
BUDGETS = {"none": 0.0, "full": 1.0}
SEEDS, IMAGES = 5, 12


def confusion(arm: str, seed: int) -> np.ndarray:
    """Of 1,000 pixels an image, the arm's share is wrong, more or less, either way."""
    rng = np.random.default_rng([len(arm), seed])
    wrong = np.clip(500 * (LEVELS[arm] + rng.normal(0, 0.01, IMAGES)), 1, 499).astype(np.int32)
    return np.stack([np.stack([500 - wrong, wrong], 1), np.stack([wrong, 500 - wrong], 1)], 1)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        {"arm": arm, "budget": BUDGETS.get(arm, 0.05), "seed": seed, "labels": 100, "mode": mode}
        | {"split": "validation", "step": 10, "steps": 10, "miou": 0.5, "confusion": confusion(arm, seed).ravel()}
        | {"pretrain_seconds": 10.0, "downstream_seconds": 1.0}
        for arm in LEVELS
        for mode in ("finetune", "probe")
        for seed in range(SEEDS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    return tmp_path / "results.parquet"


def test_the_report_shows_the_intervals_of_the_inference(results: Path) -> None:
    panel = evidence_panel(read_evidence(results))
    assert panel
    assert panel["passed"]
    assert "**" not in panel["sentence"]
    row = next(row for row in panel["rows"] if row["arm"] == "optidel")
    own, other = (np.stack([confusion(arm, seed) for seed in range(SEEDS)]) for arm in ("optidel", "random_images"))
    found, alone = paired_interval(own, other), miou_interval(own)
    assert row["minus_random"] == {
        "mean": pytest.approx(100 * found.difference),
        "low": pytest.approx(100 * found.low),
        "high": pytest.approx(100 * found.high),
        "detectable": pytest.approx(100 * detectable(own, other)),
        "seeds": SEEDS,
    }
    assert (row["own"]["low"], row["own"]["high"]) == (pytest.approx(100 * alone.low), pytest.approx(100 * alone.high))


def test_a_contrast_counts_the_seeds_that_both_arms_have(results: Path) -> None:
    table = pq.read_table(results)
    late = pc.and_(pc.equal(table["arm"], "random_images"), pc.greater(table["seed"], 1))
    pq.write_table(table.filter(pc.invert(late)), results)
    panel = evidence_panel(read_evidence(results))
    assert panel
    told = {(row["baseline"], row["seeds"]) for row in panel["primary"]}
    assert told == {("random_images", 2), ("full", SEEDS)}
    assert not any(row["above"] for row in panel["primary"] if row["seeds"] < SEEDS)


def test_several_grids_in_one_file_are_refused(results: Path) -> None:
    table = pq.read_table(results)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), results)
    for read in (lambda: read_evidence(results), lambda: summary_text(pq.read_table(results))):
        with pytest.raises(UserError, match="several runs of one cell: give the"):
            read()


def test_a_file_that_is_no_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.parquet does not exist"):
        read_evidence(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"source": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet has no column arm: give the results.parquet of"):
        read_evidence(tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"text\.parquet is no parquet file"):
        read_evidence(tmp_path / "text.parquet")
