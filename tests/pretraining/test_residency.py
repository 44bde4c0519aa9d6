from __future__ import annotations

import itertools
import logging

import pytest
import torch

from optidel_hf.errors import UserError
from optidel_hf.pretraining import residency
from optidel_hf.pretraining.residency import Pool, ResidentPool, StoredPool, choose_residency, place
from optidel_hf.pretraining.stored import StoredImages, open_images

from .test_stored import BROKEN, archive, pictures, png, table


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


def test_an_archive_is_decoded_ahead_and_skips_what_it_cannot_read(tmp_path, caplog) -> None:
    archive(tmp_path / "a.tar", pictures(8))
    with open(tmp_path / "a.tar", "r+b") as file:
        file.seek(512 + 8)  # into the first image's bytes
        file.write(b"broken")
    pool = place(open_images(str(tmp_path / "a.tar"), size=16), "auto", CPU, seed=0, workers=2)
    batch = next(pool.batches(range(start, start + 8) for start in itertools.count(0, 8)))
    assert len(batch.flatten(1).unique(dim=0)) == 7
    assert "an image of the stream is left out, another takes its place" in caplog.text
    assert pool.n_images == 8


def test_an_error_while_decoding_ahead_reaches_the_training() -> None:
    pool = place(StoredImages(table([BROKEN]), "image", 16), "stream", CPU, seed=0)
    with pytest.raises(UserError, match="None of the 1 images"):
        next(pool.batches(itertools.repeat(range(4))))


def test_auto_chooses_by_size_and_says_so(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    stored = _stored()
    needed = 11 * 3 * 16 * 16
    memory = type("Memory", (), {"available": 2 * needed})
    monkeypatch.setattr(residency.psutil, "virtual_memory", lambda: memory)
    assert choose_residency(stored, CPU) == "device"
    memory.available = 2 * needed - 2
    assert choose_residency(stored, CPU) == "stream"
    assert "residency stream: 11 images of 16 px are 0.00 GB, and there is room for" in caplog.text
    gpu = torch.device("cuda", 0)
    memory.available = 2 * needed
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
