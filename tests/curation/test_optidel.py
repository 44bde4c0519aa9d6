"""`optidel`: its objective by hand and against lazy greedy, and the fair deal between sources, groups and clusters."""

from __future__ import annotations

import numpy as np
import pytest
from lazy_greedy import lazy_greedy
from test_selection import pool

from optidel_hf.curation.selection import select
from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import OUTLIER, Choice, Options
from optidel_hf.curation.selection.objective import Directions, Objective, coverage, equal_weight, make_blocks
from optidel_hf.curation.selection.optidel import Turns, deal, optidel
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.errors import UserError


def candidates(hardness: np.ndarray, source: np.ndarray, group: np.ndarray, embedding: np.ndarray) -> Candidates:
    return Candidates(np.arange(len(hardness)), source, group, hardness, hardness, embedding.astype(np.float32))


def choose(pool: Candidates, count: int, seed: int = 0, trim: float = 0.0, memory: int = 1 << 30) -> Choice:
    return optidel(pool, count, Options(seed, trim, "far", 0.9), memory)


def scattered(n: int, width: int = 6, centres: int = 9, seed: int = 0) -> Directions:
    """Unit vectors about a few centres, with much noise."""
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(centres, width))[rng.integers(centres, size=n)] + 0.7 * rng.normal(size=(n, width))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return Directions(embedding.astype(np.float32), np.arange(n))


def similarities(directions: Directions) -> np.ndarray:
    z = directions[np.arange(len(directions))].astype(np.float64)
    return np.maximum(z @ z.T, 0)


def value(chosen: np.ndarray, worth: np.ndarray, similar: np.ndarray, weight: float) -> float:
    """F by definition."""
    return float(worth[chosen].sum() + weight * similar[chosen].max(axis=0).sum())


# The objective


def test_gains_by_hand() -> None:
    # Six directions 60 degrees apart, with zero mean: each is like itself (1) and its two neighbours (cos 60 = 1/2).
    angles = np.deg2rad(np.arange(6) * 60)
    hexagon = Directions(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), np.arange(6))
    worth = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    objective = Objective(worth, hexagon, 10.0, [np.arange(6)])
    assert objective.gain == pytest.approx(worth + 20, abs=1e-5)
    objective.add(0)
    # 60 degrees now covers itself better by 1/2 and 120 degrees by 1/2; 120 is the same but for covering 60 no better;
    # 180 still covers all it would have.
    assert objective.gain[1:] == pytest.approx(worth[1:] + np.array([10, 15, 20, 15, 10]), abs=1e-5)
    assert objective.covered == pytest.approx([1, 0.5, 0, 0, 0, 0.5], abs=1e-6)


