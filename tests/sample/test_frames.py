from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from optidel_hf.sample import frames as frames_module
from optidel_hf.sample.bowel import build_bowel
from optidel_hf.sample.frames import FrameConfig, generate_sequence
from optidel_hf.sample.optics import Endoscope, build_endoscope, photograph
from optidel_hf.sample.render import Rendering


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


def shoot(seed=0, haze=0.0):
    """A photograph of stripes with one highlight, seen through the right half of the frame; a mark is in the left."""
    light, highlight, window, overlay = np.full((32, 32, 3), 0.3), *np.zeros((3, 32, 32))
    light[:, ::4], highlight[20:28, 20:28], window[:, 16:], overlay[4, 2:8] = 0.1, 1, 1, 0.7
    endoscope = Endoscope(window, overlay, exposure=0.8, white=np.ones(3), quality=95)
    rendering = Rendering(light, highlight, np.zeros((32, 32), bool))
    return photograph(rendering, endoscope, np.random.default_rng(seed), 0.3, 1.0, haze).astype(int)


def test_outside_the_window_a_frame_is_black_but_for_its_marks():
    frame = shoot()
    assert frame[8:, :15].max() < 12
    assert frame[4, 2:8].min() > 100
    assert frame[:16, 17:].mean() > 100


def test_highlights_are_white_the_sensor_has_noise_and_haze_takes_contrast():
    frame, again, hazy = shoot(), shoot(seed=1), shoot(haze=0.25)
    assert frame[22:26, 22:26].min() > 240 > frame[:16, 17:].max()
    assert 1 < (frame - again)[:16, 17:].std() < 5
    assert 0.5 < hazy[:16, 17:].std() / frame[:16, 17:].std() < 0.85


def test_endoscopes_differ_in_border_and_marks_and_sequences_in_haze(monkeypatch):
    endoscopes = [build_endoscope(np.random.default_rng(seed), 32) for seed in range(16)]
    assert (
        {(one.window == 0).any() for one in endoscopes} == {one.overlay.any() for one in endoscopes} == {True, False}
    )
    assert all((one.window[one.overlay > 0] == 0).all() for one in endoscopes)
    bowel, hazes = build_bowel(np.random.default_rng(0)), []
    dark = Rendering(np.zeros((32, 32, 3)), np.zeros((32, 32)), np.zeros((32, 32), bool))
    monkeypatch.setattr(frames_module, "build_bowel", lambda _: bowel)
    monkeypatch.setattr(frames_module, "render", lambda *_: [dark])
    monkeypatch.setattr(frames_module, "photograph", lambda *shot: hazes.append(shot[-1]) or dark.diffuse)
    for sequence in range(16):
        generate_sequence(0, sequence, FrameConfig(image_size=32, frames_per_sequence=1, polyp_rate=0.0))
    assert min(hazes) == 0 < max(hazes) <= 0.25


@pytest.mark.parametrize("wrong", [{"image_size": 8}, {"frames_per_sequence": 0}, {"stride": 0}, {"polyp_rate": 1.5}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameConfig(**wrong)
