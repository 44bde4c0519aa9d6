"""What is written of several testbeds: arms' worth and mIoU, the gate's word, the map, and all rows in one file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from simulated import results_table

from optidel_hf.evidence import testbed_results
from optidel_hf.evidence.results import NAMES, judged_names
from optidel_hf.evidence.testbed_results import JudgedPool, merge_results, pools_text, write_testbed_results
from optidel_hf.evidence.worth import Worth
from optidel_hf.sample.testbed import KnownPool


FULL = Worth(36, 7, {"black": 3, "text": 4}, (9, 10), (3, 4), (1, 2))
WORTH = {
    ("full", 1.0): [FULL, FULL],
    ("optidel", 0.05): [
        Worth(8, 0, {}, (6, 10), (4, 4), (2, 2)),
        Worth(8, 2, {"text": 2}, (5, 10), (3, 4), (1, 2)),
    ],
}
ARMS = {"none": 0.5, "full": 0.7, "random_images": 0.6, "optidel": 0.75, "oracle": 0.72}
PASSED = {"seeds": 5, "images": 40, "modes": ("probe",)}


def judged(arms: dict[str, float] | None, redundancy: int | None = 5, junk: float = 0.2, **grid: object) -> JudgedPool:
    """A pool with both arms' worth, and a grid with these arms' qualities."""
    pool = KnownPool(Path("pool"), Path("pool/images"), redundancy is None, redundancy, junk)
    results = results_table(arms, **{**PASSED, **grid}) if arms else None
    if results:
        results = results.replace_schema_metadata({NAMES: json.dumps({"validation": ["a"]}).encode()})
    return JudgedPool(pool, FULL, WORTH, results)


def lines_of(text: str) -> dict[str, list[str]]:
    """The cells of every table's line by its first."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first: cells for first, *cells in rows}


def test_an_arms_line_holds_the_means_over_seeds_and_its_level() -> None:
    text = pools_text([judged(ARMS)], "by hand")
    assert "by hand" in text
    assert "## Synthetic: 5 near copies, 20 % junk\n" in text
    assert "optidel minus random_images, probed: **+" in text
    lines = lines_of(text)
    assert lines["optidel, 5 %"][:6] == ["8", "12.5 % (0.0 to 25.0)", "text 1", "5.5 of 10", "3.5 of 4", "1.5 of 2"]
    assert lines["full"][:3] == ["36", "19.4 %", "black 3, text 4"]
    assert lines["(all key patches)"] == [*lines["full"][:6], "–", "–"]
    assert lines["none"][:6] == ["–"] * 6
    level = [float(lines[arm][6].split()[0]) for arm in ("none", "random_images, 5 %", "full", "optidel, 5 %")]
    assert level == sorted(level)
    assert lines["none"][7] == "5 seeds"


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    (line,) = [line for line in pools_text([judged(ARMS, seeds=1)]).splitlines() if line.startswith("optidel minus")]
    assert line.count("(no interval)") == 2
    assert "zero" not in line


def test_the_test_part_is_not_read() -> None:
    both, validation = (judged(ARMS, splits=parts) for parts in (("validation", "test"), ("validation",)))
    assert pools_text([both]) == pools_text([validation])


def test_a_pool_whose_gate_has_not_passed_says_so() -> None:
    text = pools_text([judged({**ARMS, "full": 0.5}, 1), judged(ARMS, 20), judged({"none": 0.5, "optidel": 0.7})])
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Synthetic: no near copies, 20 % junk: no headroom",
        "## Synthetic: 20 near copies, 20 % junk",
        "## Synthetic: 5 near copies, 20 % junk: gate not run",
    ]
    assert "above zero" in text
    assert "full minus none, probed: not run" in text


def test_without_pretraining_there_is_only_what_the_arms_took(tmp_path: Path) -> None:
    one = judged(None, None)
    write_testbed_results([one], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["testbed_grid.md"]
    text = (tmp_path / "testbed_grid.md").read_text()
    assert "## Semi-synthetic: Zipf copies of real frames, 20 % junk\n" in text
    assert {first: len(cells) for first, cells in lines_of(text).items()} == dict.fromkeys(
        ("arm", "---", "(all key patches)", "full", "optidel, 5 %"), 6
    )


def test_rows_of_all_pools_are_in_one_file_and_synthetic_ones_on_the_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(testbed_results, "map_figure", lambda *arguments: drawn.append(arguments) or Figure())
    level = {"none": 0.5, "full": 0.5, "random_images": 0.6, "optidel": 0.75}
    grids = [judged(level, 1, 0.0), judged(ARMS, 20, 0.5), judged(ARMS, None)]
    write_testbed_results(grids, tmp_path)
    table = pq.read_table(tmp_path / "testbed_grid.parquet")
    assert judged_names(table) == {"validation": ["a"]}
    assert table.column_names == ["pool", "redundancy", "junk", *grids[0].results.column_names]
    of_pool = table.group_by(["pool", "redundancy", "junk"], use_threads=False).aggregate([([], "count_all")])
    assert [tuple(row.values()) for row in of_pool.to_pylist()] == [
        ("synthetic", 1, 0.0, 5 * 4),
        ("synthetic", 20, 0.5, 5 * 5),
        ("semi-synthetic", None, 0.2, 5 * 5),
    ]
    assert table.slice(20, 25).select(grids[1].results.column_names).equals(grids[1].results)
    ((found, without_headroom),) = drawn
    assert (tmp_path / "testbed_map.png").exists()
    assert {title: list(cells) for title, cells in found.items()} == {
        "optidel minus random_images, probed": [(1, 0.0), (20, 0.5)],
        "optidel minus full, probed": [(1, 0.0), (20, 0.5)],
    }
    assert without_headroom == {(1, 0.0)}


def test_no_rows_no_file() -> None:
    assert merge_results([]) is None
    assert isinstance(merge_results([judged(ARMS)]), pa.Table)