@pytest.mark.parametrize("pairs_at_once", [1, 100, 1 << 22])
def test_gains_are_differences_of_the_objective_and_only_fall(
    pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optidel_hf.curation.selection.objective.PAIRS_AT_ONCE", pairs_at_once)
    directions, worth, weight = scattered(40), np.random.default_rng(1).random(40), 0.3
    similar = similarities(directions)
    objective = Objective(worth, directions, weight, [np.arange(40)])
    chosen: list[int] = []
    for row in (3, 17, 5, 39):
        before = objective.gain.copy()
        objective.add(row)
        chosen.append(row)
        now = value(np.array(chosen), worth, similar, weight)
        rest = [other for other in range(40) if other not in chosen]
        expected = [value(np.array([*chosen, other]), worth, similar, weight) - now for other in rest]
        assert objective.gain[rest] == pytest.approx(expected, abs=1e-5)
        assert (objective.gain <= before + 1e-9).all()


def test_the_weight_makes_both_terms_equal_on_a_random_set() -> None:
    directions, worth = scattered(500), np.random.default_rng(2).random(500)
    weight = equal_weight(worth, directions, 50, seed=3)
    drawn = np.random.default_rng(3).permutation(500)[:50]
    assert weight * similarities(directions)[drawn].max(axis=0).sum() == pytest.approx(worth[drawn].sum(), rel=1e-5)
    assert coverage(directions, np.arange(500), np.random.default_rng(0)) == pytest.approx(500, rel=1e-6)


def test_the_same_patch_everywhere_has_nothing_to_cover() -> None:
    same = Directions(np.full((30, 4), 0.5, dtype=np.float32), np.arange(30))
    assert equal_weight(np.ones(30), same, 5, 0) == 0.0
    noisy = (same.embedding + 1e-5 * np.random.default_rng(0).normal(size=(30, 4))).astype(np.float32)
    assert np.abs(similarities(Directions(noisy, np.arange(30)))).max() < 1e-2


def test_a_large_pool_is_cut_into_blocks_that_fit() -> None:
    directions = scattered(900)
    clusters = np.random.default_rng(0).integers(3, size=900)
    blocks = make_blocks(directions, clusters, memory=4 * 900 * 64)
    assert np.array_equal(np.sort(np.concatenate(blocks)), np.arange(900))
    assert max(map(len, blocks)) <= 64
    assert all(len(set(clusters[rows])) == 1 for rows in blocks)
    assert [len(rows) for rows in make_blocks(directions, clusters, memory=4 * 900 * 900)] == [900]
    # Halves lie on either side along the widest direction: patches of a block are more alike than those of a cluster.
    similar = similarities(directions)
    assert np.mean([similar[np.ix_(rows, rows)].mean() for rows in blocks]) > 1.5 * similar.mean()


# Greedy


@pytest.mark.parametrize(("per_source", "per_group", "seed"), [(1, 1, 0), (3, 2, 1), (2, 20, 2)])
def test_it_is_lazy_greedy_on_the_whole_objective(per_source: int, per_group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, count = 240, 60
    directions, worth = scattered(n, seed=seed), rng.random(n)
    source = rng.permutation(n) // per_source
    codes = [source, source // per_group, rng.integers(7, size=n)]
    weight = equal_weight(worth, directions, count, seed)
    chosen, _ = deal(Turns(*codes), Objective(worth, directions, weight, [np.arange(n)]), count)
    assert chosen.tolist() == lazy_greedy(codes, worth, similarities(directions), weight, count)


@pytest.mark.parametrize("width", [4, 32])
def test_blocks_reach_99_percent_of_lazy_greedy(width: int) -> None:
    n, count = 800, 60
    rng = np.random.default_rng(width)
    directions, worth = scattered(n, width, centres=20, seed=width), rng.random(n)
    pool = candidates(worth, np.arange(n) // 2, np.arange(n) // 4, directions.embedding)
    choice = choose(pool, count, memory=4 * n * 80)
    assert choice.facts["blocks"] >= 10
    # `optidel` sees the pool hardest first, which decides nothing here but the random set behind the weight.
    weight, similar = choice.facts["coverage_weight"], similarities(directions)
    reference = lazy_greedy([pool.source, pool.group, choice.clusters], worth, similar, weight, count)
    best, found = (value(np.array(rows), worth, similar, weight) for rows in (reference, choice.chosen))
    assert 0.99 * best <= found <= 1.01 * best
    rest = rng.permutation(n)[:count]
    assert value(rest, worth, similar, weight) < 0.9 * best


@pytest.mark.parametrize("diversity", ["coverage", "logdet"])
def test_without_hardness_diversity_alone_decides_and_more_weight_is_harder(diversity: str) -> None:
    n, count = 300, 40
    rng, directions, own = np.random.default_rng(5), scattered(300), np.arange(300)
    hardness = rng.random(n)

    def chosen(weight: float, hardness: np.ndarray) -> np.ndarray:
        options = Options(0, 0.0, "far", 0.9, diversity, hardness_weight=weight)
        return optidel(candidates(hardness, own, own, directions.embedding), count, options).chosen

    by_weight = {weight: chosen(weight, hardness) for weight in (0.0, 1.0, 8.0)}
    assert set(by_weight[0.0]) == set(chosen(0.0, rng.permutation(hardness)))
    assert set(by_weight[1.0]) != set(chosen(1.0, rng.permutation(hardness)))
    easy, both, hard = (hardness[rows].mean() for rows in by_weight.values())
    assert easy < both - 0.05 < both < hard
    if diversity == "coverage":
        covered = [similarities(directions)[rows].max(axis=0).sum() for rows in by_weight.values()]
        assert covered[0] > covered[1] > covered[2]


def test_a_weight_below_zero_is_refused() -> None:
    for wrong in (-0.1, np.inf, np.nan):
        with pytest.raises(UserError, match=r"hardness_weight is .*: it is 0 \(diversity alone\) or more"):
            SelectionConfig(hardness_weight=wrong)
        with pytest.raises(UserError, match="hardness_weight is"):
            select(pool(8), 0.5, hardness_weight=wrong)


# The deal


def test_the_order_of_dealing_by_hand() -> None:
    clusters = np.array([0] * 5 + [1] * 5)
    source = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])  # patches 0 and 1 are of one image
    group = np.array([0, 0, 1, 2, 3, 1, 5, 6, 7, 8])  # images 1 and 4, with patches 2 and 5, are of one video
    # Orthogonal embeddings: each covers itself alone, so hardness decides.
    objective = Objective(np.linspace(1, 0, 10), Directions(np.eye(10), np.arange(10)), 1.0, [np.arange(10)])
    turns = Turns(source, group, clusters)
    # 0 is hardest. Then the clusters take turns: 5 3 6 4 7, and when cluster 0 has no new video left, 8 9. Then comes
    # 2, the video's second image, and last 1, an image's second patch.
    assert deal(turns, objective, 10)[0].tolist() == [0, 5, 3, 6, 4, 7, 8, 9, 2, 1]


def test_reasons_by_hand() -> None:
    source = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    group = np.array([0, 0, 1, 2, 3, 1, 5, 6, 7, 8])
    objective = Objective(np.linspace(1, 0, 10), Directions(np.eye(10), np.arange(10)), 1.0, [np.arange(10)])
    turns = Turns(source, group, np.array([0] * 5 + [1] * 5))
    why = [reason.removeprefix("dropped: ") for reason in turns.reasons(*deal(turns, objective, 5))]
    # 0 5 3 6 4 were taken; cluster 0 has given three, cluster 1 two, and the last turn was for a third.
    assert why[1] == "its source image had its share"
    assert why[2] == "its near-duplicate group had its share"
    assert [why[row] for row in (7, 8, 9)] == ["adds less than those chosen in its turn"] * 3
    assert all(why[row].startswith("kept: ") for row in (0, 3, 4, 5, 6))
    turns = Turns(np.arange(10), np.arange(10), np.array([0] * 5 + [1] * 5))
    objective = Objective(np.linspace(1, 0, 10), Directions(np.eye(10), np.arange(10)), 1.0, [np.arange(10)])
    why = turns.reasons(*deal(turns, objective, 3))
    assert why[1] == "kept: adds most hardness and diversity in its turn"
    assert why[2] == "dropped: its cluster had its share"


def by_order(codes: np.ndarray, chosen: np.ndarray) -> list[list[int]]:
    """For each code, the turns at which it gave."""
    return [np.flatnonzero(codes[chosen] == code).tolist() for code in np.unique(codes)]


@pytest.mark.parametrize(("per_source", "per_group", "seed"), [(3, 1, 0), (4, 5, 1), (1, 20, 2), (7, 3, 3)])
def test_nothing_gives_a_second_patch_before_all_have_given_one(per_source: int, per_group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    source = rng.permutation(np.arange(n) // per_source)
    group = source // per_group
    chosen = choose(candidates(rng.random(n), source, group, rng.normal(size=(n, 3))), n, trim=0.02).chosen
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
    choice = choose(candidates(hardness, np.arange(n), np.arange(n) % groups, embedding), 32)
    assert np.bincount(choice.clusters[choice.chosen], minlength=8).tolist() == [4] * 8
    for cluster in range(8):
        members = np.flatnonzero(choice.clusters == cluster)
        if groups != 3:  # with three videos in turn, a cluster's hardest may have to wait
            assert set(choice.chosen[choice.clusters[choice.chosen] == cluster]) == set(members[:4])


def test_the_very_hardest_are_cut_as_far_as_the_budget_allows() -> None:
    n = 100
    embedding = np.random.default_rng(0).normal(size=(n, 4))
    pool = candidates(np.arange(1, n + 1) / n, np.arange(n), np.arange(n), embedding)
    some = choose(pool, 50, trim=0.05)
    assert some.chosen.max() == 94
    assert (some.reasons == OUTLIER).nonzero()[0].tolist() == [95, 96, 97, 98, 99]
    assert choose(pool, 50, trim=0.0).chosen.max() == 99
    assert sorted(choose(pool, 97, trim=0.05).chosen.tolist()) == list(range(97))
    assert len(choose(pool, 100, trim=0.05).chosen) == 100


def test_it_is_deterministic_by_seed() -> None:
    rng = np.random.default_rng(1)
    pool = candidates(rng.random(200), np.arange(200) // 2, np.arange(200) // 2, rng.normal(size=(200, 8)))
    first, again, other = (choose(pool, 40, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.chosen, again.chosen)
    assert np.array_equal(first.clusters, again.clusters)
    assert not np.array_equal(first.clusters, other.clusters)


def test_few_offers_are_renewed_for_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[int] = []
    offer = Turns.offer
    monkeypatch.setattr(Turns, "offer", lambda self, code, gain: renewed.append(code) or offer(self, code, gain))
    rng = np.random.default_rng(0)
    n, count = 10_000, 500
    directions, clusters = scattered(n), rng.integers(100, size=n)
    objective = Objective(rng.random(n), directions, 0.1, make_blocks(directions, clusters, memory=4 * n * 128))
    chosen, _ = deal(Turns(np.arange(n) // 10, np.arange(n) // 20, clusters), objective, count)
    assert len(set(chosen.tolist())) == count
    assert len(renewed) < 100 + 3 * count


def test_coverage_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    directions, chosen = scattered(60), np.arange(0, 60, 3)
    monkeypatch.setattr("optidel_hf.curation.selection.objective.POOL_SAMPLE", 7)
    sample = np.random.default_rng(2).permutation(60)[:7]
    expected = similarities(directions)[np.ix_(sample, chosen)].max(axis=1).mean() * 60
    assert coverage(directions, chosen, np.random.default_rng(2)) == pytest.approx(expected, rel=1e-5)
