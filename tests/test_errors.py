"""What a user is told."""

from __future__ import annotations

import pytest

from optidel_hf.errors import UserError, changes, named_by


def test_changes_are_named_in_order_with_both_values():
    assert changes({"steps": 4, "objective": "mae", "seed": 0}, {"seed": 0, "steps": 5, "tiles": None}) == (
        "objective was 'mae', now None, steps was 4, now 5"
    )
    assert changes({"seed": 0}, {"seed": 0}) == ""


def test_mistakes_name_the_flags_that_were_given():
    with (
        pytest.raises(UserError, match=r"^--pool a has no split b: see --pool_split, not --dataset_config"),
        named_by(dataset="pool", split="pool_split"),
    ):
        raise UserError("--dataset a has no split b: see --split, not --dataset_config or --splits")
    for flags, named in (
        ({"split": "a"}, r"--dataset_config \(not for these images\)"),
        ({"dataset_config": "b"}, "--b"),
    ):
        with pytest.raises(UserError, match=f"^me/x: {named} names one$"), named_by(**flags):
            raise UserError("me/x: --dataset_config names one")
