from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.sample import folder
from optidel_hf.sample.folder import write_sample
from optidel_hf.sample.frames import FrameConfig, generate_sequence


SIZES = {"frames": 20, "train": 5, "validation": 2, "test": 3, "image_size": 32}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "new", **SIZES)


def names(root, pattern):
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_layout(written):
    assert names(written, "pool/**/*.*")[-1] == "pool/images/seq-0000_frame-0019.jpg"
    assert len(names(written, "pool/**/*.*")) == 20
    assert len(names(written, "downstream/images/train_*.png")) == 5
    assert len(names(written, "downstream/images/validation_*.png")) == 2
    assert len(names(written, "downstream/images/test_*.png")) == 3
    assert [n.replace("masks", "images") for n in names(written, "downstream/masks/*")] == names(
        written, "downstream/images/*"
    )


def test_masks_are_black_and_white_and_some_hold_a_polyp(written):
    values = [np.unique(np.asarray(Image.open(path))) for path in (written / "downstream" / "masks").iterdir()]
    assert set(np.concatenate(values)) == {0, 255}


def test_labelled_frames_are_five_moments_apart(written):
    _, every = generate_sequence(0, 1000, FrameConfig(SIZES["image_size"], frames_per_sequence=20, polyp_rate=0.9))
    paths = sorted((written / "downstream" / "masks").glob("train_seq-1000_*"))
    assert (np.stack([np.asarray(Image.open(path)) > 0 for path in paths]) == every[::5]).all()
    assert (every[0] != every[5]).any()


def test_no_sequence_is_in_two_parts(written):
    parts = {}
    for name in names(written, "pool/images/*") + names(written, "downstream/images/*"):
        part = re.search(r"(\w+?)(/images/|_)seq", name).group(1)
        parts.setdefault(part, set()).add(re.search(r"seq-(\d{4})_", name).group(1))
    assert len(parts) == 4
    assert len(set.union(*parts.values())) == sum(map(len, parts.values()))


def test_a_finished_sample_is_reused(written, monkeypatch):
    monkeypatch.setattr(folder, "generate_sequence", lambda *_: pytest.fail("generated again"))
    assert write_sample(written, **SIZES) == written


def test_another_configuration_is_refused(written):
    with pytest.raises(UserError, match="seed was 0, now 1"):
        write_sample(written, **SIZES, seed=1)


def test_another_domain_is_refused(written):
    with pytest.raises(UserError, match="domain was 'colonoscopy', now 'cells'"):
        write_sample(written, **SIZES, domain="cells")


def test_a_sample_that_names_no_domain_is_of_the_first(written, tmp_path):
    older = shutil.copytree(written, tmp_path / "older")
    told = json.loads((written / "sample.json").read_text())
    (older / "sample.json").write_text(json.dumps({name: told[name] for name in told if name != "domain"}))
    assert write_sample(older, **SIZES) == older


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UserError, match="not a sample"):
        write_sample(tmp_path, **SIZES)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("pool/images", "29 of the 30 images"),
        ("downstream/images", "29 of the 30 images"),
        ("downstream/masks", "9 of the 10 masks"),
    ],
)
def test_a_sample_that_lost_an_image_a_mask_or_its_record_is_told(place, told, written, tmp_path):
    lost = shutil.copytree(written, tmp_path / "lost")
    next((lost / place).iterdir()).unlink()
    with pytest.raises(UserError, match=f"lost has {told} of its sample: delete it"):
        write_sample(lost, **SIZES)
    (lost / "sample.json").write_text("{")
    with pytest.raises(UserError, match=r"sample\.json is damaged"):
        write_sample(lost, **SIZES)


def test_a_sample_that_another_process_writes_and_the_own_folder_are_left_alone(tmp_path, monkeypatch):
    (tmp_path / "busy").mkdir()
    with alone_in(tmp_path / "busy"), pytest.raises(UserError, match="Another process is at work in"):
        write_sample(tmp_path / "busy", **SIZES)
    monkeypatch.chdir(tmp_path / "busy")
    with pytest.raises(UserError, match=r"--output_dir \. is the folder that you are in"):
        write_sample(".", **SIZES)


def test_an_interrupted_run_leaves_an_empty_folder_and_the_next_is_the_same(written, tmp_path, monkeypatch):
    generate, calls = folder.generate_sequence, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    monkeypatch.setattr(folder, "generate_sequence", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "cut", **SIZES)
    assert not any((tmp_path / "cut").iterdir())
    monkeypatch.undo()
    assert contents(write_sample(tmp_path / "cut", **SIZES)) == contents(written)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_a_larger_pool_leaves_the_test_part_alone(written, tmp_path):
    larger = write_sample(tmp_path / "larger", **{**SIZES, "frames": 21})
    for name in names(written, "downstream/images/test_*"):
        assert (larger / name).read_bytes() == (written / name).read_bytes()


def test_more_frames_than_there_are_sequences_is_refused(tmp_path):
    with pytest.raises(UserError, match="at most 4000"):
        write_sample(tmp_path / "huge", **{**SIZES, "frames": 0, "train": 4001})
