"""The log-determinant objective: by hand, by definition, and greedy against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from test_optidel import candidates, scattered
from test_selection import pool

from optidel_hf.curation.selection import select
from optidel_hf.curation.selection.choice import Options
from optidel_hf.curation.selection.logdet import LogDet, equal_bits, log_determinant
from optidel_hf.curation.selection.objective import Directions
from optidel_hf.curation.selection.optidel import Turns, deal, optidel
from optidel_hf.errors import UserError


def test_bits_by_hand() -> None:
    # sigma is 1: one look is 1/2 log2 2, a second along the same line 1/2 log2 (3/2), one across 1/2 log2 2 again.
    axes = Directions(np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float32), np.arange(4))
    objective = LogDet(np.zeros(4), axes, 2.0)
    assert objective.gain == pytest.approx([1.0] * 4)
    objective.add(0)
    assert objective.gain[[1, 2]] == pytest.approx([np.log2(1.5), 1.0])
    objective.add(2)
    assert objective.bits == pytest.approx(1.0)
    assert log_determinant(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(0.5 * np.log2(3))


def test_gains_are_differences_of_the_objective_and_only_fall() -> None:
    directions, worth = scattered(60), np.random.default_rng(1).random(60)
    z = directions[np.arange(60)]
    objective = LogDet(worth, directions, 0.7)
    chosen: list[int] = []
    for row in np.random.default_rng(2).permutation(60)[:30]:
        before = objective.gain.copy()
        objective.add(int(row))
        chosen.append(int(row))
        bits = log_determinant(z[chosen])
        expected = [worth[j] + 0.7 * (log_determinant(z[[*chosen, j]]) - bits) for j in range(60)]
        assert objective.gain == pytest.approx(expected, abs=1e-9)
        assert objective.bits == pytest.approx(bits, abs=1e-9)
        assert (objective.gain <= before + 1e-12).all()


@pytest.mark.parametrize("seed", range(6))
def test_greedy_against_brute_force(seed: int) -> None:
    """One step at a time it takes the best, and of all sets of four it comes within 1 - 1/e of the best."""
    directions, worth, weight = scattered(11, 3, 4, seed), np.random.default_rng(seed).random(11), 0.8
    z = directions[np.arange(11)]

    def value(rows: list[int]) -> float:
        return float(worth[rows].sum() + weight * log_determinant(z[rows]))

    turns = Turns(np.arange(11), np.arange(11), np.zeros(11, dtype=int))
    chosen = deal(turns, LogDet(worth, directions, weight), 4)[0].tolist()
    for length in range(4):
        rest = [row for row in range(11) if row not in chosen[:length]]
        assert chosen[length] == max(rest, key=lambda row: value([*chosen[:length], row]))
    best = max(value(list(rows)) for rows in combinations(range(11), 4))
    assert (1 - 1 / np.e) * best <= value(chosen) <= best + 1e-9


def test_the_weight_makes_both_terms_equal_on_a_random_set() -> None:
    directions, worth = scattered(300), np.random.default_rng(2).random(300)
    drawn = np.random.default_rng(3).permutation(300)[:40]
    weight = equal_bits(worth, directions, 40, seed=3)
    assert weight * log_determinant(directions[drawn]) == pytest.approx(worth[drawn].sum())
    same = Directions(np.full((30, 4), 0.5, dtype=np.float32), np.arange(30))
    assert equal_bits(np.ones(30), same, 5, 0) == 0.0


def test_optidel_takes_it_as_an_option() -> None:
    n = 200
    embedding = scattered(n, 8).embedding
    hard = candidates(np.random.default_rng(0).random(n), np.arange(n), np.arange(n), embedding)
    chosen = {
        name: optidel(hard, 24, Options(0, 0.0, "far", 0.9, name)).chosen.tolist() for name in ("coverage", "logdet")
    }
    assert chosen["coverage"] != chosen["logdet"]
    bits = {
        name: log_determinant(Directions(embedding, np.arange(n))[np.array(rows)]) for name, rows in chosen.items()
    }
    assert bits["logdet"] > bits["coverage"]
    facts = select(pool(60), 0.2, diversity="logdet").facts
    assert (facts["diversity"], "blocks" in facts) == ("logdet", False)
    with pytest.raises(UserError, match="diversity is 'volume': choose one of coverage, logdet"):
        select(pool(8), 0.5, diversity="volume")
