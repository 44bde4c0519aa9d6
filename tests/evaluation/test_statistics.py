"""Intervals worked out by hand, and what the table says and does not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from optidel_hf.evaluation.statistics import (
    bootstrap_correction,
    markdown_table,
    mean_interval,
    rank_correlation,
    summarise,
)


def runs(**scores: list[float]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "mode": "probe", "seed": seed, "miou": value}
        for arm, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_interval_by_hand() -> None:
    # s = 0.1, t(0.975, 2) = 4.302653, half = 4.302653 * 0.1 / sqrt(3) = 0.248414
    assert mean_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.251586, 0.748414), abs=1e-6)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_a_corrected_bootstrap_of_a_mean_is_students_interval(count: int) -> None:
    of_the_bootstrap = stats.norm.ppf(0.975) * ((count - 1) / count) ** 0.5  # in standard errors
    assert bootstrap_correction(count) * of_the_bootstrap == pytest.approx(stats.t.ppf(0.975, count - 1))


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.4]) == (0.4, None, None)


def test_rank_correlation_by_hand() -> None:
    # Ranks 0 1 2 3 against 1 0 3 2: 1 - 6 x 4 / (4 x 15).
    assert rank_correlation(torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 0, 9, 5])) == pytest.approx(0.6)
    # Ties share their mean rank: 0.5 0.5 2 against 0 1 2.
    assert rank_correlation([1, 1, 4], [0, 1, 2]) == pytest.approx(1.5 / 3**0.5)
    same = np.arange(10.0)
    assert rank_correlation(same, np.exp(same)) == pytest.approx(1.0)
    assert rank_correlation(same, -same) == pytest.approx(-1.0)


def test_what_has_no_value_is_left_out_of_a_rank_correlation() -> None:
    first = np.array([0.0, np.nan, 1, 2, 3, 9])
    assert rank_correlation(first, np.array([1.0, 9, 0, 9, 5, -np.inf])) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([], []),
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0] * 3, [1.0, 2, 3]),
        ([1.0, 2, 3], [1.0] * 3),
        ([1.0, 2, 3, np.nan], [4.0, 4, 4, 5]),
    ],
)
def test_what_has_no_order_has_no_rank_correlation(first: list[float], second: list[float]) -> None:
    assert rank_correlation(first, second) is None


def test_summary_has_one_row_for_every_arm_and_mode() -> None:
    rows = [*runs(b=[0.4, 0.6], a=[0.3, 0.3]), {"arm": "b", "mode": "finetune", "seed": 0, "miou": 0.7}]
    summary = summarise(rows)
    assert [(row["arm"], row["mode"], row["seeds"]) for row in summary] == [
        ("b", "probe", 2),
        ("a", "probe", 2),
        ("b", "finetune", 1),
    ]
    assert [row["miou_mean"] for row in summary] == pytest.approx([0.5, 0.3, 0.7])
    assert summary[1]["miou_low"] == summary[1]["miou_high"] == pytest.approx(0.3)
    assert summary[2]["miou_low"] is None


def test_table_shows_means_intervals_and_seeds() -> None:
    rows = [*runs(a=[0.4, 0.5, 0.6]), {"arm": "b", "mode": "finetune", "seed": 0, "miou": 0.7}]
    table = markdown_table({"summary": summarise(rows)})
    assert table.splitlines()[:4] == [
        "| arm | probe mIoU, % | finetune mIoU, % |",
        "|---|---|---|",
        "| a | 50.00 [25.16, 74.84] (3 seeds) |  |",
        "| b |  | 70.00 (1 seed) |",
    ]
    assert table.endswith("over one seed, which has no interval: no difference in this table is a claim.")
    with_ratio = [row | {"normdel": 0.55671} for row in summarise(runs(a=[0.4, 0.5, 0.6]))]
    assert "| a | 50.00 [25.16, 74.84] (3 seeds, NormDEL 0.5567) |" in markdown_table({"summary": with_ratio})
    assert "over 3 seeds" in markdown_table({"summary": summarise(runs(a=[0.4, 0.5, 0.6]))})
