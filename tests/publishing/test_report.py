from __future__ import annotations

import html
import json
import math
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from optidel_hf.errors import UserError
from optidel_hf.publishing.panels.results import results_panel
from optidel_hf.publishing.panels.scores import fold_means
from optidel_hf.publishing.panels.training import read_curve
from optidel_hf.publishing.records import read_curation
from optidel_hf.publishing.report import build_report, selection_reasons, summarize
from optidel_hf.publishing.sheets import by_hardness, mosaic_sheet, patch_sheets


SECTIONS = [
    "funnel",
    "measures",
    "scores",
    "sheets",
    "mosaics",
    "coverage",
    "folds",
    "training",
    "results",
    "configuration",
]
VOID = {"meta", "img", "path", "circle"}


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture
def page(curation: Path, training: Callable, results: Callable, tmp_path: Path) -> str:
    arms = {"<arm>": training(tmp_path / "a", "mae", 4), "b": training(tmp_path / "b", "simclr", 2)}
    table = results(tmp_path / "results.json", {"optidel": 0.6123, "random": 0.5877})
    return build_report(curation, tmp_path / "deep/report.html", arms, table).read_text(encoding="utf-8")


def test_has_every_section(page: str) -> None:
    found = [attributes["id"] for tag, attributes in Page(page).tags if tag == "section"]
    assert found == SECTIONS
    assert 'class="absent"' not in page


def test_says_what_was_done_in_one_sentence(page: str) -> None:
    assert (
        "24 key patches were cut from 8 of 11 source images; the strategy “optidel” chose 16 of them by difficulty, "
        "which make 4 mosaics of 4 at 16 px a tile." in page
    )


def test_a_random_choice_is_by_no_score_and_a_pilot_is_told(curation: Path) -> None:
    record = read_curation(curation)
    record.facts |= {"strategy": "random", "score": None}
    assert "the strategy “random” chose 16 of them, which make 4 mosaics" in summarize(record)
    found = {"arm": "medium", "over": "easiest", "gain": 0.1, "low": 0.05, "high": 0.15, "repeats": 5, "counts": [9]}
    record.facts["pilot"] = found
    assert " px a tile. A pilot of 5 repeats named medium: " in summarize(record)


