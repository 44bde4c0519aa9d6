"""Near-duplicate groups: what the hash sees, and components against a naive search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from optidel_hf.curation import near_duplicates
from optidel_hf.curation.near_duplicates import difference_hash, near_duplicate_components


def texture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


def bits_apart(first: Image.Image, second: Image.Image) -> int:
    return int(np.bitwise_count(difference_hash(first) ^ difference_hash(second)).sum())


def test_the_hash_is_the_signs_of_horizontal_differences() -> None:
    rising = Image.fromarray(np.tile(np.arange(0, 255, 15, dtype=np.uint8), (16, 1)))
    assert difference_hash(rising).tolist() == [2**64 - 1] * 4
    assert difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).tolist() == [0] * 4
    assert difference_hash(Image.new("RGB", (17, 16), (90, 90, 90))).tolist() == [0] * 4
    black = Image.new("L", rising.size)
    assert difference_hash(Image.merge("RGB", (black, black, rising))).tolist() == [2**64 - 1] * 4


def test_a_dimmed_and_recompressed_image_is_near_and_another_is_far(tmp_path: Path) -> None:
    picture = texture(0)
    picture.point(lambda value: value * 0.9).resize((100, 75)).save(tmp_path / "copy.jpg", quality=70)
    assert bits_apart(picture, Image.open(tmp_path / "copy.jpg")) <= near_duplicates.NEAR
    assert all(bits_apart(picture, texture(seed)) > 60 for seed in range(1, 20))


def test_a_noisy_image_is_near() -> None:
    picture = texture(0).resize((480, 360))
    noise = np.random.default_rng(0).normal(0, 25, (360, 480, 3))
    noisy = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    assert bits_apart(picture, noisy) <= near_duplicates.NEAR


def naive_components(hashes: np.ndarray, distance: int) -> list[int]:
    label = list(range(len(hashes)))
    for i in range(len(hashes)):
        for j in range(i):
            if np.bitwise_count(hashes[i] ^ hashes[j]).sum() <= distance and label[i] != label[j]:
                low, high = sorted((label[i], label[j]))
                label = [low if value == high else value for value in label]
    return label


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (7, 3), (32, 4096)])
def test_components_are_the_naive_ones_across_blocks(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "ROWS", rows)
    monkeypatch.setattr(near_duplicates, "COLUMNS", columns)
    rng = np.random.default_rng()
    seeds = rng.integers(0, 2**63, (12, 4), dtype=np.uint64)
    hashes = seeds[rng.integers(12, size=60)]
    for row in hashes:  # walks of up to 40 changed bits: some reach their like only through a third
        for bit in rng.integers(256, size=rng.integers(40)):
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    found = near_duplicate_components(hashes).tolist()
    assert found == naive_components(hashes, near_duplicates.NEAR)
    assert 12 < len(set(found)) < 60


def test_many_near_pairs_are_joined_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "ROWS", 2)
    joins: list[int] = []
    join = near_duplicates._join

    def counted(first: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
        joins.append(sum(part.shape[1] for part in pairs))
        return join(first, pairs)

    monkeypatch.setattr(near_duplicates, "_join", counted)
    rng = np.random.default_rng()
    hashes = np.zeros((200, 4), np.uint64)
    hashes[100:] = 2**64 - 1  # two images as far from each other as can be, each with copies that differ in a few bits
    hashes[:, 0] ^= rng.permutation(200).astype(np.uint64)
    order = rng.permutation(200)
    assert near_duplicate_components(hashes[order]).tolist() == naive_components(hashes[order], near_duplicates.NEAR)
    assert len(joins) > 1
    assert max(joins) < 3 * 200  # 9,900 pairs are near


def test_exact_copies_and_negatives() -> None:
    hashes = np.random.default_rng().integers(0, 2**63, (3, 4), dtype=np.uint64)
    pool = np.concatenate([hashes, ~hashes, hashes[::-1]])
    assert near_duplicate_components(pool, 20).tolist() == [0, 1, 2, 3, 4, 5, 2, 1, 0]


def test_near_is_up_to_thirty_bits() -> None:
    hashes = np.zeros((3, 4), np.uint64)
    hashes[1, :2] = 2**15 - 1  # 30 bits from the first
    hashes[2, 2:] = 2**16 - 1, 2**15 - 1  # 31
    assert near_duplicate_components(hashes).tolist() == [0, 0, 2]


def test_no_images_have_no_components() -> None:
    assert near_duplicate_components(np.zeros((0, 4), np.uint64)).tolist() == []
