"""The report's optional panels: what each reads, counts and draws, and that none is there without its part."""

from __future__ import annotations

import io
import json
import re
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from optidel_hf.publishing import sheets
from optidel_hf.publishing.figures import thumbnail
from optidel_hf.publishing.panels import groups, strategies, training
from optidel_hf.publishing.panels.evidence import evidence_panel
from optidel_hf.publishing.panels.groups import coverage_panel
from optidel_hf.publishing.panels.pilot import pilot_panel
from optidel_hf.publishing.panels.strategies import strategy_panel
from optidel_hf.publishing.panels.training import reconstructions
from optidel_hf.publishing.records import read_curation
from optidel_hf.publishing.report import MOST_BYTES, build_report


ARMS = {"none": (0.5, [0.0]), "full": (0.7, [1.0]), "random_images": (0.6, [0.05]), "optidel": (0.65, [0.05])}


@pytest.fixture(scope="module")
def page(every_part: dict[str, Any]) -> str:
    return build_report(**every_part).read_text(encoding="utf-8")


def test_every_part_has_its_panel_and_its_link(page: str) -> None:
    sections = re.findall(r'<section id="(\w+)"', page)
    assert re.findall(r'<a href="#(\w+)"', page) == sections
    assert {"evidence", "strategies", "pilot", "coverage"} < set(sections)


def test_no_part_no_panel(curation: Path, tmp_path: Path) -> None:
    page = build_report(curation, tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'<section id="(?:evidence|strategies|pilot)"|Reconstructions|data-arm=', page)
    assert re.findall(r'<a href="#(\w+)"', page) == re.findall(r'<section id="(\w+)"', page)


def test_the_script_is_the_one_that_the_policy_allows(page: str) -> None:
    from base64 import b64encode
    from hashlib import sha256

    allowed = re.search(r"script-src 'sha256-([^']+)'", page)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert allowed
    assert script
    assert allowed[1] == b64encode(sha256(script[1].encode()).digest()).decode()


def test_evidence_is_shown_in_points(grid: Callable) -> None:
    panel = evidence_panel(grid(ARMS))
    assert panel
    rows = {(row["arm"], row["mode"]): row for row in panel["rows"]}
    assert len(rows) == 8
    own = rows["optidel", "finetune"]
    assert own["own"] == {key: pytest.approx(value) for key, value in (("mean", 66), ("low", 65), ("high", 67))}
    assert own["minus"]["random_images"]["mean"] == pytest.approx(5)
    assert own["minus"]["full"]["mean"] == pytest.approx(-5)
    assert own["minus"]["full"]["detectable"] == pytest.approx(5)
    assert rows["full", "probe"]["minus"]["full"] is None
    (facts,) = (row.facts for row in panel["sets"] if row.arm == "optidel")
    assert facts == {"source images": pytest.approx(5), "curation, s": 30}


def test_an_arm_without_a_budget_is_a_level(grid: Callable) -> None:
    """Whatever its name: of the drawing, the arms that are told to have none have a dashed line and no dot."""
    panel = evidence_panel(grid(ARMS))
    assert panel
    groups = dict(re.findall(r'<g data-arm="(\w+)">(.*?)</g>', panel["charts"][0]["budget"]))
    assert {arm for arm, drawn in groups.items() if 'class="level"' in drawn} == {"none", "full"}
    assert {arm for arm, drawn in groups.items() if "<circle" in drawn} == {"random_images", "optidel"}


def test_the_contrasts_fixed_beforehand(grid: Callable) -> None:
    modes = ("finetune", "probe")
    for seeds, above in ((5, True), (3, False)):
        panel = evidence_panel(grid(ARMS, seeds=seeds))
        assert panel
        found = {(row["baseline"], row["mode"]): row["above"] for row in panel["primary"]}
        assert found == {("random_images", mode): above for mode in modes} | {("full", mode): False for mode in modes}


def test_a_gate_that_did_not_pass_is_said(every_part: dict[str, Any], grid: Callable, tmp_path: Path) -> None:
    told = every_part | {"evidence": grid(ARMS, passed=False), "output": tmp_path / "report.html"}
    assert "The gate has not passed: these figures support no claim." in build_report(**told).read_text(
        encoding="utf-8"
    )


def test_one_seed_has_no_interval(grid: Callable) -> None:
    panel = evidence_panel(grid(ARMS, seeds=1))
    assert panel
    assert panel["rows"][0]["own"] == {"mean": 50, "low": None, "high": None}
    assert not any(row["above"] for row in panel["primary"])


