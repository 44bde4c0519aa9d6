from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from optidel_hf.errors import UserError
from optidel_hf.pretraining import residency
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.residency import Pool, ResidentPool, StoredPool, choose_residency, place
from optidel_hf.pretraining.stored import StoredImages, open_images
from optidel_hf.pretraining.trainer import Pretrainer

from .test_stored import BROKEN, archive, pictures, png, table
from .tiny import tiny_config


CPU = torch.device("cpu")
PLACES = [range(3, 8), range(8, 13), range(40, 45)]  # in the middle of an epoch, over its end, in a later one


def _stored(size: int = 16) -> StoredImages:
    values = [png(pixels) for pixels in pictures(11)]
    values[4] = BROKEN
    return StoredImages(table(values), "image", size)


def _batches(pool: Pool) -> list[torch.Tensor]:
    endless = itertools.chain(PLACES, itertools.repeat(PLACES[-1]))
    return list(itertools.islice(pool.batches(endless), len(PLACES)))


def test_a_table_gives_the_same_batches_wherever_it_lies() -> None:
    pools = [place(_stored(), where, CPU, seed=5, workers=2) for where in ("device", "ram", "stream")]
    assert [type(pool) for pool in pools] == [ResidentPool, ResidentPool, StoredPool]
    assert len({pool.fingerprint for pool in pools}) == 1
    assert {pool.n_images for pool in pools} == {11}
    first, *others = (_batches(pool) for pool in pools)
    assert [batch.shape for batch in first] == [(5, 3, 16, 16)] * 3
    for other in others:
        assert all(torch.equal(mine, its) for mine, its in zip(first, other))


def test_training_is_the_same_wherever_the_images_lie(tmp_path) -> None:
    losses = []
    for where in ("device", "stream"):
        Pretrainer(tiny_config(tmp_path / where, steps=4, residency=where), _stored(32)).train()
        losses.append([line["loss"] for line in read_metrics(tmp_path / where / "metrics.jsonl")])
    assert losses[0] == losses[1]
    # A run may move: its checkpoints go on wherever the same images lie.
    moved = Pretrainer(tiny_config(tmp_path / "device", steps=4, residency="stream"), _stored(32))
    moved.train()
    with pytest.raises(UserError, match="images was"):
        Pretrainer(
            tiny_config(tmp_path / "device", steps=4), StoredImages(table([png(pictures(1)[0])]), "image", 32)
        ).train()


def test_archives_train_and_a_resumed_run_goes_on_where_it_was(tmp_path) -> None:
    archive(tmp_path / "a.tar", pictures(11))
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"

    def run(out: Path) -> None:
        Pretrainer(
            tiny_config(out, steps=4, checkpoint_every=2), open_images(str(tmp_path / "*.tar"), size=32)
        ).train()

    run(straight)
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "checkpoints" / "step-000004")  # as if killed after the third step
    run(resumed)
    again = Pretrainer(tiny_config(resumed, steps=4), open_images(str(tmp_path / "*.tar"), size=32))
    again.train()
    again.save()  # of a finished run nothing was read
    assert json.loads((resumed / "pretrain_config.json").read_text())["n_images"] == 11
    lines = [[line["loss"] for line in read_metrics(out / "metrics.jsonl")] for out in (straight, resumed)]
    assert lines[0] == lines[1]


def test_of_a_stream_only_what_was_shown_is_counted(tmp_path) -> None:
    archive(tmp_path / "a.tar", pictures(60))
    config = tiny_config(tmp_path / "out", steps=4, batch_size=4, last_share=0.5, reconstruct_every=1)

    def count() -> list[int]:
        streamed = open_images(str(tmp_path / "*.tar"), size=32)
        pretrainer = Pretrainer(config, streamed, last=_stored(32))
        pretrainer.train()
        pretrainer.save()
        shown = [part.n_shown(2) for part in pretrainer.batches.parts]
        assert json.loads((tmp_path / "out" / "pretrain_config.json").read_text())["n_images"] == sum(shown)
        return shown

    assert count() == count() == [8, 11]  # as well of a run that was finished


def test_pictures_read_a_stream_once(tmp_path, monkeypatch) -> None:
    archive(tmp_path / "a.tar", pictures(20))
    streamed, begun = open_images(str(tmp_path / "*.tar"), size=32), []
    epochs = streamed._epochs
    monkeypatch.setattr(streamed, "_epochs", lambda seed: begun.append(seed) or epochs(seed))
    Pretrainer(tiny_config(tmp_path / "out", steps=4, batch_size=4, reconstruct_every=1), streamed).train()
    assert len(begun) == 2  # the training's and the pictures'
    assert len(list((tmp_path / "out" / "reconstructions").iterdir())) == 5


