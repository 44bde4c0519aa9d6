"""Facts of an arm, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock, Timeout

from optidel_hf.evidence.accounting import count_contents, count_native_pixels, coverage
from optidel_hf.evidence.oracle import covering_frames, nearest_frames
from optidel_hf.evidence.pool import lock, stopwatch


def test_native_pixels_are_counted_once_a_source() -> None:
    # Two squares of 10 that share 5 x 5, one inside another, and the same square of another source.
    assert count_native_pixels(["a", "a"], [[0, 0, 10], [5, 5, 10]]) == 175
    assert count_native_pixels(["a", "a"], [[0, 0, 10], [2, 3, 4]]) == 100
    assert count_native_pixels(["a", "b", "a"], [[0, 0, 10], [0, 0, 10], [20, 0, 3]]) == 209


def test_native_pixels_agree_with_painting() -> None:
    rng = np.random.default_rng(0)
    crops = np.concatenate([rng.integers(0, 40, (12, 2)), rng.integers(1, 20, (12, 1))], axis=1)
    canvas = np.zeros((60, 60), bool)
    for x, y, side in crops:
        canvas[y : y + side, x : x + side] = True
    assert count_native_pixels(["a"] * 12, crops.tolist()) == canvas.sum()


def test_contents_count_stored_images_and_what_their_tiles_are_of(tmp_path: Path) -> None:
    for shard, lengths in enumerate([[10, 20], [30]]):
        images = pa.array([{"bytes": bytes(length), "path": None} for length in lengths])
        pq.write_table(pa.table({"image": images}), tmp_path / f"shard-{shard:05d}-of-00002.parquet")
    sources, crops = ["a", "b", "c", "a", "b", "c"], [[0, 0, 4]] * 6
    chosen = pa.table({"source": sources, "group": ["ab", "ab", "c"] * 2, "crop": crops})
    facts = {"images": 3, "stored_pixels": 3 * 8 * 8, "stored_bytes": 60, "sources": 3, "groups": 2}
    assert count_contents(chosen, tmp_path, 8) == facts | {"native_pixels": 3 * 4 * 4}


def test_patches_that_are_all_alike_have_no_direction_to_be_near_by() -> None:
    assert coverage(np.full((4, 3), 0.3), np.full((2, 3), 0.3)) == 1


def test_coverage_is_the_mean_distance_to_the_nearest_tile_about_the_pools_mean() -> None:
    offset = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float64)
    pool = offset + np.array([7, 9])  # the mean is taken off
    assert coverage(pool, pool) == pytest.approx(0)
    assert coverage(pool, pool[:1]) == pytest.approx((0 + 1 + 2 + 1) / 4)
    assert coverage(pool, pool[:2]) == pytest.approx((0 + 0 + 1 + 1) / 4)


def test_nearest_frames_come_in_order_of_their_nearest_label_image() -> None:
    degrees = np.deg2rad([0, 30, 90, 180, 270, 330])
    frames = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    frames -= frames.mean(axis=0)
    labels = frames[[3]] * 2 + frames[[0]] * 0.01
    assert nearest_frames(frames, labels, 1).tolist() == [3]
    assert set(nearest_frames(frames + 5, np.concatenate([labels, frames[[2]]]) + 5, 2).tolist()) == {2, 3}


def test_covering_frames_leave_near_copies_for_later() -> None:
    degrees = np.deg2rad([0, 1, 2, 100])
    frames = np.stack([np.cos(degrees), np.sin(degrees)], axis=1)
    frames = np.concatenate([frames, -frames])  # their mean is nothing
    labels = frames[[0, 1, 2]].repeat(2, axis=0)
    labels = np.concatenate([labels, frames[[3]] + 0.1 * frames[[0]]])
    assert set(nearest_frames(frames, labels, 3).tolist()) == {0, 1, 2}
    chosen = covering_frames(frames, labels, 4).tolist()
    assert chosen[0] in (0, 1, 2)
    assert chosen[1] == 3
    assert set(chosen) == {0, 1, 2, 3}
    # With more than it takes to be near to all of them, all that is left has its turn.
    assert sorted(covering_frames(frames, labels, 8).tolist()) == list(range(8))


def test_each_covering_frame_raises_the_mean_cosine_most() -> None:
    rng = np.random.default_rng()
    frames, labels = rng.normal(size=(30, 5)), rng.normal(size=(8, 5))
    unit = [part - frames.mean(axis=0) for part in (frames, labels)]
    frames_unit, labels_unit = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in unit)
    chosen = covering_frames(frames, labels, 4).tolist()
    for place, frame in enumerate(chosen):
        reached = [(labels_unit @ frames_unit[[*chosen[:place], one]].T).max(axis=1).mean() for one in range(30)]
        assert reached[frame] == pytest.approx(max(reached))


def test_a_stopwatch_adds_what_failed_and_stops_when_it_ended_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([10.0, 12.5, 100.0, 101.0, 500.0])
    monkeypatch.setattr("optidel_hf.evidence.pool.time.perf_counter", lambda: next(ticks))
    path = tmp_path / "seconds.json"
    with pytest.raises(RuntimeError), stopwatch(path):
        raise RuntimeError
    assert json.loads(path.read_text()) == {"seconds": 2.5, "finished": False}
    with stopwatch(path):
        pass
    assert json.loads(path.read_text()) == {"seconds": 3.5, "finished": True}
    with stopwatch(path):
        pass
    assert json.loads(path.read_text()) == {"seconds": 3.5, "finished": True}


def test_a_locked_folder_is_nobody_elses_until_it_is_let_go(tmp_path: Path) -> None:
    other = FileLock(tmp_path / ".patch.lock", timeout=0)
    with lock(tmp_path / "patch"), pytest.raises(Timeout):
        other.acquire()
    other.acquire()
    other.release()
