"""No changed field goes unnoticed, and `--reuse` takes over exactly what is still true."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optidel_hf.curation.chain import Chain
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patch_config import PRESET_FILE, PatchConfig
from optidel_hf.curation.pilot import PilotConfig
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import ScoreConfig
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.stages import Stage, digest
from optidel_hf.errors import UserError


FIELDS = {"sam": "embedded", "grid": (2, 3), "limit": None}


def test_hash_depends_on_fields_and_upstream_not_on_place_or_order(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "a", FIELDS, "up")
    assert stage.hash == Stage(tmp_path / "b", dict(reversed(FIELDS.items())), "up").hash
    assert stage.hash != Stage(tmp_path / "a", {**FIELDS, "limit": 1}, "up").hash
    assert stage.hash != Stage(tmp_path / "a", FIELDS, "other").hash
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})


def test_claiming_again_is_quiet(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "patches", FIELDS, "up")
    assert stage.claim() == stage.claim() == tmp_path / "patches"
    record = json.loads((tmp_path / "patches" / "config.json").read_text())
    assert record["hash"] == stage.hash
    assert record["fields"] == {**FIELDS, "grid": [2, 3]}


def test_changes_are_refused_by_name(tmp_path: Path) -> None:
    Stage(tmp_path / "patches", FIELDS, "up").claim()
    with pytest.raises(UserError) as error:
        Stage(tmp_path / "patches", {**FIELDS, "limit": 5, "new": "x"}, "up").claim()
    assert "(limit was None, now 5, new was None, now 'x')" in str(error.value)
    assert f"--reuse {tmp_path} --output_dir" in str(error.value)
    with pytest.raises(UserError, match="an earlier stage or its input changed"):
        Stage(tmp_path / "patches", FIELDS, "changed").claim()


def test_a_run_that_made_nothing_holds_nobody_to_its_configuration(tmp_path: Path) -> None:
    first, other = (Stage(tmp_path / "patches", fields, "up") for fields in (FIELDS, {**FIELDS, "limit": 5}))
    first.claim()
    other.forget_what_made_nothing()
    other.claim()
    (tmp_path / "patches" / "shard-00000-of-00001.parquet").write_bytes(b"rows")
    first.forget_what_made_nothing()
    with pytest.raises(UserError, match="limit was 5, now None"):
        first.claim()


def test_taking_over_that_was_killed_begins_anew(tmp_path: Path) -> None:
    old = Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    (old / "shard-00000-of-00001.parquet").write_bytes(b"rows")
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    half = same.folder.parent / ".patches.partial"
    half.mkdir(parents=True)
    (half / "shard-00000-of-00002.parquet").write_bytes(b"of another command")
    same.take_over(tmp_path / "old")
    assert sorted(os.listdir(same.folder)) == ["config.json", "shard-00000-of-00001.parquet"]
    assert os.listdir(same.folder.parent) == ["patches"]


def test_taking_over(tmp_path: Path) -> None:
    old = Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    (old / "shard-00000-of-00001.parquet").write_bytes(b"rows")
    (old / ".shard.partial").write_bytes(b"half")
    (old / ".fold-0.partial").mkdir()
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    same.claim()
    assert sorted(os.listdir(same.folder)) == ["config.json", "shard-00000-of-00001.parquet"]
    assert (same.folder / "shard-00000-of-00001.parquet").read_bytes() == b"rows"
    assert sorted(os.listdir(same.folder.parent)) == ["patches"]


def test_folders_taken_over_from_a_read_only_place_can_be_written_to(tmp_path: Path) -> None:
    old = Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    (old / "fold-0").mkdir()
    for folder in (old / "fold-0", old):
        folder.chmod(0o555)
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    assert [oct(folder.stat().st_mode)[-3:] for folder in (same.folder, same.folder / "fold-0")] == ["755", "755"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[]"])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    stage = Stage(tmp_path / "patches", FIELDS, "up")
    (stage.claim() / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged .*: move that folder away"):
        stage.claim()


def test_other_configurations_and_finished_folders_are_not_taken_over(tmp_path: Path) -> None:
    Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    for other in (Stage(tmp_path / "new" / "patches", {}, "up"), Stage(tmp_path / "new" / "scores", FIELDS, "up")):
        other.take_over(tmp_path / "old")
        assert not other.folder.exists()
    mine = Stage(tmp_path / "mine" / "patches", FIELDS, "up")
    mine.claim()
    (mine.folder / "shard").write_bytes(b"mine")
    mine.take_over(tmp_path / "old")
    assert (mine.folder / "shard").read_bytes() == b"mine"


def test_taking_over_copies_where_links_are_impossible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    Stage(tmp_path / "old" / "patches", FIELDS, "up").claim()
    same = Stage(tmp_path / "new" / "patches", FIELDS, "up")
    same.folder.parent.mkdir()
    same.take_over(tmp_path / "old")
    assert (same.folder / "config.json").read_text() == (tmp_path / "old" / "patches" / "config.json").read_text()


def test_shards_without_a_record_are_of_nobody_knows_what(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "patches", {"size": 64}, "")
    (stage.claim() / "shard-00000-of-00001.parquet").touch()
    (stage.folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"patches holds shards and no config\.json"):
        stage.claim()


CHAIN = ("patches", "reference", "scores", "selection", "curated")
RANDOM = SelectionConfig(strategy="random")


def hashes(sources: str = "images", held_out: bool = False, **changes: Any) -> list[str]:
    """The hash of each stage of a chain, by a curation's configuration with `changes`."""
    chain = Chain(replace(CurationConfig(InputConfig("my_images"), "out"), **changes), sources, held_out)
    return [getattr(chain, stage).hash for stage in CHAIN]


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"sources": "others"}, "patches"),
        ({"held_out": True}, "patches"),
        ({"images_per_shard": 7}, "patches"),  # its shards are others
        ({"patches": PatchConfig(max_patches=3)}, "patches"),
        ({"reference": ReferenceConfig(reference_steps=5)}, "reference"),
        ({"score": ScoreConfig(masks=3)}, "reference"),  # by these masks it is calibrated
        ({"score": ScoreConfig(learnability=True)}, "reference"),  # with an early model beside it
        ({"selection": SelectionConfig(budget=0.2)}, "selection"),
        ({"selection": SelectionConfig(distance="euclidean")}, "selection"),
        ({"selection": SelectionConfig(hardness_weight=0)}, "selection"),
        ({"selection": RANDOM}, "selection"),
        ({"mosaic": MosaicConfig(image_size=32)}, "curated"),
        ({"pilot": PilotConfig(pilot_steps=5)}, None),  # it was not asked
        ({"patches": PatchConfig(points_per_batch=1, images_per_batch=1)}, None),
        ({"score": ScoreConfig(patches_per_batch=1)}, None),
        ({"output_dir": "elsewhere", "device": "cpu"}, None),
    ],
)
def test_a_changed_field_invalidates_its_stage_and_those_after_it_and_no_other(
    changes: dict[str, Any], first: str | None
) -> None:
    unequal = [stage for stage, before, now in zip(CHAIN, hashes(), hashes(**changes)) if before != now]
    assert unequal == (list(CHAIN[CHAIN.index(first) :]) if first else [])


