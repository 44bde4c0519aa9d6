"""Strategies on tables worked by hand, and the rules that hold whatever the table."""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value

from optidel_hf.curation.selection import STRATEGIES, mosaics_in_budget, select
from optidel_hf.curation.selection.candidates import rank_within, read_candidates
from optidel_hf.curation.selection.select import refuse_too_few
from optidel_hf.errors import UserError


FEATURES = Features(
    {
        "source": Value("string"),
        "group": Value("string"),
        "bbox": List(Value("float32"), length=4),
        "crop": List(Value("int32"), length=3),
        "upscale": Value("float32"),
        "cond_entropy": Value("float32"),
        "pvi": Value("float32"),
        "difficulty": Value("float32"),
        "fold": Value("int8"),
        "embedding": List(Value("float16"), length=8),
    }
)


def pool(n: int, per_source: int = 1, sources_per_group: int = 1, seed: int = 0, **columns: Any) -> Dataset:
    """`n` patches with random scores, of eight clear clusters; `columns` replaces whole columns."""
    rng = np.random.default_rng(seed)
    source = np.arange(n) // per_source
    embedding = np.eye(8)[rng.integers(8, size=n)] + 0.01 * rng.normal(size=(n, 8))
    table = {
        "source": [f"{s:05d}.png" for s in source],
        "group": [f"video-{s // sources_per_group:04d}" for s in source],
        "bbox": [[float(i), 0.0, 8.0, 8.0] for i in range(n)],
        "crop": [[i, 0, 8] for i in range(n)],
        "upscale": np.ones(n),
        "cond_entropy": rng.normal(size=n),
        "pvi": rng.normal(size=n),
        "difficulty": rng.normal(size=n),
        "fold": np.zeros(n, dtype=np.int8),
        "embedding": list(embedding.astype(np.float16)),
    }
    return Dataset.from_dict({**table, **columns}, features=FEATURES)


# Budget


def test_a_budget_is_rounded_half_up() -> None:
    assert mosaics_in_budget(0.05, 1530) == 77  # 76.5, which is 76.50000000000001 or 76.49999 in binary
    assert mosaics_in_budget(0.05, 1537) == 77
    assert mosaics_in_budget(0.05, 1529) == 76
    assert mosaics_in_budget(0.35, 10) == 4  # 3.5
    assert mosaics_in_budget(1.0, 7) == 7


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.5])
def test_a_budget_is_a_fraction(budget: float) -> None:
    with pytest.raises(UserError, match="is not a fraction of the source images"):
        mosaics_in_budget(budget, 100)


def test_a_budget_of_no_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"Budget 0.05 of 9 images rounds to none: give at least 0.055556"):
        mosaics_in_budget(0.05, 9)
    for images in (3, 7, 11, 12_345, 900_001):  # what is asked for is enough
        with pytest.raises(UserError) as refused:
            mosaics_in_budget(1e-9, images)
        least = re.search(r"at least ([\d.e-]+),", str(refused.value))
        assert least
        assert mosaics_in_budget(float(least[1]), images) == 1
    with pytest.raises(UserError, match="of 0 images rounds to none"):
        select(pool(0), 0.05)


def test_a_budget_beyond_the_pool_is_refused_with_what_it_can_give() -> None:
    with pytest.raises(UserError, match=r"needs 80 patches and the pool has 40: lower it to at most 0.5,"):
        select(pool(40, per_source=2), 1.0, strategy="random")
    assert len(select(pool(40, per_source=2), 0.5, strategy="random").rows) == 40
    with pytest.raises(UserError, match=r"lower it to at most 0.123477,") as refused:
        refuse_too_few(49_387, 1.0, 99_986, 4)
    refuse_too_few(49_387, float(str(refused.value).split("at most ")[1].split(",")[0]), 99_986, 4)
    with pytest.raises(UserError, match="lower --tiles_per_mosaic, give more images"):
        refuse_too_few(3, 1.0, 3, 4)