def test_a_split_or_revision_of_an_archive_is_refused(tmp_path) -> None:
    archive(tmp_path / "a.tar", pictures(1))
    for told in ({"split": "test"}, {"revision": "main"}):
        with pytest.raises(UserError, match="archives have no splits, revisions or configurations"):
            open_images(str(tmp_path / "a.tar"), size=16, **told)


def test_an_archive_is_decoded_ahead_and_skips_what_it_cannot_read(tmp_path, caplog) -> None:
    archive(tmp_path / "a.tar", pictures(8))
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(512 + 8)  # into the first image's bytes
        file.write(b"broken")
    pool = place(open_images(str(tmp_path / "a.tar"), size=16), "auto", CPU, seed=0, workers=2)
    batch = next(pool.batches(range(start, start + 8) for start in itertools.count(0, 8)))
    assert len(batch.flatten(1).unique(dim=0)) == 7
    assert "an image of the stream is left out, the next one takes its place" in caplog.text
    assert pool.n_images == 8


@pytest.mark.parametrize("part", [1, 2, 8])
def test_what_takes_an_unreadable_images_place_does_not_depend_on_the_parts(tmp_path, part) -> None:
    archive(tmp_path / "a.tar", pictures(8))
    whole = _parts_of(tmp_path / "a.tar", 8)
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(512 + 8)  # into the first image's bytes
        file.write(b"broken")
    found = _parts_of(tmp_path / "a.tar", part)
    good = [(one == other).all() for one, other in zip(found, whole)]
    assert good.count(False) == 3  # once in each of three epochs
    for bad in [at for at, same in enumerate(good[:-1]) if not same]:
        assert torch.equal(found[bad], whole[bad + 1])


def test_an_archive_of_which_nothing_can_be_read_ends_the_run(tmp_path) -> None:
    archive(tmp_path / "a.tar", pictures(1))
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(512 + 8)
        file.write(b"broken")
    with pytest.raises(UserError, match="None of 33 images in a row can be read"):
        _parts_of(tmp_path / "a.tar", 1)


def _parts_of(path: Path, part: int) -> torch.Tensor:
    """Three epochs of eight images, read in parts of a size, one after the other."""
    pool = place(open_images(str(path), size=16), "auto", CPU, seed=0, workers=2)
    places = (range(start, start + part) for start in itertools.count(0, part))
    return torch.cat(list(itertools.islice(pool.batches(places), 24 // part)))


def test_an_error_while_decoding_ahead_reaches_the_training() -> None:
    pool = place(StoredImages(table([BROKEN]), "image", 16), "stream", CPU, seed=0)
    with pytest.raises(UserError, match="None of the 1 images"):
        next(pool.batches(itertools.repeat(range(4))))


def test_auto_chooses_by_size_and_says_so(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    stored = _stored()
    needed = 11 * 3 * 16 * 16
    monkeypatch.setattr(residency, "free_memory", lambda: 2 * needed)
    assert choose_residency(stored, CPU) == "device"
    monkeypatch.setattr(residency, "free_memory", lambda: 2 * needed - 2)
    assert choose_residency(stored, CPU) == "stream"
    assert "residency stream: 11 images of 16 px are 0.00 GB; 0.0 GB of memory are free" in caplog.text
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(residency, "free_memory", lambda: 2 * needed)
    for free, chosen in ((4 * needed, "device"), (4 * needed - 4, "ram")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert choose_residency(stored, gpu) == chosen
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each process has a copy
    assert choose_residency(stored, gpu) == "stream"


def test_what_cannot_lie_there_is_refused(tmp_path) -> None:
    archive(tmp_path / "a.tar", pictures(2))
    with pytest.raises(UserError, match="--residency ram: an archive is read from its start"):
        place(open_images(str(tmp_path / "a.tar"), size=16), "ram", CPU, seed=0)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="--residency stream: these images are in memory"):
        place(images, "stream", CPU, seed=0)
    with pytest.raises(UserError, match=r"uint8 tensor \(N, 3, S, S\), not torch.float32"):
        place(images.float(), "auto", CPU, seed=0)
    with pytest.raises(UserError, match="no images"):
        place(images[:0], "auto", CPU, seed=0)
