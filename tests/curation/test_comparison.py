"""What other strategies would choose, from the columns of a finished curation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optidel_hf.curation import comparison
from optidel_hf.curation.comparison import TERMS, compare
from optidel_hf.curation.selection import STRATEGIES, select


IMAGES, EACH = 30, 4


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, pa.Table]:
    """Two score shards of 30 images in ten groups, with a few patches in which there is text."""
    rng = np.random.default_rng(0)
    count = IMAGES * EACH
    image = np.repeat(np.arange(IMAGES), EACH)
    embedding = rng.normal(size=(count, 8)).astype(np.float16)
    table = pa.table(
        {
            "source": [f"{number:02d}.png" for number in image],
            "group": [f"group {number % 10}" for number in image],
            "bbox": pa.array(rng.uniform(0, 50, (count, 4)).tolist(), pa.list_(pa.float32(), 4)),
            "upscale": rng.uniform(0.5, 1.9, count).astype(np.float32),
            "cond_entropy": rng.normal(size=count).astype(np.float32),
            "difficulty": rng.normal(size=count).astype(np.float32),
            "fold": pa.array(image % 2, pa.int8()),
            "embedding": pa.array(embedding.tolist(), pa.list_(pa.float16())),
            "text": np.where(rng.uniform(size=count) < 0.1, 0.5, 0.0).astype(np.float32),
        }
    )
    (tmp_path / "scores").mkdir()
    for number, part in enumerate((table.slice(0, 50), table.slice(50))):
        pq.write_table(part, tmp_path / "scores" / f"shard-{number:05d}-of-00002.parquet")
    return tmp_path, table


def test_each_strategy_chooses_what_select_chooses(scored: tuple[Path, pa.Table]) -> None:
    folder, table = scored
    found = {rule.name: rule for rule in compare(folder, 0.2, 4)}
    assert list(found) == [*STRATEGIES, *TERMS]
    for name in STRATEGIES:
        assert found[name].rows.tolist() == select(table, 0.2, name).rows.tolist()
    last = next(name for name in TERMS if name.startswith("optidel: both"))
    assert found[last].rows.tolist() == found["optidel"].rows.tolist()


def test_the_figures_by_hand(scored: tuple[Path, pa.Table]) -> None:
    folder, table = scored
    for rule in compare(folder, 0.2, 4):
        part = table.take(rule.rows)
        assert rule.sources == len(set(part["source"].to_pylist()))
        assert rule.groups == len(set(part["group"].to_pylist()))
        text = np.asarray(part["text"]) > 0
        assert rule.refused[text].all()  # and beside them, at most the outliers of the score itself
        embedding = np.array(table["embedding"].to_pylist(), np.float32)
        away = embedding - embedding.mean(axis=0)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        assert rule.distance == pytest.approx(1 - (away @ away[rule.rows].T).max(axis=1).mean(), abs=1e-4)


def test_hardness_alone_takes_the_hardest_of_each_fold(scored: tuple[Path, pa.Table]) -> None:
    folder, table = scored
    rule = next(rule for rule in compare(folder, 0.2, 4) if rule.name == "hardness alone")
    difficulty, fold = np.asarray(table["difficulty"]), np.asarray(table["fold"])
    expected = {
        row for one in (0, 1) for row in np.flatnonzero(fold == one)[np.argsort(-difficulty[fold == one])[:12]]
    }
    assert set(rule.rows.tolist()) == expected


def test_of_a_large_pool_whole_groups_are_drawn(
    scored: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = scored
    monkeypatch.setattr(comparison, "POOL", 60)
    groups = np.asarray(table["group"])
    for rule in compare(folder, 0.2, 4):
        assert len(rule.rows) == 4 * 3  # 15 of the 30 images
        assert set(groups[rule.rows]) <= {f"group {number}" for number in (0, 2, 4, 6, 8)}


def test_nothing_to_compare(scored: tuple[Path, pa.Table], tmp_path: Path) -> None:
    folder, _ = scored
    assert compare(folder, 0.01, 4) == []  # rounds to no mosaic
    assert compare(folder, 1.0, 16) == []  # more than there are
    assert compare(tmp_path / "nowhere", 0.2, 4) == []
    path = folder / "scores" / "shard-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).drop_columns("embedding"), path)
    assert compare(folder, 0.2, 4) == []