def test_images_without_patches_count_in_the_budget() -> None:
    chosen = select(pool(40), 0.1, strategy="random", images=80)
    assert chosen.facts["counts"] == {"pool": 40, "eligible": 40, "chosen": 32, "mosaics": 8}


# Arguments


def test_what_is_missing_is_named() -> None:
    with pytest.raises(
        UserError, match="'hard' is not known: choose one of optidel, hardest, easiest, medium, random"
    ):
        select(pool(8), 0.5, strategy="hard")
    with pytest.raises(UserError, match="keep is 'middle': choose one of far, near"):
        select(pool(8), 0.5, keep="middle")
    with pytest.raises(UserError, match="'random' needs column 'crop'"):
        select(pool(8).remove_columns("crop"), 0.5, "random", explain=True)
    with pytest.raises(UserError, match="'optidel' needs column 'difficulty'"):
        select(pool(8).remove_columns("difficulty"), 0.5)
    with pytest.raises(UserError, match="'optidel' needs column 'embedding'"):
        select(pool(8).remove_columns("embedding"), 0.5)
    scores = np.ones(8)
    scores[5] = np.nan
    with pytest.raises(UserError, match=r"Column 'pvi' is NaN in row 5 \('00005.png'\)"):
        select(pool(8, pvi=scores), 0.5, strategy="hardest", score="pvi", tiles_per_mosaic=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_reads_the_columns_that_it_names_and_no_other(strategy: str) -> None:
    needs = STRATEGIES[strategy]
    columns = ["source", "group", "bbox", "upscale"]
    columns += [needs.score, "fold"] if needs.score else []
    columns += ["embedding"] if needs.embedding else []
    selection = select(pool(40).select_columns(columns), 0.1, strategy=strategy)
    assert len(set(selection.rows.tolist())) == 16
    assert needs.scored == (len(columns) > 4)
    for name in columns[4:]:
        with pytest.raises(UserError, match=f"'{strategy}' needs column '{name}'"):
            select(pool(40).select_columns(columns).remove_columns(name), 0.1, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 17, 76, 80])
