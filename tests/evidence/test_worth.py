from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from optidel_hf.errors import UserError
from optidel_hf.evidence.worth import judge, judge_curated


# Four types, of 3, 2, 1 and 1 scenes; scene 0 has two copies and a spoiled one.
ROWS = [
    ("a", 0, 0, None),
    ("b", 0, 0, None),
    ("c", 0, 0, "text"),
    ("d", 1, 0, None),
    ("e", 2, 0, None),
    ("f", 3, 1, None),
    ("g", 4, 1, None),
    ("h", 5, 2, None),
    ("i", 6, 3, None),
    ("j", 6, 3, "black"),
]


def pool(rows=ROWS):
    names = ("source", "scene", "scene_type", "junk")
    kinds = (pa.string(), pa.int32(), pa.int32(), pa.string())
    return pa.table({name: pa.array(values, kind) for name, values, kind in zip(names, zip(*rows), kinds)})


def test_worth_by_hand():
    worth = judge(["a", "a", "b", "c", "f", "h", "j", "j"], pool())
    assert (worth.tiles, worth.junk, worth.kinds) == (8, 3, {"black": 2, "text": 1})
    assert list(worth.kinds) == ["black", "text"]
    assert worth.junk_share == 3 / 8
    assert worth.scenes == (3, 7)  # 0, 3 and 5
    assert worth.scene_types == (3, 4)
    assert worth.tail_types == (1, 2)  # of 2 and 3 only 2: the tile of scene 6 is junk


def test_junk_covers_nothing():
    worth = judge(["c", "j"], pool())
    assert worth.junk_share == 1
    assert worth.scenes == (0, 7)


def test_a_scene_that_is_only_junk_is_not_in_the_pool():
    worth = judge(["h"], pool([*ROWS, ("k", 7, 4, "blur")]))
    assert (worth.scenes, worth.tail_types) == ((1, 7), (1, 2))


def test_unknown_scene_types_have_no_coverage():
    worth = judge(["a", "d"], pool([(source, scene, None, junk) for source, scene, _, junk in ROWS]))
    assert worth.scenes == (2, 7)
    assert worth.scene_types == worth.tail_types == (0, 0)


def test_the_tail_is_the_rarest_half_rounded_down_and_of_equally_rare_types_the_last():
    rows = pool([(source, scene, scene, None) for scene, source in enumerate("abc")])
    assert [judge([source], rows).tail_types for source in "abc"] == [(0, 1), (0, 1), (1, 1)]


def test_a_rare_type_is_one_of_few_scenes_however_many_copies_they_have():
    rows = pool([("a", 0, 0, None), ("b", 1, 0, None), *((copy, 2, 1, None) for copy in "cde")])
    assert [judge([source], rows).tail_types for source in "ac"] == [(0, 1), (1, 1)]


def test_another_pool_is_refused():
    with pytest.raises(UserError, match="'images/a'"):
        judge(["images/a"], pool())
    with pytest.raises(UserError, match="no tile"):
        judge([], pool())


def test_a_curated_dataset_is_judged_by_the_lineage_of_its_tiles(tmp_path):
    with pytest.raises(UserError, match="curated: nothing is there; `optidel curate`"):
        judge_curated(tmp_path / "curated", tmp_path / "latents.parquet")
    (tmp_path / "curated").mkdir()
    for shard, mosaics in enumerate([["ac", "ff"], ["ai"]]):
        tiles = [[{"source": source, "crop": [0, 0, 8]} for source in mosaic] for mosaic in mosaics]
        pq.write_table(pa.table({"tiles": tiles}), tmp_path / "curated" / f"shard-{shard:05d}-of-00002.parquet")
    with pytest.raises(UserError, match=r"latents.parquet: nothing is there; `optidel testbed`"):
        judge_curated(tmp_path / "curated", tmp_path / "latents.parquet")
    pq.write_table(pool(), tmp_path / "latents.parquet")
    worth = judge_curated(tmp_path / "curated", tmp_path / "latents.parquet")
    assert (worth.tiles, worth.kinds, worth.scenes) == (6, {"text": 1}, (3, 7))
