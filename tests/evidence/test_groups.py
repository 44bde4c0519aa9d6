"""Frames of one video are one image to an interval: a group's confusion matrices are added before any judging."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from simulated import results_table

from optidel_hf.errors import UserError
from optidel_hf.evidence.comparison import Comparison, Judged
from optidel_hf.evidence.results import NAMES, add_up_groups, group_names, judged_names


LEVELS = {"full": 0.7, "optidel": 0.72}


def as_frames(results: pa.Table, copies: int) -> pa.Table:
    """Every image of the results as so many frames of a video of its own, the frames of a video not side by side."""
    flat = np.array(results["confusion"].to_pylist(), np.int32).reshape(len(results), 1, -1)
    column = pa.array(list(np.tile(flat, (1, copies, 1)).reshape(len(results), -1)), pa.list_(pa.int32()))
    images = flat.shape[-1] // 4
    names = [f"video-{image}_frame-{frame}" for frame in range(copies) for image in range(images)]
    place = results.schema.get_field_index("confusion")
    told = {NAMES: json.dumps({"validation": names}).encode()}
    return results.set_column(place, "confusion", column).replace_schema_metadata(told)


def optidel_minus_full(results: pa.Table) -> Comparison:
    found = Judged.of(results).compare("optidel", "full", "probe")
    assert found is not None
    return found


def test_copies_of_an_image_say_no_more_than_the_image() -> None:
    results = results_table(LEVELS, spread=(0.002, 0.08, 0.03))
    frames = as_frames(results, copies=4)
    alone, copied, grouped = map(optidel_minus_full, (results, frames, add_up_groups(frames, r"video-\d+")))
    assert judged_names(add_up_groups(frames, r"video-\d+")) == {"validation": [f"video-{i}" for i in range(40)]}
    assert grouped.interval.images == alone.interval.images == copied.interval.images / 4
    assert grouped.interval.difference == pytest.approx(copied.interval.difference)
    ends = (alone.interval.low, alone.interval.high, alone.detectable)
    assert (grouped.interval.low, grouped.interval.high, grouped.detectable) == pytest.approx(ends)
    assert copied.interval.high - copied.interval.low < 0.95 * (alone.interval.high - alone.interval.low)


def test_without_a_pattern_every_image_is_its_own_group() -> None:
    frames = as_frames(results_table(LEVELS), copies=2)
    same = add_up_groups(frames, None)
    assert same.equals(frames)
    assert judged_names(same) == judged_names(frames)
    names = ["001"] * len(judged_names(frames)["validation"])  # of files in several folders
    repeated = frames.replace_schema_metadata({NAMES: json.dumps({"validation": names}).encode()})
    assert add_up_groups(repeated, None)["confusion"].equals(frames["confusion"])


def test_each_part_has_its_own_groups() -> None:
    one = results_table({"full": 0.7}, seeds=1, images=4, modes=["probe"], splits=["validation", "test"])
    names = {"validation": ["a-1", "a-2", "b-1", "b-2"], "test": ["c-1", "d-1", "d-2", "d-3"]}
    found = add_up_groups(one.replace_schema_metadata({NAMES: json.dumps(names).encode()}), r"\w-")
    assert judged_names(found) == {"validation": ["a-", "b-"], "test": ["c-", "d-"]}
    for before, after, first in zip(one.to_pylist(), found.to_pylist(), (2, 1)):
        matrices = np.array(before["confusion"]).reshape(4, 4)
        added = np.stack([matrices[:first].sum(axis=0), matrices[first:].sum(axis=0)])
        assert after["confusion"] == added.ravel().tolist()


def test_groups_are_named_in_order_of_appearance() -> None:
    assert group_names(["a_seq-2_1", "a_seq-1_1", "a_seq-2_2"], r"seq-\d+") == ["seq-2", "seq-1", "seq-2"]
    assert group_names(["test_v1_1", "test_v1_2", "test_v2_1"], r"test_(v\d+)_\d+") == ["v1", "v1", "v2"]
    assert group_names(["a1-b2", "a1-c3"], r"(a\d)-(b\d)?") == ["a1-b2", "a1"]
    with pytest.raises(UserError, match=r"'seq-.d\+' finds no group in the name 'b'"):
        group_names(["seq-1", "b"], r"seq-\d+")