def test_every_strategy_meets_the_budget_exactly(strategy: str, count: int) -> None:
    embedding = np.eye(8)[np.random.default_rng(1).integers(8, size=80)]  # duplicates: thresholds meet many ties
    table = pool(80, per_source=2, embedding=list(embedding), difficulty=np.arange(80) // 9)
    chosen = select(table, count / 80, strategy, images=80, tiles_per_mosaic=1).rows
    assert len(set(chosen.tolist())) == len(chosen) == count


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_datasets_and_arrow_tables_give_the_same(strategy: str) -> None:
    table = pool(60, per_source=2, seed=1)
    shuffled = table.shuffle(seed=3)
    # Embeddings are rounded to float16 in one file and chunked in another: neither may matter.
    arrow = pa.concat_tables([shuffled.with_format("arrow")[:25], shuffled.with_format("arrow")[25:]])
    first, second = (select(t, 0.3, strategy=strategy) for t in (shuffled, arrow))
    assert first.rows.tolist() == second.rows.tolist()
    assert first.facts == second.facts


# Strategies by hand


def chosen_sources(table: Dataset, strategy: str, count: int, **options: Any) -> list[str]:
    selection = select(table, count / len(table), strategy=strategy, tiles_per_mosaic=1, **options)
    return [table["source"][row][:5].lstrip("0") or "0" for row in selection.rows]


def test_hardest_and_easiest_by_hand() -> None:
    table = pool(6, cond_entropy=[0.3, 0.9, -1.0, 0.5, 2.0, 0.4])
    assert chosen_sources(table, "hardest", 3) == ["4", "1", "3"]
    assert chosen_sources(table, "easiest", 3) == ["2", "0", "5"]
    assert chosen_sources(table, "medium", 2, score="cond_entropy") == ["5", "3"]


def test_little_information_is_hard() -> None:
    table = pool(4, pvi=[0.9, -0.2, 0.4, 0.1])
    assert chosen_sources(table, "hardest", 2, score="pvi") == ["1", "3"]
    assert chosen_sources(table, "easiest", 2, score="pvi") == ["0", "2"]


def test_a_row_without_a_group_is_its_sources() -> None:
    columns = pool(4, group=["video", None, "", None], source=["a", "b", "c", "b"]).with_format("numpy")[:]
    group = read_candidates(columns, None, np.ones(4, bool), False).group  # by source: a, b, b, c
    assert group.tolist() == [2, 0, 0, 1]


def test_scores_of_two_models_are_ranked_apart() -> None:
    # Fold 1's model finds everything harder by 10: among all, its patches alone would be chosen.
    table = pool(8, cond_entropy=[1, 2, 3, 4, 11, 12, 13, 14], fold=[0, 0, 0, 0, 1, 1, 1, 1])
    assert chosen_sources(table, "hardest", 4) == ["3", "7", "2", "6"]
    ranks = rank_within(np.array([5.0, 1, 7, 70]), np.array([0, 0, 1, 1]))
    assert ranks.tolist() == [1.0, 0.5, 0.5, 1.0]


def test_ties_are_broken_by_source_and_box_alone() -> None:
    names = ["b", "a", "b", "a", "c", "c"]
    boxes = [[9.0, 0, 1, 1], [5.0, 0, 1, 1], [9.0, 0, 0.5, 1], [3.0, 9, 1, 1], [10.0, 0, 1, 1], [9.0, 0, 1, 1]]
    table = pool(6, source=names, bbox=boxes, cond_entropy=[0.0] * 6)
    order = [3, 1, 2, 0, 5, 4]
    assert select(table, 1.0, "easiest", tiles_per_mosaic=1).rows.tolist() == order[:3]
    assert select(table, 1.0, "hardest", tiles_per_mosaic=1).rows.tolist() == order[:2:-1]
    columns = {name: np.array(table[name]) for name in ("source", "group", "bbox")}
    assert read_candidates(columns, None, np.ones(6, bool), False).rows.tolist() == order


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_row_order_does_not_matter(strategy: str) -> None:
    table = pool(80, per_source=4, sources_per_group=2, seed=2, fold=np.arange(80) % 2)
    tied = table.map(lambda row: {"difficulty": round(row["difficulty"]), "cond_entropy": round(row["cond_entropy"])})
    results = []
    for rows in (np.arange(80), np.random.default_rng(0).permutation(80)):
        selection = select(tied.select(rows), 0.5, strategy=strategy)
        keys = [tuple(box) for box in np.array(tied["bbox"])[rows][selection.rows].tolist()]
        results.append(list(zip(keys, selection.mosaic.tolist(), selection.slot.tolist())))
    assert results[0] == results[1]


def test_random_is_uniform_and_seeded() -> None:
    table = pool(20).with_format("arrow")[:]
    drawn = [select(table, 0.25, "random", seed=s, tiles_per_mosaic=1).rows for s in range(400)]
    counts = np.bincount(np.concatenate(drawn), minlength=20)
    assert np.abs(counts - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)
    assert all(len(set(rows.tolist())) == 5 for rows in drawn)
    assert np.array_equal(select(table, 0.25, "random", seed=7, tiles_per_mosaic=1).rows, drawn[7])


def test_whole_images_are_selected_as_patches_are() -> None:
    table = pool(30, upscale=np.full(30, 0.2))
    selection = select(table, 0.2, "hardest", tiles_per_mosaic=1)
    assert selection.rows.tolist() == np.argsort(-np.array(table["cond_entropy"]))[:6].tolist()
    assert selection.slot.tolist() == [0] * 6
    assert sorted(selection.mosaic.tolist()) == list(range(6))
    assert selection.cluster.tolist() == [-1] * 6


# The rule on enlarged crops


def test_enlarged_crops_are_left_out_where_they_are_few(caplog: pytest.LogCaptureFixture) -> None:
    few = np.ones(40)
    few[:3] = 2.5
    selection = select(pool(40, upscale=few), 0.8, "random", tiles_per_mosaic=1)
    assert selection.facts["counts"]["eligible"] == 37
    assert selection.rows.min() >= 3
    assert not caplog.records


def test_enlarged_crops_are_kept_with_a_warning_from_a_tenth_on(caplog: pytest.LogCaptureFixture) -> None:
    many = np.ones(40)
    many[:4] = 2.5
    with caplog.at_level(logging.WARNING):
        selection = select(pool(40, upscale=many), 1.0, "random", tiles_per_mosaic=1)
    assert selection.facts["counts"]["eligible"] == 40
    assert "10 % of the patches are enlarged more than 2 times and are kept" in caplog.text


# Reasons


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_row_has_a_reason_and_asking_changes_nothing(strategy: str) -> None:
    table = pool(80, per_source=4, seed=3, upscale=np.where(np.arange(80) % 16 == 5, 3.0, 1.0))
    plain, told = (select(table, 0.5, strategy, explain=explain) for explain in (False, True))
    assert plain.reasons is None
    assert np.array_equal(plain.rows, told.rows)
    kept = [row for row, reason in enumerate(told.reasons) if reason.startswith("kept: ")]
    assert kept == sorted(told.rows.tolist())
    assert all(told.reasons[row].startswith("dropped: ") for row in set(range(80)) - set(kept))
    assert [told.reasons[row] for row in range(5, 80, 16)] == ["dropped: enlarged too much"] * 5
    assert sum(told.facts["reasons"].values()) == 80
    assert plain.facts == {name: fact for name, fact in told.facts.items() if name not in ("reasons", "dropped")}


def test_what_was_never_ranked_is_listed_reason_by_reason() -> None:
    table = pool(100, difficulty=np.arange(100.0), upscale=np.where(np.arange(100) < 3, 2.5, 1.0))
    facts = select(table, 0.2, trim=0.03, tiles_per_mosaic=1, explain=True).facts
    assert [(row["crop"][0], row["reason"].split()[0]) for row in facts["dropped"]] == [
        (0, "enlarged"),
        (98, "outlier"),
        (1, "enlarged"),
        (99, "outlier"),
        (2, "enlarged"),
    ]  # 3 % of the 97 that are left are two
    assert facts["dropped"][1]["source"] == "00098.png"
    assert facts["reasons"]["dropped: outlier cut, at the very top of the ranking"] == 2
    many = pool(300, difficulty=np.arange(300.0))
    assert len(select(many, 0.1, trim=0.5, tiles_per_mosaic=1, explain=True).facts["dropped"]) == 100


def test_little_information_is_hard_whichever_model_measures_it() -> None:
    values = np.random.default_rng(1).normal(size=40)
    table = pool(40, pvi=values).rename_column("pvi", "contrastive_pvi")
    chosen = select(table, 0.1, "hardest", score="contrastive_pvi", tiles_per_mosaic=1).rows
    assert sorted(chosen) == sorted(np.argsort(values)[:4])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trim": 1.5}, "trim is 1.5"),
        ({"trim": float("nan")}, "trim is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"images": 0}, "images is 0"),
        ({"tiles_per_mosaic": 3}, "tiles_per_mosaic is 3"),
    ],
)
def test_numbers_that_no_selection_has_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        select(pool(40), 0.1, **wrong)


def test_rows_without_a_patch_are_refused_by_their_number() -> None:
    rejected = {"source": ["broken.png"], "group": ["broken.png"]}
    table = pa.concat_tables([pool(40).with_format("arrow")[:], pa.table(rejected)], promote_options="default")
    with pytest.raises(UserError, match="Column 'bbox' is null in row 40: leave out what was `rejected`"):
        select(table, 0.1, "random", tiles_per_mosaic=1)


def test_a_spread_over_one_partition_is_refused_with_the_way_out() -> None:
    table = pool(40, pvi=np.full(40, np.nan)).rename_column("pvi", "pvi_std")
    with pytest.raises(UserError, match=r"Column 'pvi_std' is NaN in row 0 .*: score with two --partitions"):
        select(table, 0.1, "hardest", score="pvi_std")
