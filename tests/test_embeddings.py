"""Directions, distances and spacing, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from optidel_hf import embeddings
from optidel_hf.embeddings import nearest_distance, spaced, unit_vectors


AXES = np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]])


def test_directions_have_unit_length_about_the_mean() -> None:
    np.testing.assert_allclose(unit_vectors(3 * AXES + [7, 9], np.array([7, 9])), AXES)
    assert unit_vectors(AXES.astype(np.float32), np.zeros(2, np.float32)).dtype == np.float32


def test_what_is_rounding_alone_has_no_direction() -> None:
    mean = np.full(4, 0.5)
    assert np.abs(unit_vectors((mean + 1e-6)[None], mean)).max() < 0.01
    assert not unit_vectors(mean[None], mean).any()


def test_the_mean_distance_to_the_nearest() -> None:
    assert nearest_distance(AXES, AXES) == 0
    assert nearest_distance(AXES, AXES[:1]) == (0 + 1 + 2 + 1) / 4
    assert nearest_distance(AXES, AXES[:2]) == (0 + 0 + 1 + 1) / 4


@pytest.mark.parametrize("at_once", [1, 4, 12])
def test_many_chosen_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    pool = unit_vectors(np.random.default_rng().normal(size=(40, 5)), np.zeros(5))
    expected = 1 - (pool @ pool[:12].T).max(axis=1).mean()
    monkeypatch.setattr(embeddings, "AT_ONCE", at_once)
    assert nearest_distance(pool, pool[:12]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [(0, 3, []), (1, 3, [0]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (9, 1, [0]), (9, 3, [0, 4, 8]), (8, 3, [0, 4, 7])],
)
def test_spaced_rows_by_hand(rows: int, count: int, expected: list[int]) -> None:
    assert spaced(rows, count).tolist() == expected


def test_no_row_is_taken_twice() -> None:
    for rows in range(1, 60):
        for count in range(2, rows + 1):
            steps = np.diff(spaced(rows, count))
            assert steps.sum() == rows - 1
            assert steps.min() >= max(1, steps.max() - 1)
