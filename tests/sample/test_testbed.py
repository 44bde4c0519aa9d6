from __future__ import annotations

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from optidel_hf.curation.inputs import InputConfig, open_sources
from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.sample import testbed, testbed_views
from optidel_hf.sample.junk import JUNK
from optidel_hf.sample.render import Rendering
from optidel_hf.sample.testbed import (
    TestbedConfig,
    describe,
    frame_names,
    open_testbed,
    plan_generated,
    plan_real,
    write_testbed,
)
from optidel_hf.sources import open_dataset


SMALL = {"frames": 16, "redundancy": 4, "junk": 0.25, "scene_types": 2, "image_size": 32}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return write_testbed(TestbedConfig(str(tmp_path_factory.mktemp("testbed") / "new"), **SMALL))


@pytest.fixture(scope="module")
def real_images(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for number in range(3):
        shutil.copy(image_folder / f"frame-{number:02d}.png", folder / f"colon-{number}.png")
    return folder


@pytest.fixture(scope="module")
def drifting(real_images, tmp_path_factory):
    output = tmp_path_factory.mktemp("drifting") / "new"
    return write_testbed(TestbedConfig(str(output), images=str(real_images), frames=20, junk=0.2))


def latents(pool):
    return pq.read_table(pool.parents[1] / "latents.parquet")


def pixels(pool, source):
    return np.asarray(Image.open(pool / source), dtype=float)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("redundancy", "junk"), [(1, 0.0), (5, 0.2), (20, 0.5)])
def test_every_scene_has_its_copies_and_junk_its_share(redundancy, junk):
    plan, types = plan_generated(TestbedConfig(frames=20_000, redundancy=redundancy, junk=junk))
    usable = plan.junk == ""
    assert len(usable) == 20_000
    assert (~usable).sum() == round(20_000 * junk)
    assert set(np.bincount(plan.scene[usable])) == {redundancy}
    assert len(types) == plan.scene.max() + 1
    kinds = np.unique(plan.junk[~usable], return_counts=True)[1]
    assert kinds.tolist() == ([] if junk == 0 else [len(plan.junk) * junk / 4] * 4)


def test_scene_types_follow_zipfs_law():
    _, types = plan_generated(TestbedConfig(frames=20_000, redundancy=1, junk=0.0))
    counts = np.bincount(types, minlength=40)
    expected = 20_000 / np.arange(1, 41) / (1 / np.arange(1, 41)).sum()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_order_and_names_tell_nothing():
    plan, _ = plan_generated(TestbedConfig(frames=2000, redundancy=20))
    assert (np.diff(plan.scene) == 0).mean() < 0.05
    assert abs(np.corrcoef(np.arange(2000), plan.junk != "")[0, 1]) < 0.1


def test_real_frames_are_copied_by_zipfs_law_each_at_least_once():
    plan, _ = plan_real(TestbedConfig(frames=15_000, junk=0.2, images="polypgen"), 1500)
    times = np.sort(np.bincount(plan.scene[plan.junk == ""], minlength=1500))[::-1]
    assert times.sum() == 12_000
    assert times.min() == 1
    assert times[0] / times[9] == pytest.approx(10, rel=0.1)


def test_a_selection_sees_images_alone(generated):
    assert sorted(path.name for path in generated.parent.rglob("*") if path.is_file()) == frame_names(16)
    assert open_dataset(str(generated)).column_names == ["image", "source"]
    assert latents(generated)["source"].to_pylist() == frame_names(16)


def test_copies_are_nearer_than_other_scenes_and_none_is_another_again(generated):
    rows = [row for row in latents(generated).to_pylist() if row["junk"] is None]
    frames = np.stack([pixels(generated, row["source"]) for row in rows])
    apart = np.abs(frames[:, None] - frames[None]).mean(axis=(2, 3, 4))
    scene = np.array([row["scene"] for row in rows])
    same = (scene[:, None] == scene[None]) & ~np.eye(len(rows), dtype=bool)
    assert apart[same].min() > 1
    assert np.median(apart[same]) < np.median(apart[scene[:, None] != scene[None]]) / 2


