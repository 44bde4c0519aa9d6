"""What a user is told."""

from __future__ import annotations

from optidel_hf.errors import changes


def test_changes_are_named_in_order_with_both_values():
    assert changes({"steps": 4, "objective": "mae", "seed": 0}, {"seed": 0, "steps": 5, "tiles": None}) == (
        "objective was 'mae', now None, steps was 4, now 5"
    )
    assert changes({"seed": 0}, {"seed": 0}) == ""