def test_the_share_that_is_held_out_tells_patches_apart() -> None:
    tenth, fifth = (replace(InputConfig("my_images"), held_out=share) for share in (0.1, 0.2))
    chains = [Chain(CurationConfig(images, "out"), "images", held_out=True) for images in (tenth, fifth)]
    assert chains[0].patches.hash != chains[1].patches.hash


def test_a_choice_that_looks_at_no_score_outlives_a_change_of_scoring() -> None:
    scored, again = (hashes(selection=RANDOM, score=ScoreConfig(masks=masks)) for masks in (4, 3))
    assert scored[CHAIN.index("selection") :] == again[CHAIN.index("selection") :]
    assert scored[CHAIN.index("scores")] != again[CHAIN.index("scores")]


def test_a_pilots_settings_determine_what_it_chose() -> None:
    auto = SelectionConfig(strategy="auto")
    before, now = hashes(selection=auto), hashes(selection=auto, pilot=PilotConfig(pilot_steps=5))
    assert [one == other for one, other in zip(before, now)] == [True, True, True, False, False]


@pytest.mark.parametrize("flag", ["sam", "reference", "second_reference"])
def test_other_weights_under_the_same_name_are_noticed(tmp_path: Path, flag: str) -> None:
    first, config = ("patches", PatchConfig) if flag == "sam" else ("reference", ReferenceConfig)
    told = []
    for weights in (b"some", b"others"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        told.append(hashes(**{first: config(**{flag: str(tmp_path)})}))
    unequal = [stage for stage, before, now in zip(CHAIN, *told) if before != now]
    assert unequal == list(CHAIN[CHAIN.index(first) :])


def test_another_preset_of_sams_thresholds_is_noticed_where_sam_cuts(tmp_path: Path) -> None:
    for unit, alike in (("patch", False), ("image", True)):
        told = []
        for points in (8, 16):
            (tmp_path / PRESET_FILE).write_text(json.dumps({"points_per_side": points}))
            told.append(hashes(patches=PatchConfig(sam=str(tmp_path), unit=unit)))
        assert (told[0] == told[1]) == alike
