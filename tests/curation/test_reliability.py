"""Reliability against values worked by hand, and what averaging over more partitions really does."""

from __future__ import annotations

import pytest
import torch

from optidel_hf.curation.reliability import MOST_PARTITIONS, fewest_partitions, spearman_brown
from optidel_hf.evaluation.statistics import rank_correlation


def test_spearman_brown_by_hand() -> None:
    assert spearman_brown(0.6, 1) == pytest.approx(0.6)
    assert spearman_brown(0.6, 2) == pytest.approx(1.2 / 1.6)
    assert spearman_brown(-0.2, 8) == 0


@pytest.mark.parametrize(("rho", "partitions"), [(0.95, 1), (0.9, 1), (0.89, 2), (0.818, 3), (0.75, 3), (0.6, 6)])
def test_the_fewest_partitions_that_reach_nine_tenths(rho: float, partitions: int) -> None:
    assert fewest_partitions(rho) == partitions
    assert spearman_brown(rho, partitions) >= 0.9 - 1e-9
    assert partitions == 1 or spearman_brown(rho, partitions - 1) < 0.9


@pytest.mark.parametrize("rho", [None, -0.2, 0.0, 0.1])
def test_a_score_without_order_costs_no_more_than_the_most(rho: float | None) -> None:
    assert fewest_partitions(rho) == MOST_PARTITIONS


def test_the_formula_predicts_how_two_means_agree() -> None:
    """Two means over P partitions each, of a score with noise as large as itself (rho = 0.5)."""
    generator = torch.Generator().manual_seed(0)
    truth, noise = torch.randn(4000, generator=generator), torch.randn(4000, 18, generator=generator)
    partitions = fewest_partitions(0.5, most=9)
    first, second = (truth + part.mean(1) for part in noise.split(partitions, dim=1))
    assert rank_correlation(first, second) == pytest.approx(spearman_brown(0.5, partitions), abs=0.02)
