from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.publishing.records import (
    find_rows,
    funnel,
    patch_key,
    read_curation,
    read_results,
    read_rows,
    read_selection,
)
from optidel_hf.publishing.sheets import patch_sheets


def test_counts_each_image_once(curation: Path) -> None:
    record = read_curation(curation)
    assert (record.rejected, record.without_patch) == ({"broken image": 1, "too many pixels": 1}, 1)
    assert (record.sources, record.with_patches, record.patches, record.mosaics) == (11, 8, 24, 4)


def test_funnel_counts_down_from_images_and_from_patches(curation: Path) -> None:
    steps = {step["label"]: (step["count"], step["share"]) for step in funnel(read_curation(curation))}
    assert (steps["rejected"], steps["without a key patch"]) == ((2, 2 / 11), (1, 1 / 11))
    assert steps["with key patches"] == (8, 8 / 11)
    assert steps["eligible"] == (22, 22 / 24)
    assert steps["chosen"] == (16, 16 / 24)


def test_the_funnel_says_why_key_patches_are_not_eligible(curation: Path) -> None:
    notes = {step["label"]: step["notes"] for step in funnel(read_curation(curation))}
    assert notes["eligible"] == ["2 enlarged beyond --max_upscale"]


def test_the_funnel_of_a_finished_curation_needs_no_patches(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    shutil.rmtree(out / "patches")
    assert funnel(read_curation(out)) == funnel(read_curation(curation))


def test_funnel_names_what_was_held_out_and_cut(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    pq.write_table(pa.table({"source": ["a.png", "b.png"], "group": ["a.png", "a.png"]}), out / "held_out.parquet")
    record = read_curation(out)
    record.facts["cut"] = {
        "dropped: spoilt by burned-in text": {"limit": 0.02, "count": 5},
        "dropped: spoilt by glare": {"limit": 0.0, "count": 2},
        "dropped: outlier cut, at the very top of the ranking": {"limit": None, "count": 1},
    }
    steps = {step["label"]: (step["count"], step["notes"]) for step in funnel(record)}
    assert steps["held out"] == (2, ["seen by no stage"])
    notes = ["5 spoilt by burned-in text (above 0.02)", "2 spoilt by glare (above 0)"]
    assert steps["cut as outliers"] == (8, [*notes, "1 outlier cut, at the very top of the ranking"])


def test_funnel_names_the_commonest_reasons(curation: Path) -> None:
    record = read_curation(curation)
    record.rejected = Counter({f"reason {count}": count for count in range(1, 13)})
    record.without_patch = 0
    record.facts["tiles_per_mosaic"] = 1
    notes = {step["label"]: step["notes"] for step in funnel(record)}
    assert notes["rejected"] == [*(f"{count} reason {count}" for count in range(12, 2, -1)), "and 2 rarer reasons"]
    assert "without a key patch" not in notes
    assert notes["mosaics"] == ["1 tile each"]


def test_columns_follow_the_shards(curation: Path) -> None:
    record = read_curation(curation)
    assert list(record.offsets) == [0, 8, 16, 24]
    assert [record.row(index) for index in (0, 7, 8, 23)] == [(0, 0), (0, 7), (1, 0), (2, 7)]
    second = pq.read_table(existing_shards(curation / "scores")[1])
    assert np.array_equal(record.columns["pvi"][8:16], second["pvi"].to_numpy())
    assert list(record.columns["side"][8:16]) == [crop[2] for crop in second["crop"].to_pylist()]


def test_rows_come_in_the_order_asked_for(curation: Path) -> None:
    everything = [pq.read_table(path).to_pylist() for path in existing_shards(curation / "patches")]
    # Row groups hold five rows: these lie in different groups and shards, and one is asked for twice.
    wanted = [(2, 7), (0, 4), (0, 5), (1, 0), (0, 4)]
    found = read_rows(curation / "patches", wanted, ["image", "crop"])
    assert found == [{key: everything[shard][row][key] for key in ("image", "crop")} for shard, row in wanted]


def test_a_score_finds_its_patch_while_other_shards_are_being_scored(curation: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(curation, tmp_path / "half_way")
    existing_shards(folder / "scores")[1].unlink()
    (folder / "selection.parquet").unlink()
    record = read_curation(folder)
    scored = [pq.read_table(path).to_pylist() for path in existing_shards(folder / "scores")]
    expected = [row["crop"] for part in scored for row in part]
    places = [record.row(index) for index in range(len(expected))]
    assert [row["crop"] for row in read_rows(folder / "patches", places, ["crop"])] == expected
    assert [record.index(place) for place in places] == list(range(len(expected)))
    drawn = [tile["title"] for tile in patch_sheets(record)[0]["tiles"]]
    hardest_first = sorted((row for part in scored for row in part), key=lambda row: -row["difficulty"])
    assert drawn[0].startswith(f"{hardest_first[0]['source']}, ")
    assert drawn[0].endswith(f"difficulty {hardest_first[0]['difficulty']:.3g}")


def test_find_rows_tells_crops_of_one_source_apart(curation: Path) -> None:
    rows = pq.read_table(existing_shards(curation / "patches")[1], columns=["source", "crop"]).to_pylist()
    key = patch_key(rows[3])
    assert find_rows(curation / "patches", {key, (key[0], (0, 0, 1))}) == {key: (1, 3)}


def test_a_shard_that_is_gone_is_named(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    existing_shards(out / "patches")[1].unlink()
    with pytest.raises(UserError, match="patches lacks shard 1: run the curation again"):
        read_rows(out / "patches", [(0, 0), (1, 0)], ["crop"])


def test_results_are_a_json_file_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--results .*results\.json: no such file"):
        read_results(tmp_path)
    (tmp_path / "results.md").write_text("# Results")
    with pytest.raises(UserError, match=r"results\.md is no JSON file: give the results\.json"):
        read_results(tmp_path / "results.md")


def test_a_folder_without_a_curation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no inputs\.parquet"):
        read_curation(tmp_path / "nowhere")


def test_a_selection_without_its_metadata_is_refused(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    table = pq.read_table(out / "selection.parquet").replace_schema_metadata(None)
    pq.write_table(table, out / "selection.parquet")
    with pytest.raises(UserError, match="metadata"):
        read_curation(out)


def test_a_selection_comes_in_order_of_rank_whatever_its_rows(curation: Path, tmp_path: Path) -> None:
    table = pq.read_table(curation / "selection.parquet")
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), tmp_path / "selection.parquet")
    shuffled, _ = read_selection(tmp_path / "selection.parquet")
    assert shuffled.equals(table)
    assert shuffled["rank"].to_pylist() == list(range(16))
