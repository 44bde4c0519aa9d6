"""The three numbers by hand, and what is said where one was not measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optidel_hf import embeddings
from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.publishing import measures
from optidel_hf.publishing.measures import (
    NOT_EMBEDDED,
    NOT_HELD_OUT,
    NOT_JUDGED,
    NOT_SCORED,
    chosen_rows,
    pilot_text,
    set_measures,
)
from optidel_hf.publishing.records import CurationRecord, read_curation
from optidel_hf.publishing.report import build_report


@pytest.fixture
def out(curation: Path, tmp_path: Path) -> Path:
    return shutil.copytree(curation, tmp_path / "out")


def embed(out: Path, embedding: np.ndarray) -> None:
    """Give the score shards an embedding column, float16 as the scorer writes it."""
    start = 0
    for path in existing_shards(out / "scores"):
        table = pq.read_table(path)
        rows = [row.tolist() for row in embedding[start : start + len(table)].astype(np.float16)]
        pq.write_table(table.append_column("embedding", pa.array(rows, pa.list_(pa.float16()))), path)
        start += len(table)


def texts(record: CurationRecord) -> dict[str, tuple[str, str]]:
    return {row["name"].split(" of ")[0]: (row["chosen"], row["pool"]) for row in set_measures(record)}


def test_the_chosen_rows_are_found_by_key(curation: Path) -> None:
    record = read_curation(curation)
    rows = chosen_rows(record)
    assert record.columns["difficulty"][rows].tolist() == sorted(record.columns["difficulty"], reverse=True)[2:18]


def test_entropies_are_means_over_the_set_and_the_pool(curation: Path) -> None:
    record = read_curation(curation)
    measured, rows = texts(record), chosen_rows(record)
    for name, column in (("(i) H_V(Y|0)", "null_entropy"), ("(ii) H_V(Y|X)", "cond_entropy")):
        values = record.columns[column]
        assert measured[name] == (f"{values[rows].mean():.3f}", f"{values.mean():.3f}")
    assert measured["source images touched"] == ("8", "8")
    assert measured["near-duplicate groups touched"] == ("8", "8")


def test_a_patch_without_an_entropy_is_left_out_of_the_mean(curation: Path) -> None:
    record = read_curation(curation)
    first, values = chosen_rows(record)[0], record.columns["cond_entropy"]
    values[first] = np.nan
    others = values[chosen_rows(record)[1:]]
    assert texts(record)["(ii) H_V(Y|X)"] == (f"{others.mean():.3f}", f"{np.nanmean(values):.3f}")


def test_near_duplicates_are_one_group(out: Path) -> None:
    inputs = pq.read_table(out / "inputs.parquet")
    groups = ["one"] * 3 + inputs["group"].to_pylist()[3:]
    pq.write_table(inputs.set_column(1, "group", [groups]), out / "inputs.parquet")
    measured = texts(read_curation(out))
    assert (measured["source images touched"], measured["near-duplicate groups touched"]) == (("8", "8"), ("6", "6"))


def test_the_distance_to_the_nearest_chosen_by_hand(out: Path) -> None:
    # Two opposite directions and one across, about a mean of zero: 8 patches each of (1, 0), (-1, 0) and, by halves,
    # (0, 1) and (0, -1). If only those of the first two are chosen, every third patch is a cosine of 0 away.
    embedding = np.repeat(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), [8, 8, 4, 4], axis=0)
    embed(out, 0.5 + embedding / 16)  # alike but for a sixteenth, which float16 holds exactly
    record = read_curation(out)
    record.selection = keep_rows(record, range(16))
    assert texts(record)["distance to the nearest chosen"][0] == "0.333"
    record.selection = keep_rows(record, [0, 8, 16, 20])
    assert float(texts(record)["distance to the nearest chosen"][0]) == 0
    record.selection = keep_rows(record, [0])  # 8 are 0 away, 8 are 2, 8 are 1
    assert float(texts(record)["distance to the nearest chosen"][0]) == 1


def keep_rows(record: CurationRecord, rows: range | list[int]) -> pa.Table:
    table = pa.concat_tables(
        [pq.read_table(path, columns=["source", "crop"]) for path in existing_shards(record.folder / "scores")]
    )
    return table.take(list(rows))


def test_what_was_not_measured_is_said(out: Path) -> None:
    measured = texts(read_curation(out))
    assert measured["distance to the nearest chosen"] == (NOT_EMBEDDED, "")
    assert measured["(iii) held-out V-information"] == (NOT_HELD_OUT, "")
    pq.write_table(pa.table({"source": ["a.png"], "group": ["a.png"]}), out / "held_out.parquet")
    assert texts(read_curation(out))["(iii) held-out V-information"] == (NOT_JUDGED, "")
    shutil.rmtree(out / "scores")
    measured = texts(read_curation(out))
    assert measured["(i) H_V(Y|0)"] == measured["(ii) H_V(Y|X)"] == (NOT_SCORED, "")


def test_a_finished_curation_is_measured_without_its_patches(out: Path) -> None:
    before = texts(read_curation(out))
    shutil.rmtree(out / "patches")
    measured = texts(read_curation(out))
    for name in ("source images touched", "near-duplicate groups touched"):
        assert measured[name] == (before[name][0], "")
    build_report(out, out / "report.html")
    existing_shards(out / "scores")[0].unlink()
    with pytest.raises(UserError, match="scores lacks patches that the selection holds: bring back the shards"):
        set_measures(read_curation(out))


def test_judged_models_are_shown_with_their_interval(out: Path, tmp_path: Path) -> None:
    figures = {"v_information": 0.4126, "low": 0.39, "high": 0.44, "frames": 150, "groups": 141, "target": "raw"}
    (out / "held_out.json").write_text(json.dumps({"hard": figures, "one": {**figures, "low": None, "high": None}}))
    page = build_report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "(iii) held-out V-information of hard" in page
    assert "0.413 (95 % 0.390 to 0.440; 150 frames, 141 groups)" in page
    assert "0.413 (no interval of so few groups; 150 frames, 141 groups)" in page
    assert NOT_JUDGED not in page
    assert NOT_HELD_OUT not in page


def test_models_that_were_judged_on_downstream_images_alone_are_shown(out: Path) -> None:
    figures = {"v_information": 0.4126, "low": 0.39, "high": 0.44, "frames": 150, "groups": 141, "target": "raw"}
    (out / "downstream.json").write_text(json.dumps({"hard": figures}))
    held_out, downstream = [row for row in set_measures(read_curation(out)) if row["name"].startswith("(iii)")]
    assert held_out["chosen"] == NOT_HELD_OUT
    assert downstream["name"] == "(iii) V-information on downstream images, hard"
    assert downstream["chosen"].startswith("0.413 ")


def test_the_goal_is_compared_with_the_task(out: Path, results: Callable, tmp_path: Path) -> None:
    table = results(tmp_path / "results.json", {"a": 0.5, "b": 0.6, "c": 0.7, "unjudged": 0.1})
    assert "it needs an evaluation and at least three" in build_report(
        out, tmp_path / "r.html", None, table
    ).read_text(encoding="utf-8")
    one = {"low": None, "high": None, "frames": 9, "groups": 1, "target": "raw"}
    judged = {arm: {**one, "v_information": bits} for arm, bits in (("a", 0.1), ("b", 0.3), ("c", 0.2), ("d", 0.9))}
    (out / "held_out.json").write_text(json.dumps(judged))
    page = build_report(out, tmp_path / "report.html", None, table).read_text(encoding="utf-8")
    assert "with mean IoU: 0.50 over 3 arms (finetune); 0.50 over 3 arms (probe)." in page


def test_a_selection_without_scores_of_its_own_is_measured_by_those_beside_it(out: Path) -> None:
    # As `--strategy random --reuse` leaves it: the list has no score column, the scores lie in their folder.
    before, table = texts(read_curation(out)), pq.read_table(out / "selection.parquet")
    bare = table.select(["source", "crop", "bbox", "rank", "mosaic", "slot", "cluster"])
    pq.write_table(bare.replace_schema_metadata(table.schema.metadata), out / "selection.parquet")
    assert texts(read_curation(out)) == before
    assert "Mean" in build_report(out, out / "report.html").read_text(encoding="utf-8")


def test_arms_whose_bits_are_not_comparable_are_ranked_apart(out: Path, results: Callable, tmp_path: Path) -> None:
    table = results(tmp_path / "results.json", {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8, "e": 0.9, "f": 1.0})
    one = {"low": None, "high": None, "frames": 9, "groups": 9, "null_entropy": 3.0}
    pixels = {
        arm: {**one, "v_information": bits, "target": "raw"} for arm, bits in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    }
    views = {arm: {**one, "v_information": bits, "target": "other view"} for arm, bits in zip("def", (2.9, 2.5, 2.7))}
    (out / "held_out.json").write_text(json.dumps({**pixels, **views}))
    (out / "downstream.json").write_text(json.dumps(pixels))
    page = build_report(out, tmp_path / "report.html", None, table).read_text(encoding="utf-8")
    assert "−0.50 over 3 arms (finetune); 1.00 over 3 arms (finetune)" in page
    assert "1.00 over 3 arms (probe, on downstream images)" in page
    assert "bits a frame, at most 3.00" in page
    assert "(iii) V-information on downstream images, a" in page


def test_learnability_is_shown_where_it_was_measured(out: Path, tmp_path: Path) -> None:
    assert "learnability" not in build_report(out, tmp_path / "without.html").read_text(encoding="utf-8")
    for path in existing_shards(out / "scores"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("learnability", pa.array(np.linspace(0.1, 0.5, len(table)))), path)
    assert "learnability (bits per value gained" in build_report(out, tmp_path / "with.html").read_text(
        encoding="utf-8"
    )


def test_a_pilot_is_told_with_its_lead() -> None:
    found = {"arm": "medium", "over": "easiest", "gain": 0.1, "low": 0.05, "high": 0.15, "repeats": 5}
    assert pilot_text({"pilot": {**found, "counts": [400, 800, 1600]}}) == (
        "A pilot of 5 repeats named medium: at 1,600 patches it leads easiest by 0.100 bits per value "
        "(95 % 0.050 to 0.150), extrapolated from a quarter and a half."
    )
    assert pilot_text({}) == ""


def test_the_distance_is_the_same_in_parts(curation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    embed(out, np.random.default_rng(0).normal(size=(24, 3)))
    record = read_curation(out)
    record.selection = keep_rows(record, range(0, 24, 2))
    distance = measures.coverage_distance(record, np.arange(0, 24, 2))
    pool = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float16).astype(np.float64)
    away = pool - pool.mean(axis=0)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    assert distance == pytest.approx(1 - (away @ away[::2].T).max(axis=1).mean(), abs=1e-4)
    near = [np.argmax(away @ away[row]) for row in range(24)]
    assert near == list(range(24))


def test_a_shard_without_patches_changes_no_distance(out: Path) -> None:
    embed(out, np.random.default_rng(0).normal(size=(24, 3)))
    before = texts(read_curation(out))
    first, *_, last = existing_shards(out / "scores")
    pq.write_table(pq.read_table(first).slice(0, 0), last.with_name("shard-00003-of-00004.parquet"))
    assert texts(read_curation(out)) == before


def test_patches_that_differ_by_rounding_alone_do_not_cover_each_other(out: Path) -> None:
    embed(out, 0.1 + np.random.default_rng(0).uniform(-1e-4, 1e-4, (24, 3)))  # float16 has steps of 6e-5 there
    assert float(texts(read_curation(out))["distance to the nearest chosen"][0]) > 0.9


def test_the_distance_needs_no_patches_beside_the_scores(out: Path) -> None:
    embed(out, np.random.default_rng(0).normal(size=(24, 3)))
    before = texts(read_curation(out))["distance to the nearest chosen"]
    shutil.rmtree(out / "patches")
    assert texts(read_curation(out))["distance to the nearest chosen"] == before


@pytest.mark.parametrize("part", [4, 5])
def test_many_chosen_patches_are_looked_at_in_parts(
    curation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    embed(out, np.random.default_rng(0).normal(size=(24, 3)))
    record, rows = read_curation(out), np.arange(0, 24, 2)
    sample = np.unique(np.linspace(0, 23, part).round().astype(int))
    pool = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float16).astype(np.float64)
    away = pool - pool.mean(axis=0)
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    monkeypatch.setattr(measures, "POOL_SAMPLE", part)
    monkeypatch.setattr(embeddings, "AT_ONCE", part)
    expected = 1 - (away[sample] @ away[rows].T).max(axis=1).mean()
    assert measures.coverage_distance(record, rows) == pytest.approx(expected, abs=1e-4)