def test_every_file_shows_what_its_latents_say(tmp_path, monkeypatch):
    """Here a usable frame is as bright as its number, and junk as bright as its kind says."""
    seen, drawn = {}, []

    def scenes(types, size, seed):
        def camera(scene, views):
            for number, copy in views:
                seen[number] = scene, types[scene], copy
                yield np.full((size, size, 3), number, np.uint8)

        return camera

    def spoil(level):
        return lambda frame, rng: drawn.append(rng.random()) or np.full_like(frame, level)

    brightness = {kind: 100 + 50 * place for place, kind in enumerate(JUNK)}
    monkeypatch.setattr(testbed, "generated_scenes", scenes)
    monkeypatch.setattr(testbed, "JUNK", {kind: spoil(level) for kind, level in brightness.items()})
    pool = write_testbed(TestbedConfig(str(tmp_path / "new"), **{**SMALL, "frames": 40}))
    rows = latents(pool).to_pylist()
    assert [(row["scene"], row["scene_type"], row["copy"]) for row in rows] == [seen[number] for number in range(40)]
    shown = [round(pixels(pool, row["source"]).mean()) for row in rows]
    assert shown == [brightness.get(row["junk"], number) for number, row in enumerate(rows)]
    assert len(set(drawn)) == 10  # each junk frame has random numbers of its own


def test_scenes_of_a_type_share_wall_and_endoscope_and_some_have_a_polyp(monkeypatch):
    walls, endoscopes, polyps = [], [], []

    def render(bowel, grown, cameras, size):
        walls.append(tuple(bowel.mucosa))
        polyps.append(len(grown))
        return [Rendering(np.ones((size, size, 3)), np.zeros((size, size)), np.zeros((size, size), bool))]

    monkeypatch.setattr(testbed_views, "render", render)
    monkeypatch.setattr(testbed_views, "photograph", lambda _, endoscope, *rest, **named: endoscopes.append(endoscope))
    camera = testbed_views.generated_scenes(np.repeat([0, 1], 6), 16, seed=0)
    for scene in range(12):
        next(camera(scene, [(scene, 0.0)]))
    for shared in (walls, [tuple(endoscope.white) for endoscope in endoscopes]):
        assert [len(set(part)) for part in (shared[:6], shared[6:], shared)] == [1, 1, 2]
    assert set(polyps) == {0, 1}


@pytest.mark.parametrize("kind", ["generated", "real"])
def test_shots_of_one_moment_differ_in_exposure_and_in_how_long_they_are_exposed(kind, real_images, monkeypatch):
    shutters, look = [], testbed_views.look

    def watched(picture, drift, time, shutter):
        shutters.append(shutter)
        return look(picture, drift, time, shutter)

    monkeypatch.setattr(testbed_views, "look", watched)
    if kind == "generated":
        camera = testbed_views.generated_scenes(np.array([0]), 32, seed=0)
    else:
        camera = testbed_views.drifting_frames(open_dataset(str(real_images)), seed=0)
    shots = np.stack(list(camera(0, [(number, 2.0) for number in range(12)])))
    assert 0.02 < np.log(shots.mean(axis=(1, 2, 3))).std() < 0.2
    assert 0.2 < np.mean(shutters) < 1
    assert len(set(shutters)) == 12


def test_a_killed_run_goes_on_and_ends_the_same(generated, tmp_path, monkeypatch):
    write, written = testbed._write_jpeg, []

    def killed(frame, path):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(frame, path)

    config = TestbedConfig(str(tmp_path / "cut"), **SMALL)
    monkeypatch.setattr(testbed, "_write_jpeg", killed)
    with pytest.raises(KeyboardInterrupt):
        write_testbed(config)
    assert not (tmp_path / "cut" / "latents.parquet").exists()
    before = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(testbed, "_write_jpeg", write)
    write_testbed(config)
    assert {path: path.stat().st_mtime_ns for path in written} == before
    assert contents(tmp_path / "cut") == contents(generated.parents[1])


def test_a_finished_testbed_is_reused_and_another_refused(generated, monkeypatch):
    monkeypatch.setattr(testbed, "_write_jpeg", lambda *_: pytest.fail("written again"))
    folder = str(generated.parents[1])
    assert write_testbed(TestbedConfig(folder, **SMALL)) == generated
    with pytest.raises(UserError, match=r"junk was 0\.25, now 0\.5"):
        write_testbed(TestbedConfig(folder, **{**SMALL, "junk": 0.5}))


@pytest.mark.parametrize("pool", ["generated", "drifting"])
def test_what_a_finished_testbed_lost_is_made_again(pool, request, real_images, tmp_path):
    whole = request.getfixturevalue(pool)
    output = shutil.copytree(whole.parents[1], tmp_path / "lost")
    real = {} if pool == "generated" else {"images": str(real_images), "frames": 20, "junk": 0.2}
    for name in ("frame-000003.jpg", "metadata.csv") if real else ("frame-000003.jpg",):
        (output / whole.relative_to(whole.parents[1]) / name).unlink()
        with pytest.raises(UserError, match=r"lost has lost some of its pool: the same `optidel testbed` makes"):
            open_testbed(output)
        write_testbed(TestbedConfig(str(output), **(real or SMALL)))
        assert contents(output) == contents(whole.parents[1])


