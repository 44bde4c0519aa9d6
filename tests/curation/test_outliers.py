"""The outlier cut: limits worked by hand, reasons, and what the budget needs back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_selection import pool

from optidel_hf.curation.selection import select
from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import OUT_OF_FOCUS, OUTLIER, SPOILT
from optidel_hf.curation.selection.outliers import LEAST, _softness, cut_outliers, upper_fence


def candidates(score: np.ndarray, **nuisances: np.ndarray) -> Candidates:
    n = len(score)
    hardness = (np.argsort(np.argsort(score, kind="stable")) + 1) / n
    return Candidates(np.arange(n), np.arange(n), np.arange(n), hardness, score, None, nuisances)


def test_the_fence_by_hand() -> None:
    # 0 to 98 and two more: the median is 50 and the upper quartile 75, so 50 + 3.5 * 25 / 0.6745 = 179.73.
    score = np.array([*range(99), 179.0, 180.0])
    assert upper_fence(score) == pytest.approx(50 + 3.5 * 25 / 0.6745)
    cut = cut_outliers(candidates(score), 10, None)
    assert np.flatnonzero(cut.reasons == OUTLIER).tolist() == [100]
    assert cut.pool.tolist() == list(range(99, -1, -1))
    assert cut.facts == {"trim": None, "cut": {OUTLIER: {"limit": pytest.approx(179.7257), "count": 1}}}
    # However far the easy ones reach, the limit stays.
    assert upper_fence(np.where(score < 50, 1000 * (score - 50), score)) == upper_fence(score)


def test_of_a_normal_pool_almost_nothing_is_cut_and_of_a_contaminated_one_its_contamination() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=5000)
    assert upper_fence(normal) == pytest.approx(3.5, abs=0.2)
    spoilt = np.concatenate([normal, rng.normal(8, 0.5, size=200)])  # 4 % from elsewhere
    kept = cut_outliers(candidates(spoilt), 100, None).pool
    assert (kept >= 5000).sum() == 0
    assert len(kept) > 4990


def test_ties_are_no_tail() -> None:
    assert len(cut_outliers(candidates(np.ones(9)), 1, None).pool) == 9
    assert len(cut_outliers(candidates(np.array([0.0] * 8 + [1])), 1, None).pool) == 9


def test_each_nuisance_has_its_limit_and_its_reason() -> None:
    score = np.linspace(0, 1, 20)
    quiet = np.zeros(20)
    columns = {name: quiet.copy() for name in LEAST}
    for row, (name, least) in enumerate(LEAST.items()):
        columns[name][[row, row + 10]] = least, least + 0.01  # what equals the limit stays
    cut = cut_outliers(candidates(score, **columns), 5, None)
    assert [cut.reasons[row] for row in (10, 11, 12, 13)] == [SPOILT[name] for name in LEAST]
    assert (cut.reasons != "").sum() == 4
    assert {reason: figures["count"] for reason, figures in cut.facts["cut"].items()} == {
        **{SPOILT[name]: 1 for name in LEAST},
        OUT_OF_FOCUS: 0,
        OUTLIER: 0,
    }


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.45])
def test_junk_does_not_lift_the_limit_over_itself(share: float) -> None:
    # What is fine is the same in every pool, 0.40 to 0.50, and so is the limit; from a quarter on, Q3 is junk.
    fine = np.linspace(0.4, 0.5, 101)
    junk = np.linspace(0.7, 0.9, round(share / (1 - share) * 101))
    defocus = np.concatenate([fine, junk])
    cut = cut_outliers(candidates(np.linspace(0, 1, len(defocus)), defocus=defocus), 50, None)
    assert cut.facts["cut"][SPOILT["defocus"]] == {"limit": LEAST["defocus"], "count": len(junk)}
    assert sorted(cut.pool.tolist()) == list(range(101))


@pytest.mark.parametrize("junk", [0.0, 0.5])
def test_the_choice_holds_what_is_fine_where_half_of_a_pool_is_junk(junk: float) -> None:
    """Of the junk a third each is blurred, glaring (and as soft) and lettered, and it is harder than the rest."""
    rng, n = np.random.default_rng(0), 800
    spoilt = rng.random(n) < junk
    kind = np.where(spoilt, rng.integers(3, size=n), -1)
    soft, sharp = rng.normal(0.82, 0.05, n), rng.normal(0.42, 0.06, n)
    columns = {
        "border": rng.beta(0.5, 15, n),
        "text": np.where(kind == 2, rng.uniform(0.3, 0.9, n), 0.02 * rng.beta(0.1, 3, n)),
        "saturation": np.where(kind == 1, rng.uniform(0.1, 0.6, n), 0.1 * rng.beta(0.2, 5, n)),
        "defocus": np.where((kind == 0) | (kind == 1), soft, sharp).clip(0, 1),
    }
    table = pool(n, difficulty=rng.normal(size=n) + spoilt)
    for name, values in columns.items():
        table = table.add_column(name, list(values.astype(np.float32)))
    selection = select(table, 0.05)
    dropped = sum(figures["count"] for figures in selection.facts["cut"].values())
    assert spoilt[selection.rows].mean() < 0.02
    assert dropped - spoilt.sum() < 0.02 * n


def test_an_image_out_of_focus_goes_with_the_patches_that_look_sharp_in_it() -> None:
    # 40 images of 5 patches, in any order. Within a sharp one they vary from 0.1 to 0.7: median 0.4.
    rng = np.random.default_rng(0)
    source = rng.permutation(np.repeat(np.arange(40), 5))
    place = np.array([(source[:row] == image).sum() for row, image in enumerate(source)])
    defocus = np.where(source < 4, 0.5 + 0.1 * place, 0.1 + 0.15 * place)  # four blurred images: median 0.7
    several = replace(candidates(rng.normal(size=200), defocus=defocus), source=source)
    cut = cut_outliers(several, 5, None)
    # The patches' own limit is far above any: median 0.4, upper quartile 0.55 of those within 0.6, so 1.18.
    assert cut.facts["cut"][SPOILT["defocus"]]["count"] == 0
    assert cut.facts["cut"][OUT_OF_FOCUS] == {"limit": LEAST["defocus"], "count": 20}
    assert set(np.flatnonzero(cut.reasons == OUT_OF_FOCUS)) == set(np.flatnonzero(source < 4))


def test_the_softness_of_an_image_is_its_median() -> None:
    rng = np.random.default_rng()
    source, defocus = rng.integers(30, size=200), rng.random(200)
    softness, image = _softness(replace(candidates(np.zeros(200), defocus=defocus), source=source))
    assert softness[image].tolist() == [np.median(defocus[source == code]) for code in source]


def test_what_most_of_a_pool_has_does_not_spoil_it() -> None:
    # All frames are soft, 0.60 to 0.79: median 0.695, upper quartile 0.7425, and the limit 0.695 + 5.19 * 0.0475.
    defocus = 0.6 + 0.01 * np.arange(20)
    cut = cut_outliers(candidates(np.linspace(0, 1, 20), defocus=np.append(defocus[:-1], 0.97)), 5, None)
    assert cut.facts["cut"][SPOILT["defocus"]] == {"limit": pytest.approx(0.695 + 3.5 * 0.0475 / 0.6745), "count": 1}


def test_the_budget_takes_back_the_easiest_of_what_was_cut() -> None:
    score, text = np.arange(20.0), np.zeros(20)
    text[[2, 5, 19]] = 1
    pool = candidates(score, text=text)
    for count, back in ((17, set()), (18, {2}), (19, {2, 5}), (20, {2, 5, 19})):
        assert set(cut_outliers(pool, count, None).pool.tolist()) == set(range(20)) - {2, 5, 19} | back


def test_a_given_share_is_cut_whatever_it_is() -> None:
    cut = cut_outliers(candidates(np.arange(10.0), text=np.ones(10)), 5, 0.2)
    assert cut.pool.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert cut.facts == {"trim": 0.2, "cut": {OUTLIER: {"limit": None, "count": 2}}}
    assert len(cut_outliers(candidates(np.arange(10.0), text=np.ones(10)), 5, 0.0).pool) == 10


@pytest.mark.parametrize("strategy", ["optidel", "ccs"])
def test_reasons_and_counts_reach_the_selection(strategy: str) -> None:
    difficulty = np.linspace(-1, 1, 60)
    difficulty[7] = 40.0
    text = np.zeros(60, dtype=np.float32)
    text[[3, 4]] = 0.5
    table = pool(60, difficulty=difficulty).add_column("text", list(text))
    selection = select(table, 0.2, strategy, explain=True)
    assert [selection.reasons[row] for row in (3, 4, 7)] == [SPOILT["text"], SPOILT["text"], OUTLIER]
    assert selection.facts["reasons"][SPOILT["text"]] == selection.facts["cut"][SPOILT["text"]]["count"] == 2
    assert {row["crop"][0] for row in selection.facts["dropped"]} == {3, 4, 7}
    assert not {3, 4, 7} & set(selection.rows.tolist())
    assert "cut" not in select(table, 0.2, "hardest").facts
