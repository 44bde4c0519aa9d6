"""Strategies other than `optidel` on cases worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from optidel_hf.curation.selection import DISTANCES, STRATEGIES
from optidel_hf.curation.selection.candidates import Candidates, standardize_within
from optidel_hf.curation.selection.choice import OUTLIER, UNUSUAL, Options
from optidel_hf.curation.selection.clusters import cluster
from optidel_hf.curation.selection.duplicates import _nearest_before, meddel, semdedup
from optidel_hf.curation.selection.outliers import cut_outliers
from optidel_hf.curation.selection.prototypes import prototypes
from optidel_hf.curation.selection.strata import ccs
from optidel_hf.curation.selection.subspaces import _redundancy, _vote, zcore
from optidel_hf.curation.selection.uniform import random, random_images
from optidel_hf.curation.selection_config import SelectionConfig


def candidates(
    n: int, embedding: np.ndarray | None = None, score: np.ndarray | None = None, source: np.ndarray | None = None
) -> Candidates:
    """`n` patches of as many sources; without a score all are equally hard."""
    score = np.zeros(n) if score is None else score
    hardness = (np.argsort(np.argsort(score, kind="stable")) + 1) / n
    rows = np.arange(n)
    embedding = None if embedding is None else embedding.astype(np.float32)
    return Candidates(rows, rows if source is None else source, rows, hardness, score, embedding)


def options(
    seed: int = 0, trim: float = 0.0, keep: str = "far", max_distance: float = 0.9, distance: str = "cosine"
) -> Options:
    return Options(seed, trim, keep, max_distance, distance=distance)


def at_angles(*angles: float) -> np.ndarray:
    """Unit vectors in the plane of axes 0 and 1, at these degrees, then one alone on each of axes 2, 3 and 4."""
    radians = np.deg2rad(angles)
    fan = np.stack([np.cos(radians), np.sin(radians), *np.zeros((3, len(angles)))], axis=1)
    return np.concatenate([fan, np.eye(5)[2:]])


OTHER = {"trim": 0.3, "keep": "near", "max_distance": 0.2, "diversity": "logdet", "hardness_weight": 0.0}
OTHER |= {"distance": "euclidean"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("option", OTHER)
def test_a_strategy_looks_at_the_options_that_it_names_alone(strategy: str, option: str) -> None:
    rng = np.random.default_rng(0)
    pool = candidates(120, rng.normal(size=(120, 8)) * rng.uniform(0.1, 3, 8), rng.normal(size=120))
    default, chooser = Options(0, None, "far", 0.9), STRATEGIES[strategy]
    plain, changed = (
        chooser.choose(pool, 24, told).chosen.tolist()
        for told in (default, replace(default, **{option: OTHER[option]}))
    )
    assert (plain != changed) == (option in chooser.options)


def test_options_that_change_nothing_are_told() -> None:
    assert SelectionConfig().ignored == SelectionConfig(strategy="auto", trim=0.1, score="pvi").ignored == []
    told = {"trim": 0.4, "score": "pvi", "hardness_weight": 3.0}
    assert SelectionConfig(strategy="random_images", **told).ignored == ["score", "trim", "hardness_weight"]
    assert SelectionConfig(strategy="hardest", **told).ignored == ["trim", "hardness_weight"]
    assert SelectionConfig(**told).ignored == []


# prototypes


def test_prototypes_by_hand() -> None:
    # Four clusters about four axes: one patch on the axis and two beside it, at 10, 20, 30 and 40 degrees. By symmetry
    # each prototype lies on its axis, so the angle is the distance.
    embedding = np.zeros((12, 5))
    for axis, angle in enumerate(np.deg2rad([10, 20, 30, 40])):
        for row, turn in enumerate((0.0, angle, -angle)):
            embedding[3 * axis + row, [axis, 4]] = np.cos(turn), np.sin(turn)
    pool = candidates(12, embedding)
    assert sorted(prototypes(pool, 4, options(keep="far")).chosen.tolist()) == [7, 8, 10, 11]
    assert sorted(prototypes(pool, 4, options(keep="near")).chosen.tolist()) == [0, 3, 6, 9]
    choice = prototypes(pool, 4, options())
    assert [choice.reasons[row] for row in (10, 0)] == [
        "kept: far from its prototype",
        "dropped: not far from its prototype",
    ]
    assert len(np.unique(choice.clusters[::3])) == 4


def test_prototypes_by_either_distance_by_hand() -> None:
    # As above, at 10, 20, 30 and 45 degrees. A cluster's centre has the length (1 + 2 cos a) / 3, so by Euclid the
    # patch on the axis is 2 (1 - cos a) / 3 away from it: .010, .040, .089, .195. Those at +-10 degrees are .174 away
    # by Euclid, and by cosine the patches on the axes are not away at all.
    embedding = np.zeros((12, 5))
    for axis, angle in enumerate(np.deg2rad([10, 20, 30, 45])):
        for row, turn in enumerate((0.0, angle, -angle)):
            embedding[3 * axis + row, [axis, 4]] = np.cos(turn), np.sin(turn)
    pool = candidates(12, embedding)
    for distance, nearest in (("cosine", [0, 3, 6, 9]), ("euclidean", [0, 1, 2, 3, 6])):
        choice = prototypes(pool, len(nearest), options(keep="near", distance=distance))
        assert sorted(choice.chosen.tolist()) == nearest
        assert choice.facts == {"keep": "near", "distance": distance}
    known = cluster(pool, 4, 0, "euclidean").distance
    assert known[[0, 3, 6, 9, 1]] == pytest.approx([0.0101, 0.0402, 0.0893, 0.1953, 0.1737], abs=1e-4)


# semdedup and meddel


def test_duplicates_by_hand() -> None:
    # The fan's centre is at 13.3 degrees. Far first the order is 30, 0, 10 degrees, and the largest cosine to an
    # earlier patch: none, cos 30, cos 10. Near first it is 10, 0, 30: none, cos 10, cos 20.
    pool = candidates(6, at_angles(0, 10, 30))
    for keep, kept, then, cosine in (("far", 2, 0, 30), ("near", 1, 2, 20)):
        for strategy in (semdedup, meddel):
            four, five = (strategy(pool, count, options(keep=keep)) for count in (4, 5))
            assert set(four.chosen.tolist()) == {3, 4, 5, kept}
            assert set(five.chosen.tolist()) == {3, 4, 5, kept, then}
            threshold = {"keep": keep, "cosine_threshold": pytest.approx(np.cos(np.deg2rad(cosine)))}
            assert five.facts == threshold | ({"distance": "cosine"} if strategy is meddel else {})
            assert "like an earlier one" in five.reasons[({0, 1, 2} - {kept, then}).pop()]


def test_meddel_cuts_what_is_far_from_its_centre_as_far_as_the_budget_allows() -> None:
    pool = candidates(6, at_angles(0, 10, 30))  # cosine distances from 13.3 degrees: .027, .002, .042
    for keep, kept in (("far", 0), ("near", 1)):
        choice = meddel(pool, 4, options(keep=keep, max_distance=0.04))
        assert set(choice.chosen.tolist()) == {3, 4, 5, kept}
        assert choice.reasons[2] == UNUSUAL
    assert set(meddel(pool, 5, options(max_distance=0.01)).chosen.tolist()) == {0, 1, 3, 4, 5}
    assert len(meddel(pool, 6, options(max_distance=0.01)).chosen) == 6


def test_meddel_cuts_by_either_distance_by_hand() -> None:
    # The fan's centre has the length .976, so by Euclid its patches are .230, .061 and .288 away from it.
    pool = candidates(6, at_angles(0, 10, 30))
    assert cluster(pool, 4, 0, "euclidean").distance[:3] == pytest.approx([0.2300, 0.0615, 0.2880], abs=1e-4)
    for distance, cut in (("cosine", []), ("euclidean", [2])):
        choice = meddel(pool, 4, options(max_distance=0.25, distance=distance))
        assert np.flatnonzero(choice.reasons == UNUSUAL).tolist() == cut
        assert choice.facts["distance"] == distance


def test_what_is_deduplicated_does_not_depend_on_the_distance() -> None:
    z = np.random.default_rng(0).normal(size=(60, 6)) + 1
    pool = candidates(60, z / np.linalg.norm(z, axis=1, keepdims=True))
    by = [semdedup(pool, 20, options(distance=distance)) for distance in DISTANCES]
    assert by[0].chosen.tolist() == by[1].chosen.tolist()


def test_the_nearest_before_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    expected = [-1, *((z[row] @ z[:row].T).max() for row in range(1, 50))]
    monkeypatch.setattr("optidel_hf.curation.selection.duplicates.ROWS_AT_ONCE", 7)
    assert _nearest_before(z) == pytest.approx(expected, abs=1e-6)


# ccs


def test_ccs_by_hand() -> None:
    score = np.array([0, 0, 0, 0, 0, 0, 5, 5, 10, 1000.0])
    pool = candidates(10, score=score)
    # Without the one outlier the strata hold 1, 2 and 6 patches, which give 5 // 3, 4 // 2 and the remaining 2.
    choices = [ccs(pool, 5, options(seed=seed, trim=0.1)) for seed in range(20)]
    for choice in choices:
        assert choice.chosen[:3].tolist() == [8, 7, 6] or choice.chosen[:3].tolist() == [8, 6, 7]
        assert (choice.chosen[3:] < 6).all()
        assert choice.reasons[9] == OUTLIER
    assert {row for choice in choices for row in choice.chosen[3:].tolist()} == set(range(6))
    # With it the range is a hundred times as wide, and the other nine share its lowest stratum.
    assert ccs(pool, 5, options()).chosen[0] == 9
    assert {row for seed in range(20) for row in ccs(pool, 2, options(seed=seed)).chosen.tolist()} == set(range(10))
    assert sorted(ccs(pool, 9, options(trim=0.5)).chosen.tolist()) == list(range(9))
    assert len(ccs(pool, 10, options(trim=0.5)).chosen) == 10


def test_ccs_strata_with_one_score_are_random() -> None:
    assert len(ccs(candidates(7), 3, options()).chosen) == 3


def test_scores_of_two_models_share_one_scale() -> None:
    values = standardize_within(np.array([1.0, 3, 10, 10, 40, 40]), np.array([0, 0, 1, 1, 1, 1]))
    assert values.tolist() == [-1, 1, -1, -1, 1, 1]
    assert standardize_within(np.array([2.0, 2.0]), np.array([0, 0])).tolist() == [0, 0]


# zcore


def test_votes_by_hand() -> None:
    # A target's offsets from the middle, s and t, have density 4 - 8 s on [0, 1/2]. It is nearest to the middle if
    # s + t < 1/2, which has probability 5/6; the corners share the rest.
    points = np.array([[0.5, 0.5], [0, 0], [0, 1], [1, 0], [1, 1]])
    rng = np.random.default_rng(0)
    votes = sum(_vote(cKDTree(points), rng) for _ in range(1000)) / 5000
    assert votes == pytest.approx([5 / 6, *[1 / 24] * 4], abs=0.025)


def test_targets_crowd_about_the_median_of_the_pool() -> None:
    # On either axis the median is 0.2: of a triangle from 0 over 0.2 to 1 the mean is 0.4, and the middle is 0.5.
    grid = np.stack([np.repeat(np.linspace(0, 1, 21), 21), np.tile(np.linspace(0, 1, 21), 21)], axis=1)
    points = np.concatenate([grid, np.full((2000, 2), 0.2)])
    assert np.median(points) == 0.2
    rng = np.random.default_rng(0)
    votes = sum(_vote(cKDTree(points), rng) for _ in range(20))
    assert (votes @ points) / votes.sum() == pytest.approx([0.4, 0.4], abs=0.01)


def test_redundancy_by_hand() -> None:
    # City-block distances from the first: 1, 2 and 2, so its 18 votes are taken in shares of 1 : 1/16 : 1/16.
    points = np.array([[0.0, 0], [1, 0], [1, 1], [0, -2]])
    assert _redundancy(cKDTree(points), np.array([18, 0, 0, 0])) == pytest.approx([0, 16, 1, 1])
    copies = np.array([[0.0, 0], [0, 0], [3, 0]])
    assert _redundancy(cKDTree(copies), np.array([5, 0, 0])) == pytest.approx([0, 5, 0])
    assert _redundancy(cKDTree(np.ones((15, 2))), np.arange(15)).sum() == pytest.approx(np.arange(15).sum())
    assert _redundancy(cKDTree(np.zeros((1, 2))), np.array([1])).tolist() == [0]


def test_zcore_drops_the_redundant() -> None:
    points = np.array([[0.5, 0.5], [0, 0], [0.5, 0.5], [0, 1], [1, 0], [1, 1]])
    choice = zcore(candidates(6, points), 5, options())
    assert set(choice.chosen.tolist()) in ({0, 1, 3, 4, 5}, {1, 2, 3, 4, 5})
    assert choice.chosen[0] in (0, 2)
    again, other = (zcore(candidates(6, points), 6, options(seed=seed)).chosen.tolist() for seed in (0, 1))
    assert again[:5] == choice.chosen.tolist()
    assert sorted(other) == list(range(6))


# random_images


def test_random_images_takes_whole_images() -> None:
    source = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
    firsts = set()
    for seed in range(60):
        chosen = random_images(candidates(10, source=source), 6, options(seed=seed)).chosen
        given = [int((source[chosen] == code).sum()) for code in range(4)]
        partial = [code for code in range(4) if 0 < given[code] < (source == code).sum()]
        assert partial in ([], [source[chosen[-1]]])
        firsts.add(int(source[chosen[0]]))
    assert firsts == {0, 1, 2, 3}


def test_random_images_of_whole_images_is_random() -> None:
    pool = candidates(50)
    for seed in range(3):
        drawn, images = (strategy(pool, 20, options(seed=seed)).chosen for strategy in (random, random_images))
        assert np.array_equal(drawn, images)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_redraws_all_but_what_is_ranked_by_its_score_alone(strategy: str) -> None:
    rng = np.random.default_rng(0)
    pool = candidates(120, rng.normal(size=(120, 8)), rng.normal(size=120))
    choose = STRATEGIES[strategy].choose
    chosen = {tuple(sorted(choose(pool, 24, Options(seed, None, "far", 0.9)).chosen)) for seed in range(4)}
    assert (len(chosen) > 1) == (strategy not in ("hardest", "easiest", "medium"))


def test_a_share_that_binary_makes_smaller_is_cut_whole() -> None:
    pool = candidates(100, score=np.arange(100.0))
    assert len(cut_outliers(pool, 5, 0.29).pool) == 71  # 0.29 x 100 is 28.999999999999996


def test_zcore_looks_at_every_axis() -> None:
    points = np.array([[0.5, 0.5], [0, 0], [0.5, 0.5], [0, 1], [1, 0], [1, 1]])
    embedding = np.concatenate([np.zeros((6, 2)), points], axis=1)
    choices = [set(zcore(candidates(6, embedding), 5, options(seed=seed)).chosen.tolist()) for seed in range(10)]
    assert all(chosen in ({0, 1, 3, 4, 5}, {1, 2, 3, 4, 5}) for chosen in choices)


@pytest.mark.parametrize(("count", "clusters"), [(8, 4), (40, 10), (450, 100)])
def test_there_is_a_cluster_for_every_four_that_are_chosen(count: int, clusters: int) -> None:
    pool = candidates(500, np.random.default_rng(0).normal(size=(500, 6)))
    assert cluster(pool, count, 0).label.max() + 1 == clusters
    assert cluster(candidates(3, np.eye(3)), 3, 0).label.max() + 1 == 3
