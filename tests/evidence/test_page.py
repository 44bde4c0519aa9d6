"""A grid's results as the report shows them: what `results.md` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from simulated import results_table

from optidel_hf.errors import UserError
from optidel_hf.evidence.comparison import Judged
from optidel_hf.evidence.page import read_evidence
from optidel_hf.evidence.summary import summary_text
from optidel_hf.publishing.panels.evidence import evidence_panel


ARMS = {"none": 0.55, "full": 0.7, "full_mosaics": 0.68, "random_images": 0.65, "oracle": 0.76, "optidel": 0.78}
SEEDS = 5


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Five percent, on both parts, and one arm more at ten."""
    wide = {arm: ARMS[arm] - 0.02 for arm in ("random_images", "optidel")}
    tables = [results_table(ARMS, SEEDS, 12, ["validation", "test"]), results_table(wide, SEEDS, 12, budget=0.1)]
    table = pa.concat_tables(tables)
    bits = [ARMS[arm] + budget for arm, budget in zip(table["arm"].to_pylist(), table["budget"].to_pylist())]
    pq.write_table(table.append_column("vinfo_held_out", pa.array(bits)), tmp_path / "results.parquet")
    return tmp_path / "results.parquet"


def panel_of(path: Path) -> dict[str, Any]:
    panel = evidence_panel(read_evidence(path))
    assert panel
    return panel


def row_of(panel: dict[str, Any], arm: str, budget: float, split: str = "validation") -> dict[str, Any]:
    """Of the fine-tuned."""
    wanted = {"arm": arm, "budget": budget, "split": split, "mode": "finetune"}
    return next(row for row in panel["rows"] if wanted.items() <= row.items())


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row of the panel as `results.md` writes it, without NormDEL."""
    cells = [row["arm"], f"{row['own']['mean']:.2f} [{row['own']['low']:.2f}, {row['own']['high']:.2f}]"]
    for found in row["minus"].values():
        ends = found and f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        cells += [ends, f"{found['detectable']:.2f}"] if found else ["–", "–"]
    return [cell.replace("-", "−") for cell in cells]


def test_every_arm_stands_as_in_the_summary(results: Path) -> None:
    """Differences and their intervals, also of an arm without a budget from one that has one, or from another."""
    panel, text = panel_of(results), summary_text(pq.read_table(results)).replace("**", "")
    for mode, title in (("finetune", "### Fine-tuned"), ("probe", "### Probed")):
        table = text.split(title)[1].split("\n\n")[1]
        lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
        rows = [row for row in panel["rows"] if (row["split"], row["mode"]) == ("test", mode)]
        assert [cells_of(row) for row in rows] == [[*line[:2], *line[3:7]] for line in lines]
        assert len(rows) == len(ARMS)


def test_another_budget_is_compared_at_its_own(results: Path) -> None:
    table = pq.read_table(results)
    alone = table.filter(pc.or_(pc.equal(table["budget"], 0.1), pc.equal(table["arm"], "full")))
    found = Judged.of(alone, "validation").compare("optidel", "random_images", "finetune")
    assert found
    panel = panel_of(results)
    wide = row_of(panel, "optidel", 0.1)
    assert wide["minus"]["random_images"]["mean"] == pytest.approx(100 * found.interval.difference)
    assert wide["minus"]["full"]
    level = row_of(panel, "full", 1.0)["minus"]["random_images"]["mean"]
    assert panel["budget"] == 5
    assert level == pytest.approx(-row_of(panel, "random_images", 0.05)["minus"]["full"]["mean"])


def test_arms_without_a_budget_are_levels(results: Path) -> None:
    """Which of them there are the report does not know."""
    budgeted = {row.arm: row.budgeted for row in read_evidence(results).rows}
    assert [arm for arm, own in budgeted.items() if not own] == ["none", "full", "full_mosaics"]


def test_the_endpoint_is_that_of_the_summary(results: Path) -> None:
    panel = panel_of(results)
    assert panel["passed"]
    assert "**" not in panel["sentence"]
    told = [(row["baseline"], row["mode"], row["split"], row["above"]) for row in panel["primary"]]
    modes = ("finetune", "probe")
    assert told == [(other, mode, "test", True) for other in ("random_images", "full") for mode in modes]


def test_no_endpoint_elsewhere(results: Path) -> None:
    table = pq.read_table(results)
    elsewhere = pc.and_(pc.not_equal(table["budget"], 0.05), pc.equal(table["split"], "validation"))
    pq.write_table(table.filter(elsewhere), results)
    panel = panel_of(results)
    assert panel["primary"] == []
    assert panel["budget"] == 10


def test_facts_are_those_of_the_summary(results: Path) -> None:
    panel, text = panel_of(results), summary_text(pq.read_table(results))
    (facts,) = (row.facts for row in panel["sets"] if (row.arm, row.budget) == ("optidel", 0.05))
    assert facts["curation, in steps"] == pytest.approx(200)
    assert set(facts) == {
        head
        for part in ("## Cost", "## The three measurements")
        for head in text.split(part)[1].split("\n\n")[1].splitlines()[0].strip("| ").split(" | ")[2:]
    }
    assert panel["agreement"] == [line for line in text.splitlines() if line.startswith("Rank correlation")]
    assert len(panel["agreement"]) == 2


def test_a_contrast_counts_the_seeds_that_both_arms_have(results: Path) -> None:
    table = pq.read_table(results)
    late = pc.and_(pc.equal(table["arm"], "random_images"), pc.greater(table["seed"], 1))
    pq.write_table(table.filter(pc.invert(late)), results)
    panel = panel_of(results)
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
    early = results_table({"full": 0.7, "none": 0.6}, seeds=1, modes=["probe"], checkpoints=2)
    pq.write_table(early.filter(pc.less(early["step"], early["steps"])), tmp_path / "early.parquet")
    with pytest.raises(UserError, match=r"early\.parquet holds no run of a last checkpoint yet"):
        read_evidence(tmp_path / "early.parquet")
    odd = early.set_column(early.column_names.index("split"), "split", pa.array(["train"] * len(early)))
    pq.write_table(odd, tmp_path / "odd.parquet")
    with pytest.raises(UserError, match=r"odd\.parquet has rows of split 'train'"):
        read_evidence(tmp_path / "odd.parquet")
