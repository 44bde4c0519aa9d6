from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from optidel_hf.sample.frames import FrameConfig, generate_sequence


SMALL = FrameConfig(image_size=48, frames_per_sequence=3, polyp_rate=1.0)


@pytest.fixture(scope="module")
def sequences() -> list[tuple[np.ndarray, np.ndarray]]:
    return [generate_sequence(0, sequence, SMALL) for sequence in range(6)]


def test_shapes_and_types(sequences):
    frames, masks = sequences[0]
    assert frames.shape == (3, 48, 48, 3)
    assert frames.dtype == np.uint8
    assert masks.shape == (3, 48, 48)
    assert masks.dtype == bool


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(sequences):
    frames, masks = generate_sequence(0, 1, SMALL)
    assert hashlib.sha256(frames).digest() == hashlib.sha256(sequences[1][0]).digest()
    assert np.array_equal(masks, sequences[1][1])
    assert not np.array_equal(frames, generate_sequence(1, 1, SMALL)[0])
    assert not np.array_equal(frames, sequences[2][0])


def test_a_frame_does_not_depend_on_the_global_random_state(sequences):
    np.random.seed(7)  # noqa: NPY002
    assert np.array_equal(generate_sequence(0, 0, SMALL)[0], sequences[0][0])


def test_masks_cover_a_plausible_share_and_sequences_without_polyps_have_none(sequences):
    shares = np.concatenate([masks.mean(axis=(1, 2)) for _, masks in sequences])
    assert (shares > 0.003).mean() > 0.7
    assert shares.max() < 0.6
    assert not generate_sequence(0, 0, replace(SMALL, polyp_rate=0.0))[1].any()


def test_masks_lie_where_the_polyp_changes_the_frame(sequences):
    """Without its polyps the same scene differs inside the mask, and much less outside it."""
    for sequence, (frames, masks) in enumerate(sequences):
        bare, _ = generate_sequence(0, sequence, replace(SMALL, polyp_rate=0.0))
        change = np.abs(frames.astype(int) - bare).mean(axis=-1)
        assert change[masks].mean() > 2 * change[~masks].mean()
        assert change[masks].mean() > 8


def test_polyps_are_not_a_colour(sequences):
    """No threshold on redness, either way, finds the polyps: at best it shares half its pixels with them."""
    frames = np.concatenate([frames for frames, _ in sequences]).astype(float)
    masks = np.concatenate([masks for _, masks in sequences])
    redness = frames[..., 0] / (frames.sum(axis=-1) + 1)
    for threshold in np.quantile(redness, np.linspace(0.05, 0.95, 19)):
        for found in (redness > threshold, redness < threshold):
            assert (found & masks).sum() / (found | masks).sum() < 0.5


def test_consecutive_frames_are_nearer_than_frames_of_other_sequences(sequences):
    frames = np.stack([frames for frames, _ in sequences]).astype(float)
    within = np.abs(frames[:, 1:] - frames[:, :-1]).mean(axis=(2, 3, 4))
    first = frames[:, 0]
    across = np.abs(first[:, None] - first[None]).mean(axis=(2, 3, 4))[~np.eye(len(first), dtype=bool)]
    assert np.median(within) < 0.4 * np.median(across)
    assert within.max() < np.median(across)


def test_stride_takes_every_nth_moment(sequences):
    """The scene is the same; the third frame of stride 1 shows what the second of stride 2 shows."""
    short = replace(SMALL, frames_per_sequence=2, stride=2, polyp_rate=0.0)
    long = replace(SMALL, polyp_rate=0.0)
    wide, dense = generate_sequence(0, 3, short)[0].astype(int), generate_sequence(0, 3, long)[0].astype(int)
    assert np.abs(wide[1] - dense[2]).mean() < np.abs(wide[1] - dense[0]).mean()


@pytest.mark.parametrize("wrong", [{"image_size": 8}, {"frames_per_sequence": 0}, {"stride": 0}, {"polyp_rate": 1.5}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameConfig(**wrong)
