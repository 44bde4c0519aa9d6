"""Strategies on tables worked by hand, and the rules that hold whatever the table."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, List, Value

from optidel_hf.curation.selection import mosaics_in_budget, select
from optidel_hf.curation.selection.candidates import Candidates, hardest_first, rank_within, read_candidates
from optidel_hf.curation.selection.optidel import _deal, optidel
from optidel_hf.errors import UserError


FEATURES = Features(
    {
        "source": Value("string"),
        "group": Value("string"),
        "bbox": List(Value("float32"), length=4),
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
        "upscale": np.ones(n),
        "cond_entropy": rng.normal(size=n),
        "pvi": rng.normal(size=n),
        "difficulty": rng.normal(size=n),
        "fold": np.zeros(n, dtype=np.int8),
        "embedding": list(embedding.astype(np.float16)),
    }
    return Dataset.from_dict({**table, **columns}, features=FEATURES)


def candidates(hardness: np.ndarray, source: np.ndarray, group: np.ndarray, embedding: np.ndarray) -> Candidates:
    return Candidates(np.arange(len(hardness)), source, group, hardness, embedding.astype(np.float32))


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
    with pytest.raises(UserError, match=r"Budget 0.05 of 9 images rounds to none: give at least 0.0556"):
        mosaics_in_budget(0.05, 9)
    with pytest.raises(UserError, match="of 0 images rounds to none"):
        select(pool(0), 0.05)


def test_a_budget_beyond_the_pool_is_refused_with_what_it_can_give() -> None:
    with pytest.raises(UserError, match=r"needs 80 patches and the pool has 40: lower it to at most 0.5000"):
        select(pool(40, per_source=2), 1.0, strategy="random")
    assert len(select(pool(40, per_source=2), 0.5, strategy="random").rows) == 40


def test_images_without_patches_count_in_the_budget() -> None:
    chosen = select(pool(40), 0.1, strategy="random", images=80)
    assert chosen.facts["counts"] == {"pool": 40, "eligible": 40, "chosen": 32, "mosaics": 8}


# Arguments


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="'hard' is not known: choose one of optidel, hardest, easiest, random"):
        select(pool(8), 0.5, strategy="hard")
    with pytest.raises(UserError, match="'optidel' needs column 'difficulty'"):
        select(pool(8).remove_columns("difficulty"), 0.5)
    with pytest.raises(UserError, match="'optidel' needs column 'embedding'"):
        select(pool(8).remove_columns("embedding"), 0.5)
    scores = np.ones(8)
    scores[5] = np.nan
    with pytest.raises(UserError, match=r"Column 'pvi' is NaN in row 5 \('00005.png'\)"):
        select(pool(8, pvi=scores), 0.5, strategy="hardest", score="pvi", tiles_per_mosaic=1)


def test_random_needs_no_scores() -> None:
    table = pool(40).select_columns(["source", "group", "bbox", "upscale"])
    assert len(select(table, 0.1, strategy="random").rows) == 16


@pytest.mark.parametrize("strategy", ["optidel", "hardest", "easiest", "random"])
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


def test_little_information_is_hard() -> None:
    table = pool(4, pvi=[0.9, -0.2, 0.4, 0.1])
    assert chosen_sources(table, "hardest", 2, score="pvi") == ["1", "3"]
    assert chosen_sources(table, "easiest", 2, score="pvi") == ["0", "2"]


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


@pytest.mark.parametrize("strategy", ["optidel", "hardest", "easiest", "random"])
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
    table = pool(20)
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


# optidel


def test_the_order_of_dealing_by_hand() -> None:
    clusters = np.array([0] * 5 + [1] * 5)
    source = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # patches 0 and 1 are of one image
    group = np.array([0, 0, 1, 2, 3, 1, 5, 6, 7, 8])  # images 1 and 4, with patches 2 and 5, are of one video
    hardness = np.linspace(1, 0, 10)
    cand = Candidates(np.arange(10), source, group, hardness, None)
    # 0 is hardest. Then the clusters take turns: 5 3 6 4 7, and when cluster 0 has no new video left, 8 9. Then comes
    # 2, the video's second image, and last 1, an image's second patch.
    assert _deal(cand, hardest_first(cand), clusters, 10).tolist() == [0, 5, 3, 6, 4, 7, 8, 9, 2, 1]
    assert _deal(cand, hardest_first(cand), clusters, 4).tolist() == [0, 5, 3, 6]


def by_order(codes: np.ndarray, chosen: np.ndarray) -> list[list[int]]:
    """For each code, the turns at which it gave."""
    return [np.flatnonzero(codes[chosen] == code).tolist() for code in np.unique(codes)]


@pytest.mark.parametrize(("per_source", "per_group", "seed"), [(3, 1, 0), (4, 5, 1), (1, 20, 2), (7, 3, 3)])
def test_nothing_gives_a_second_patch_before_all_have_given_one(per_source: int, per_group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    source = rng.permutation(np.arange(n) // per_source)
    group = source // per_group
    cand = candidates(rng.random(n), source, group, rng.normal(size=(n, 3)))
    chosen, _ = optidel(cand, n, seed=0, trim=0.02)
    assert sorted(chosen.tolist()) == list(range(n))
    for codes in (source, group):
        turns = by_order(codes, chosen)
        last_first = max(t[0] for t in turns)
        assert all(t[1] > last_first for t in turns if len(t) > 1)


@pytest.mark.parametrize("groups", [1, 3, 400])
def test_clusters_give_equally_whatever_the_groups(groups: int) -> None:
    rng = np.random.default_rng(5)
    n = 400
    embedding = np.repeat(np.eye(8), 50, axis=0) + 0.001 * rng.normal(size=(n, 8))
    hardness = np.linspace(1, 0, n)  # cluster by cluster: the hardest 50 are all of one
    chosen, clusters = optidel(candidates(hardness, np.arange(n), np.arange(n) % groups, embedding), 32, 0, 0.0)
    assert np.bincount(clusters[chosen], minlength=8).tolist() == [4] * 8
    for cluster in range(8):
        members = np.flatnonzero(clusters == cluster)
        if groups != 3:  # with three videos in turn, a cluster's hardest may have to wait
            assert set(chosen[clusters[chosen] == cluster]) == set(members[:4])


def test_the_very_hardest_are_cut_as_far_as_the_budget_allows() -> None:
    rng = np.random.default_rng(0)
    n = 100
    cand = candidates(np.arange(1, n + 1) / n, np.arange(n), np.arange(n), rng.normal(size=(n, 4)))
    assert optidel(cand, 50, 0, trim=0.05)[0].max() == 94
    assert optidel(cand, 50, 0, trim=0.0)[0].max() == 99
    assert sorted(optidel(cand, 97, 0, trim=0.05)[0].tolist()) == list(range(97))
    assert len(optidel(cand, 100, 0, trim=0.05)[0]) == 100


def test_optidel_is_deterministic_by_seed() -> None:
    table = pool(200, per_source=2, seed=4, embedding=list(np.random.default_rng(1).normal(size=(200, 8))))
    first, again, other = (select(table, 0.2, seed=seed) for seed in (0, 0, 1))
    for name in ("rows", "mosaic", "slot", "cluster"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.cluster, other.cluster)


def test_a_large_pool_is_dealt_in_seconds() -> None:
    rng = np.random.default_rng(0)
    n = 100_000
    cand = Candidates(np.arange(n), np.arange(n) // 10, np.arange(n) % 5, rng.random(n), None)
    start = time.perf_counter()
    assert len(set(_deal(cand, rng.permutation(n), rng.integers(100, size=n), 1000).tolist())) == 1000
    assert time.perf_counter() - start < 5