def test_reasons_are_listed_with_the_commonest_first(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    table = pq.read_table(out / "selection.parquet")
    reasons = {"reasons": {"saturated": 2, "near the median": 16, "a copy": 6}}
    facts = json.loads(table.schema.metadata[b"optidel"]) | reasons
    pq.write_table(table.replace_schema_metadata({b"optidel": json.dumps(facts)}), out / "selection.parquet")
    sorted_reasons = [("near the median", 16), ("a copy", 6), ("saturated", 2)]
    assert selection_reasons(read_curation(out)) == sorted_reasons
    listed = re.findall(
        r'<th scope="row">(near the median|a copy|saturated)</th><td>(\d+)</td>',
        build_report(out, out / "report.html").read_text(encoding="utf-8"),
    )
    assert [(reason, int(count)) for reason, count in listed] == sorted_reasons


def test_the_configuration_has_every_stage_and_version(page: str) -> None:
    told = html.unescape(page)
    for stage in ("patches", "scores", "reference", "curated"):
        assert f'"hash": "after-{stage}"' in told
    assert '"pillow": "12.3.0"' in told
    assert '"renderer": "1"' in told


def test_loads_nothing(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert tag not in {"link", "iframe", "object", "embed", "use"}
        assert attributes.keys().isdisjoint({"src"} if tag == "script" else {"srcset", "action"})
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", page)


def test_is_small(page: str) -> None:
    assert len(page) < 1_000_000


def test_hostile_names_stay_text(page: str) -> None:
    parsed = Page(page)
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in html.unescape(page)
    assert "&lt;arm&gt;: " in page


def test_shows_chosen_dropped_and_lineage(page: str) -> None:
    images = Page(page).images()
    # Hardest, easiest: all 24 patches each; 16 chosen; 2 dropped; 4 mosaics.
    assert len(images) == 24 + 24 + 16 + 2 + 4
    assert page.count('class="chosen" title') == 2 * 16
    # The two dropped stand on the sheets of the hardest, the easiest (all are drawn on both) and the dropped.
    assert page.count("<figcaption>saturated</figcaption>") == 3 * 2
    assert len(re.findall(r'<span dir="rtl"', page)) == 4 * 4


def test_results_are_per_cent_with_intervals(page: str) -> None:
    assert "61.23" in page
    assert "59.23 to 63.23" in page
    assert "support no claim" in page


def test_optional_parts_leave_a_sentence(curation: Path, tmp_path: Path) -> None:
    page = build_report(curation, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No pre-training was given" in page
    assert "No evaluation was given" in page
    assert page.count('class="absent"') == 2


def test_reports_a_curation_that_stopped_after_cutting_patches(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    for stage in ("scores", "curated", "reference"):
        shutil.rmtree(out / stage)
    (out / "selection.parquet").unlink()
    page = build_report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "24 key patches were cut from 8 of 11 source images; nothing has been selected yet." in page
    assert page.count('class="absent"') == 7


def test_seed_without_interval(curation: Path, tmp_path: Path) -> None:
    row = {"arm": "a", "mode": "probe", "seeds": 1, "miou_mean": 0.5, "miou_low": None, "miou_high": None}
    (tmp_path / "results.json").write_text(json.dumps({"summary": [row | {"normdel": 0.31}]}))
    page = build_report(curation, tmp_path / "report.html", results=tmp_path).read_text(encoding="utf-8")
    assert re.search(r"<td>50\.00</td><td>–</td><td>0\.310</td><td>1</td>", page)


def test_missing_inputs_are_named(curation: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        build_report(tmp_path / "nowhere", tmp_path / "report.html")
    with pytest.raises(UserError, match=r"--pretrain_dirs .*nothing: no such folder"):
        build_report(curation, tmp_path / "report.html", {"a": str(tmp_path / "nothing")})
    with pytest.raises(UserError, match=r"--output .* is a folder: give a file"):
        build_report(curation, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_curve_is_thinned_to_means(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": float(step)} for step in range(1, 401)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps, losses = read_curve(tmp_path / "metrics.jsonl")
    assert np.array_equal(steps, np.arange(2, 401, 2))
    assert np.array_equal(losses, np.arange(1.5, 400, 2))


def test_a_low_pvi_is_hard(curation: Path) -> None:
    record = read_curation(curation)
    record.facts["score"] = "pvi"
    record.columns["pvi"][5] = np.nan
    score, order = by_hardness(record)
    assert score == "pvi"
    assert len(order) == 23
    assert order[-1] == np.nanargmin(record.columns["pvi"])


def test_the_selections_own_score_orders_the_sheets(curation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranked"
    shutil.copytree(curation, folder)
    table = pq.read_table(folder / "selection.parquet")
    facts = json.loads(table.schema.metadata[b"optidel"]) | {"score": "recon_error"}
    told = table.replace_schema_metadata({**table.schema.metadata, b"optidel": json.dumps(facts)})
    pq.write_table(told, folder / "selection.parquet")
    record = read_curation(folder)
    ranked_by, order = by_hardness(record)
    assert ranked_by == "recon_error"
    assert order[-1] == np.argmax(record.columns["recon_error"])


def test_without_a_score_difficulty_orders_the_sheets(curation: Path) -> None:
    record = read_curation(curation)
    record.facts["score"] = None
    assert by_hardness(record)[0] == "difficulty"


def test_of_another_score_the_ends_are_not_called_hard_and_easy(curation: Path) -> None:
    record = read_curation(curation)
    assert [sheet["title"] for sheet in patch_sheets(record)][:2] == ["Hardest", "Easiest"]
    record.facts["score"] = "contrast"
    highest, lowest, *_ = patch_sheets(record)
    assert (highest["title"], lowest["title"]) == ("Highest contrast", "Lowest contrast")
    assert "with the highest contrast" in highest["caption"]
    assert highest["tiles"][0]["title"].endswith(f"contrast {record.columns['contrast'].max():.3g}")


def test_sheets_draw_what_they_say(curation: Path) -> None:
    record = read_curation(curation)
    hardest = patch_sheets(record)[0]["tiles"]
    largest = record.columns["difficulty"].max()
    assert hardest[0]["title"].endswith(f"difficulty {largest:.3g}")
    assert (hardest[0]["note"], hardest[0]["chosen"]) == ("saturated", False)
    assert (hardest[2]["note"], hardest[2]["chosen"]) == ("", True)


def test_mosaic_tiles_stand_in_their_places(curation: Path) -> None:
    mosaic = mosaic_sheet(read_curation(curation))[0]
    assert mosaic["across"] == 2
    chosen = read_curation(curation).selection
    expected = [row["source"] for row in chosen.to_pylist() if row["mosaic"] == 0]
    assert len(mosaic["tiles"]) == len(expected) == 4
    assert all(tile["title"].startswith(f"{source}, ") for tile, source in zip(mosaic["tiles"], expected))


def test_calibration_is_the_squared_error_over_the_fitted_variance(curation: Path) -> None:
    """A Gaussian of variance 0.3 that meets squared errors of 0.45 spends 0.5 / (2 ln 2) bits over its entropy."""
    record = read_curation(curation)
    variance = 0.3
    entropy = 0.5 * math.log2(2 * math.pi * math.e * variance)
    spent = 0.5 * math.log2(2 * math.pi * variance) + 0.45 / (2 * variance * math.log(2))
    record.columns["cond_entropy"] = np.full(record.patches, spent)
    record.calibration[0]["conditional_entropy_held_out"] = entropy
    del record.calibration[1]["conditional_entropy_held_out"]
    assert [fold["calibration"] for fold in fold_means(record)] == [pytest.approx(1.5), None]


def test_another_json_file_is_no_evaluation(tmp_path: Path) -> None:
    (tmp_path / "evaluate_config.json").write_text('{"arms": []}')
    with pytest.raises(UserError, match=r"evaluate_config.json is no results.json of `optidel evaluate`"):
        results_panel(tmp_path / "evaluate_config.json")