def test_a_testbed_whose_record_is_damaged_is_told(generated, tmp_path):
    output = shutil.copytree(generated.parents[1], tmp_path / "damaged")
    (output / "testbed.json").write_text("{")
    for use in (open_testbed, lambda folder: write_testbed(TestbedConfig(str(folder), **SMALL))):
        with pytest.raises(UserError, match=r"testbed\.json is damaged"):
            use(output)


def test_a_testbed_that_another_process_writes_is_left_alone(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="Another process is at work in"):
        write_testbed(TestbedConfig(str(tmp_path), **SMALL))
    assert not any(tmp_path.iterdir())


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="not a testbed"):
        write_testbed(TestbedConfig(str(tmp_path), **SMALL))


def test_real_frames_carry_their_group_and_the_word(drifting, real_images):
    assert "semi-synthetic" in drifting.as_posix()
    assert "Semi-synthetic" in (drifting.parents[1] / "README.md").read_text()
    opened = open_sources(InputConfig(dataset=str(drifting), group_column="group"))
    table = latents(drifting).to_pylist()
    assert opened["source"] == [row["source"] for row in table]
    assert opened["group"] == [f"colon-{row['scene']}.png" for row in table]
    sizes = {f"colon-{number}.png": Image.open(real_images / f"colon-{number}.png").size for number in range(3)}
    assert {
        (group, Image.open(drifting / name).size) for name, group in zip(opened["source"], opened["group"])
    } == set(sizes.items())


def test_other_real_frames_of_the_same_number_are_another_testbed(drifting, real_images, tmp_path):
    folder, output = shutil.copytree(real_images, tmp_path / "frames"), tmp_path / "pool"
    write_testbed(TestbedConfig(str(output), images=str(folder), frames=6, junk=0.0))
    of_scenes = {"redundancy": 7, "scene_types": 3, "image_size": 64}  # which says nothing of real frames
    write_testbed(TestbedConfig(str(output), images=str(folder), frames=6, junk=0.0, **of_scenes))
    first, second, *_ = sorted(folder.glob("*.png"))
    shutil.copy(second, first)
    with pytest.raises(UserError, match="holds another testbed"):
        write_testbed(TestbedConfig(str(output), images=str(folder), frames=6, junk=0.0))


def test_fewer_frames_than_real_ones_are_refused(real_images, tmp_path):
    with pytest.raises(UserError, match="--frames 6"):
        write_testbed(TestbedConfig(str(tmp_path / "new"), images=str(real_images), frames=4, junk=0.5))


def test_fewer_frames_than_a_scenes_copies_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"20 copies of a scene need more than 10 frames .* --frames 25"):
        write_testbed(TestbedConfig(str(tmp_path / "new"), frames=12, redundancy=20, junk=0.2))
    assert not (tmp_path / "new").exists()
    plan_generated(TestbedConfig(frames=25, redundancy=20, junk=0.2))


@pytest.mark.parametrize(
    ("frames", "copies"), [(8, "4 near copies each ("), (10, "4 near copies each, the last scene in 2 (")]
)
def test_the_text_says_how_many_copies_there_are(frames, copies):
    config = TestbedConfig(frames=frames, redundancy=4, junk=0.0)
    assert copies in describe(config, plan_generated(config)[0])


def test_a_broken_real_frame_is_named(real_images, tmp_path):
    folder = shutil.copytree(real_images, tmp_path / "frames")
    (folder / "colon-1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"colon-1\.png"):
        write_testbed(TestbedConfig(str(tmp_path / "new"), images=str(folder), frames=6, junk=0.0))


@pytest.mark.parametrize("wrong", [{"junk": 1.0}, {"redundancy": 0}, {"frames": 0}, {"image_size": 8}])
def test_what_makes_no_pool_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TestbedConfig(**wrong)


def test_a_written_testbed_is_found_with_what_it_is(generated, drifting, tmp_path):
    found = open_testbed(generated.parents[1])
    assert (found.images, found.semi_synthetic, found.redundancy, found.junk) == (generated, False, 4, 0.25)
    assert pq.read_table(found.latents).num_rows == SMALL["frames"]
    found = open_testbed(drifting.parents[1])
    assert (found.images, found.semi_synthetic, found.redundancy, found.junk) == (drifting, True, None, 0.2)
    with pytest.raises(UserError, match=r"no whole testbed \(no latents.parquet\)"):
        open_testbed(tmp_path)
