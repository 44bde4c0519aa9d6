from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from optidel_hf.errors import UserError
from optidel_hf.pretraining.stored import StoredImages, StreamedImages, _stream_hub, open_images


def png(array: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    PILImage.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def pictures(count: int, height: int = 30, width: int = 50) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def table(values: list[dict[str, object]]) -> Dataset:
    rows = {"image": values, "source": [f"frame-{row:03d}" for row in range(len(values))]}
    return Dataset.from_dict(rows, features=Features({"image": Image(decode=False), "source": Value("string")}))


def archive(path: Path, arrays: list[np.ndarray], start: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for number, array in enumerate(arrays, start):
            content = png(array)["bytes"]
            member = tarfile.TarInfo(f"{number:06d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


BROKEN: dict[str, object] = {"bytes": b"no image", "path": None}


def test_rows_are_centred_squares() -> None:
    (pixels,) = pictures(1)
    square = PILImage.fromarray(pixels).resize((16, 16), PILImage.Resampling.BICUBIC, box=(10, 0, 40, 30))
    found = StoredImages(table([png(pixels)]), "image", 16).read(0)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), np.array(square))


def test_an_unreadable_image_is_named_and_the_next_one_takes_its_place(caplog) -> None:
    first, second = (png(pixels) for pixels in pictures(2))
    stored = StoredImages(table([BROKEN, first, BROKEN, BROKEN, second, BROKEN]), "image", 16)
    images = stored.read_all()
    assert [message[:5] for message in caplog.messages] == ["row 0", "row 2", "row 3", "row 5"]
    assert caplog.messages[0] == (
        f"row 0 of column 'image' ({stored.names[0]}) is left out, the next one takes its place: "
        "not an image that Pillow can read"
    )
    assert torch.equal(images, images[[1, 1, 4, 4, 4, 1]])
    assert not torch.equal(images[1], images[4])
    assert torch.equal(torch.stack([stored.read(row) for row in range(6)]), images)


def test_a_table_without_a_readable_image_is_refused() -> None:
    stored = StoredImages(table([BROKEN, BROKEN]), "image", 16)
    for read in (stored.read_all, lambda: stored.read(1)):
        with pytest.raises(UserError, match="None of the 2 images in column 'image'"):
            read()


def test_a_fingerprint_tells_which_images_and_how_they_are_cut() -> None:
    rows = table([png(pixels) for pixels in pictures(3)])
    told = [StoredImages(*arguments).fingerprint for arguments in ((rows, "image", 16), (rows, "image", 16))]
    assert told[0] == told[1]
    others = {StoredImages(rows, "image", 20).fingerprint, StoredImages(rows.select([0, 1]), "image", 16).fingerprint}
    others.add(StoredImages(table([png(pixels // 2) for pixels in pictures(3)]), "image", 16).fingerprint)
    assert len({told[0], *others}) == 4


@pytest.fixture
def archives(tmp_path) -> str:
    arrays = pictures(12)
    archive(tmp_path / "a.tar", arrays[:7])
    archive(tmp_path / "b.tar", arrays[7:], start=7)
    return str(tmp_path / "*.tar")


def _take(streamed: StreamedImages, *places: range, seed: int = 0) -> list[list[bytes]]:
    batches = itertools.islice(streamed.values(places, seed), len(places))
    return [[value["bytes"] for value in batch] for batch in batches]


def test_an_archive_is_read_in_epochs_of_different_order(archives) -> None:
    streamed = open_images(archives, size=16)
    assert isinstance(streamed, StreamedImages)
    first, second = _take(streamed, range(12), range(12, 24))
    assert set(first) == set(second) == {png(pixels)["bytes"] for pixels in pictures(12)}
    assert first != second
    assert _take(streamed, range(12)) == [first]
    assert _take(streamed, range(12), seed=1) != [first]
    assert streamed.n_read == 12


def test_shares_and_later_places_are_those_of_the_whole_stream(archives) -> None:
    streamed = open_images(archives, size=16)
    (whole,) = _take(streamed, range(30))
    assert _take(streamed, range(2, 5), range(20, 22), range(22, 30)) == [whole[2:5], whole[20:22], whole[22:30]]


def test_archives_are_told_by_name_and_size_wherever_they_lie(archives, tmp_path, monkeypatch) -> None:
    told = open_images(archives, size=16).fingerprint
    monkeypatch.chdir(tmp_path)
    assert open_images("*.tar", size=16).fingerprint == told
    archive(tmp_path / "b.tar", pictures(6))
    assert open_images(archives, size=16).fingerprint != told


def test_a_dataset_is_streamed_like_an_archive(tmp_path) -> None:
    table([png(pixels) for pixels in pictures(5)]).to_parquet(tmp_path / "train.parquet")
    rows = _stream_hub(str(tmp_path))
    assert [row["source"] for row in rows] == [f"frame-{row:03d}" for row in range(5)]


def test_what_cannot_be_opened_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nothing\.tar cannot be read as WebDataset archives"):
        open_images(str(tmp_path / "nothing.tar"), size=16)
    (tmp_path / "cut.tar").write_bytes(b"half of an archive")
    with pytest.raises(UserError, match=r"cut\.tar cannot be read as WebDataset archives"):
        open_images(str(tmp_path / "cut.tar"), size=16)
    with pytest.raises(UserError, match="no/where cannot be streamed from the Hub"):
        open_images("no/where", size=16, stream=True)


def test_a_fingerprint_tells_sources_whose_pixels_are_not_looked_at() -> None:
    rows = table([png(pixels) for pixels in pictures(3)])
    others = rows.map(lambda row: {"source": f"other/{row['source']}"})
    assert StoredImages(rows, "image", 16).fingerprint != StoredImages(others, "image", 16).fingerprint


def test_a_limit_takes_the_first_images(tmp_path) -> None:
    table([png(pixels) for pixels in pictures(5)]).to_parquet(tmp_path / "train.parquet")
    for limit, count in ((2, 2), (9, 5), (None, 5)):
        assert len(open_images(str(tmp_path / "train.parquet"), size=16, limit=limit)) == count