def test_coverage_counts_by_source_group_and_folder(curation: Path, tmp_path: Path) -> None:
    record = read_curation(curation)
    assert record.selection is not None
    panel = coverage_panel(record)
    assert panel
    given = np.unique(record.selection["source"].to_numpy(zero_copy_only=False), return_counts=True)[1]
    assert [row["sources"] for row in panel["shares"]] == [
        8 - len(given),
        *((given == n).sum() for n in range(1, 5)),
        (given >= 5).sum(),
    ]
    assert sum(row["groups_share"] for row in panel["shares"]) == pytest.approx(1)
    assert (panel["copies"], panel["groups"]) == (0, [])  # every image is its own group
    assert sum(folder["chosen"] for folder in panel["folders"]) == 16
    assert sum(folder["images_share"] for folder in panel["folders"]) == pytest.approx(1)


def test_near_duplicate_groups_are_shown_with_the_chosen_first(every_part: dict[str, Any], tmp_path: Path) -> None:
    record = read_curation(every_part["curation_dir"])
    inputs = pq.read_table(record.folder / "inputs.parquet")
    one = ["the group"] * 5 + inputs["group"].to_pylist()[5:]
    pq.write_table(inputs.set_column(1, "group", [one]), record.folder / "inputs.parquet")
    try:
        panel = coverage_panel(record)
    finally:
        pq.write_table(inputs, record.folder / "inputs.parquet")
    assert panel
    (group,) = panel["groups"]
    assert (group["name"], group["images"], group["patches"], panel["copies"]) == ("the group", 5, 15, 4)
    marks = [tile["chosen"] for tile in group["tiles"]]
    assert len(marks) == 5
    assert marks == sorted(marks, reverse=True)
    assert marks[0]


def test_strategies_show_the_terms_with_what_the_cut_refuses(every_part: dict[str, Any]) -> None:
    record = read_curation(every_part["curation_dir"])
    panel = strategy_panel(record, every_part["compared"])
    assert panel
    assert [sheet["name"] for sheet in panel["sheets"]] == ["random", "hardness alone"]
    assert [tile["refused"] for tile in panel["sheets"][0]["tiles"]] == [True] + [False] * 11
    assert "chosen in this run" in panel["chart"]
    assert panel["sheets"][0]["tiles"][0]["title"] == "video_0/frame.png"
    assert strategy_panel(record, []) is None


def test_the_pilot_stands_beside_the_theory(every_part: dict[str, Any], page: str) -> None:
    facts = read_curation(every_part["curation_dir"]).facts
    panel = pilot_panel(facts, every_part["theory"])
    assert panel
    assert [arm["name"] for arm in panel["arms"]] == ["easiest", "medium", "optidel"]
    assert [chart["ratio"] for chart in panel["theory"]] == [20, 100]
    assert "that of a perceptron, not that of a ViT" in page
    alone = pilot_panel(facts, None)
    assert alone
    assert alone["theory"] == []
    assert pilot_panel({}, every_part["theory"]) is None


def test_the_last_reconstruction_of_each_arm(every_part: dict[str, Any]) -> None:
    (picture,) = reconstructions(every_part["pretrain_dirs"])
    assert (picture["arm"], picture["step"]) == ("optidel", 100)
    image = Image.open(io.BytesIO(b64decode(picture["uri"].split(",")[1])))
    assert image.size == (96, 64)
    assert image.getpixel((5, 5))[0] == pytest.approx(100, abs=3)


def test_a_thumbnail_keeps_within_its_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    value = {"bytes": buffer.getvalue(), "path": None}
    for most in (12_000, 1_000):
        assert len(thumbnail(value, 224, most)) <= most * 4 / 3 + 30
    assert len(thumbnail(value, 224, 12_000)) > 4_000  # and is no smaller than it must be


def test_all_pictures_together_fill_half_of_the_page_at_most() -> None:
    """Whatever the images: every picture has its limit, and these are the most that are drawn."""
    patches = 4 * sheets.PATCHES_DRAWN + sheets.MOSAICS_DRAWN
    rules = 8 * strategies.TILES_DRAWN * strategies.TILE_BYTES
    near = groups.GROUPS_DRAWN * groups.TILES_DRAWN * groups.TILE_BYTES
    assert (12_000 * patches + rules + near + training.PICTURE_BYTES) * 4 / 3 < MOST_BYTES / 2


def test_a_page_that_is_too_long_is_told(
    curation: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optidel_hf.publishing.report.MOST_BYTES", 1000)
    build_report(curation, tmp_path / "report.html")
    assert "the tables of this run are that long" in caplog.text


def test_arms_named_by_a_stranger_stay_text(every_part: dict[str, Any], grid: Callable, tmp_path: Path) -> None:
    hostile = '"><script>alert(3)</script>'
    told = every_part | {"evidence": grid(ARMS | {hostile: (0.4, [0.05])}), "output": tmp_path / "report.html"}
    page = build_report(**told).read_text(encoding="utf-8")
    assert page.count("<script>") == 1
    assert json.dumps("alert(3)")[1:-1] in page
