"""`curate()` as a whole: killed at any moment it ends with the same bytes, and no changed field goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from children import CHILDREN
from datasets import load_dataset
from hub_server import HubServer
from PIL import Image
from tiny_reference import save_mae, tiny_mae

from optidel_hf.curation import pipeline
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.curation_config import CurationConfig, refuse_early
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pilot import Lead, PilotConfig
from optidel_hf.curation.pipeline import curate
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.images import cut_square
from optidel_hf.layout import existing_shards
from optidel_hf.publishing.cards import write_dataset_card
from optidel_hf.publishing.measures import chosen_rows, coverage_distance
from optidel_hf.publishing.records import read_curation


# One file in each stage: the run is killed as soon as it sees the first of them that is new.
MILESTONES = (
    ".hashes/*/shard-00001-of-00004.parquet",
    "patches/shard-00000-of-00004.parquet",
    "patches/shard-00002-of-00004.parquet",
    "reference/.fold-0.partial/checkpoints",
    "reference/fold-0",
    "scores/shard-00001-of-00004.parquet",
    "curated/config.json",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(image_folder: Path, tiny_sam: str) -> CurationConfig:
    loose = {"max_area": 0.9, "min_area": 0.001, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}
    small = {"reference_width": 64, "reference_layers": 1, "reference_batch_size": 8, "reference_steps": 12}
    return CurationConfig(
        inputs=InputConfig(str(image_folder)),
        output_dir="",
        patches=PatchConfig(sam=tiny_sam, patch_size=32, min_image_side=16, **loose),
        reference=ReferenceConfig(**small),
        selection=SelectionConfig(budget=0.15),
        mosaic=MosaicConfig(image_size=32),
        images_per_shard=7,
        device="cpu",
    )


@pytest.fixture(scope="module")
def finished(config: CurationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return curate(replace(config, output_dir=str(tmp_path_factory.mktemp("straight") / "out")))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _curate(config: CurationConfig, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    curate(config)


def run_in_child(config: CurationConfig, environment: dict[str, str] | None = None) -> BaseProcess:
    process = CHILDREN.Process(target=_curate, args=(config, environment or {}))
    process.start()
    return process


def test_killed_at_any_moment_ends_with_the_same_bytes(config: CurationConfig, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = 0
    for milestone in MILESTONES:
        process = run_in_child(replace(config, output_dir=str(out)))
        while process.is_alive() and not any(out.glob(milestone)):
            time.sleep(0.002)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= len(MILESTONES) - 1  # the last stage may be over before it is seen
    curate(replace(config, output_dir=str(out)))
    assert files(out) == files(finished)


def test_two_ranks_write_the_same_patches_scores_and_mosaics(
    config: CurationConfig, finished: Path, tmp_path: Path
) -> None:
    out = replace(config, output_dir=str(tmp_path / "out"))
    launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    ranks = [run_in_child(out, {"RANK": str(r), "LOCAL_RANK": str(r), **launcher}) for r in range(2)]
    for process in ranks:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert files(tmp_path / "out") == files(finished)


@pytest.mark.skipif(sys.platform == "win32", reason="no folder is locked there")
def test_a_rank_ends_when_the_first_has_died(config: CurationConfig, tmp_path: Path) -> None:
    long = replace(config, output_dir=str(tmp_path), reference=replace(config.reference, reference_steps=10**6))
    first, second = (run_in_child(long, {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2))
    while first.is_alive() and not (tmp_path / "reference" / ".fold-0.partial").exists():
        time.sleep(0.01)
    first.kill()
    second.join(timeout=60)
    assert second.exitcode == 1


def test_an_output_that_another_process_is_at_work_in_is_left_to_it(config: CurationConfig, tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    with alone_in(tmp_path / "out"), pytest.raises(UserError, match="Another process is at work in --output_dir"):
        curate(replace(config, output_dir=str(tmp_path / "out")))
    assert not list((tmp_path / "out").iterdir())


def test_other_batch_sizes_go_on_with_what_is_there(config: CurationConfig, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    for name in ("patches", "rejected"):
        existing_shards(tmp_path / "out" / name)[1].unlink()
    smaller = replace(
        config,
        output_dir=str(tmp_path / "out"),
        patches=replace(config.patches, points_per_batch=7, images_per_batch=1),
        score=replace(config.score, patches_per_batch=5),
    )
    curate(smaller)
    before, after = (read_columns(out / "patches", ["source", "crop"]) for out in (finished, tmp_path / "out"))
    assert before.equals(after)


def test_what_was_made_before_there_was_a_choice_stays_good(finished: Path) -> None:
    for stage, later in (
        ("scores", {"learnability"}),
        ("reference", {"learnability"}),
        (".selection", {"distance", "hardness_weight"}),
    ):
        fields = json.loads((finished / stage / "config.json").read_text())["fields"]
        assert not later & {*fields, *(fields.get("score") or {})}


def test_curated_images_are_the_tiles_that_the_selection_names(finished: Path, image_folder: Path) -> None:
    curated = load_dataset(str(finished / "curated"), split="train")
    chosen = pq.read_table(finished / "selection.parquet").to_pylist()
    assert len(curated) == 4  # 0.15 of 24 images is 3.6
    assert len(chosen) == 16
    for row in chosen:
        source = Image.open(image_folder / row["source"]).convert("RGB")
        tile = np.asarray(cut_square(source, tuple(row["crop"]), 16))
        y, x = divmod(row["slot"], 2)
        mosaic = np.asarray(curated[row["mosaic"]]["image"])
        assert np.array_equal(mosaic[16 * y : 16 * y + 16, 16 * x : 16 * x + 16], tile)
        assert curated[row["mosaic"]]["tiles"][row["slot"]]["source"] == row["source"]


def test_scores_lie_beside_their_patches(finished: Path) -> None:
    for path in sorted((finished / "patches").glob("*.parquet")):
        keys = ["source", "group", "bbox", "crop", "upscale", "area"]
        assert pq.read_table(path, columns=keys).equals(pq.read_table(finished / "scores" / path.name, columns=keys))


def test_every_image_is_in_patches_or_rejected(finished: Path) -> None:
    kept = read_columns(finished / "patches", ["source"])["source"].to_pylist()
    gone = read_columns(finished / "rejected", ["source"])["source"].to_pylist()
    assert sorted({*kept, *gone}) == sorted(pq.read_table(finished / "inputs.parquet")["source"].to_pylist())
    assert not set(kept) & set(gone)


def test_what_the_command_line_refuses_is_refused_in_python_too(config: CurationConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images_per_shard is 0"):
        replace(config, images_per_shard=0)
    with pytest.raises(UserError, match="--reuse /no/such is no output"):
        replace(config, reuse="/no/such")
    with pytest.raises(UserError, match="until is 'mosaics': it is one of patches, scores, selection, curated"):
        curate(replace(config, output_dir=str(tmp_path / "out")), until="mosaics")
    assert not (tmp_path / "out").exists()


def test_flags_that_the_strategy_does_not_look_at_are_told(
    config: CurationConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(config, output_dir=str(tmp_path / "out"))
    refuse_early(config)
    assert not caplog.text
    refuse_early(replace(config, selection=SelectionConfig(strategy="random", trim=0.1, keep="near")))
    assert "The strategy 'random' does not look at --trim and --keep: left aside." in caplog.text


def test_a_changed_field_is_refused_and_named(config: CurationConfig, finished: Path) -> None:
    changed = replace(config, output_dir=str(finished), patches=replace(config.patches, max_patches=3))
    with pytest.raises(UserError, match=r"max_patches was 16, now 3.*--reuse"):
        curate(changed)
    changed = replace(config, output_dir=str(finished), selection=replace(config.selection, budget=0.2))
    before = files(finished)
    with pytest.raises(UserError, match=r"budget was 0.15, now 0.2"):
        curate(changed)
    assert files(finished) == before


def test_a_budget_that_the_patches_cannot_meet_is_refused_before_scoring(
    config: CurationConfig, finished: Path, tmp_path: Path
) -> None:
    much = replace(config.selection, budget=1.0, tiles_per_mosaic=16)
    changed = replace(config, output_dir=str(tmp_path / "out"), reuse=str(finished), selection=much)
    with pytest.raises(UserError, match="Budget 1 of 24 images needs 384 patches and the pool has 78"):
        curate(changed)
    assert not (tmp_path / "out" / "scores").exists()
    out = curate(replace(changed, selection=config.selection))
    assert files(out / "curated") == files(finished / "curated")


def test_shards_whose_images_all_give_nothing_are_finished_like_others(
    config: CurationConfig, image_folder: Path, tmp_path: Path
) -> None:
    pool = shutil.copytree(image_folder, tmp_path / "pool")
    for name in ("0 first", "zz last"):
        for i in range(4):
            Image.new("RGB", (8, 8)).save(pool / f"{name} {i}.png")  # too small a side
    changed = replace(config, inputs=InputConfig(str(pool)), output_dir=str(tmp_path / "out"), images_per_shard=4)
    out = curate(changed)
    rows = [pq.read_metadata(path).num_rows for path in existing_shards(out / "scores")]
    assert len(rows) == 8
    assert rows[0] == rows[-1] == 0 < min(rows[1:-1])
    record = read_curation(out)
    assert coverage_distance(record, chosen_rows(record)) is not None


def test_a_selection_that_is_refused_leaves_its_place_to_another(
    config: CurationConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = replace(config, output_dir=str(tmp_path / "out"), reuse=str(finished))

    def refuse(*_: object, **__: object) -> None:
        raise UserError("not these columns")

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "select", refuse)
        with pytest.raises(UserError, match="not these columns"):
            curate(replace(changed, selection=replace(config.selection, strategy="hardest")))
    assert files(curate(changed) / "curated") == files(finished / "curated")


def test_patches_too_small_for_a_reference_model_are_refused_before_they_are_cut(
    config: CurationConfig, tmp_path: Path
) -> None:
    small = replace(config, output_dir=str(tmp_path / "out"), patches=replace(config.patches, patch_size=8))
    with pytest.raises(UserError, match=r"patch_size 8 has 1 token\(s\) of reference_token 8.*--reference_token"):
        curate(small)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="seed is -1"):
        replace(config.selection, seed=-1)


def test_reference_flags_that_are_refused_leave_their_place_to_others(
    config: CurationConfig, finished: Path, tmp_path: Path
) -> None:
    wild = replace(config.reference, reference_learning_rate=1e22)
    changed = replace(config, output_dir=str(tmp_path / "out"), reuse=str(finished))
    with pytest.raises(UserError, match=r"reference model of fold 0 diverged: .* Lower --reference_learning_rate"):
        curate(replace(changed, reference=wild, reuse=None), until="scores")
    assert not (tmp_path / "out" / "reference").exists()
    assert files(curate(changed) / "curated") == files(finished / "curated")


def test_an_earlier_stages_command_does_not_say_that_it_made_the_dataset(
    config: CurationConfig, finished: Path
) -> None:
    before = files(finished)
    other = replace(config, output_dir=str(finished), selection=SelectionConfig(budget=0.3, strategy="hardest"))
    curate(other, until="patches")
    assert files(finished) == before


def test_scores_by_another_finder_of_letters_are_not_mixed_with_its(
    config: CurationConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    monkeypatch.setattr("optidel_hf.curation.chain.weights_hash", lambda: "of other weights")
    with pytest.raises(UserError, match=r"letters was '\w{64}', now 'of other weights'"):
        curate(replace(config, output_dir=str(out)))


def test_a_shard_that_was_damaged_is_named(config: CurationConfig, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    shard = existing_shards(out / "patches")[1]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{shard} is damaged .*: delete it, and the same command makes it again"):
        curate(replace(config, output_dir=str(out)))
    shard.unlink()
    assert files(curate(replace(config, output_dir=str(out)))) == files(finished)


def test_a_lost_list_of_rejects_is_made_anew(config: CurationConfig, finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    next((out / "rejected").glob("shard-00001-*")).unlink()
    curate(replace(config, output_dir=str(out)))
    assert files(out) == files(finished)


@pytest.mark.parametrize("name", ["inputs.parquet", "selection.parquet"])
def test_a_list_that_was_damaged_is_named(config: CurationConfig, finished: Path, tmp_path: Path, name: str) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    (out / name).write_bytes((out / name).read_bytes()[:100])
    with pytest.raises(UserError, match=f"{name} is damaged .*: delete it"):
        write_dataset_card(curate(replace(config, output_dir=str(out))))


def test_another_curations_stages_are_no_output(config: CurationConfig, finished: Path) -> None:
    for place in ("curated", "patches", "curated/out"):
        with pytest.raises(UserError, match=f"is part of the curation {finished}: give another folder"):
            curate(replace(config, output_dir=str(finished / place)))


def test_the_images_own_folder_is_no_output(config: CurationConfig) -> None:
    with pytest.raises(UserError, match="is the folder of --dataset itself: give another one"):
        curate(replace(config, output_dir=config.inputs.dataset))


def test_reuse_takes_over_the_finished_stages_before_the_change(
    config: CurationConfig, finished: Path, tmp_path: Path
) -> None:
    other = replace(
        config,
        output_dir=str(tmp_path / "out"),
        reuse=str(finished),
        selection=replace(config.selection, strategy="hardest"),
    )
    out = curate(other)
    for stage in ("patches", "rejected", "reference", "scores"):
        assert files(out / stage) == files(finished / stage)
        shard = next((out / stage).rglob("*.parquet"))
        assert os.path.samefile(shard, finished / stage / shard.relative_to(out / stage))
    assert (out / "selection.parquet").read_bytes() != (finished / "selection.parquet").read_bytes()


def test_auto_chooses_what_the_pilot_names_or_refuses(
    config: CurationConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(config, reuse=str(finished), selection=replace(config.selection, strategy="auto"))
    ran: list[int] = []
    monkeypatch.setattr("optidel_hf.curation.pilot.MaePilot.__call__", lambda *told: ran.append(told[-1]) or 0.5)
    with pytest.raises(UserError, match=r"The pilot cannot tell .* includes zero"):
        curate(replace(auto, output_dir=str(tmp_path / "equal")))
    assert not (tmp_path / "equal" / "selection.parquet").exists()
    again = replace(auto, output_dir=str(tmp_path / "equal"), pilot=PilotConfig(pilot_repeats=6))
    with pytest.raises(UserError, match="; 6 repeats"):
        curate(again)
    assert len(ran) == len(pilot_runs(tmp_path / "equal")) == 6 * 3 * 2  # five repeats were there
    out = curate(replace(again, selection=replace(config.selection, strategy="medium")))
    assert (out / "selection.parquet").exists()
    lead = Lead("medium", "easiest", 0.1, 0.05, 0.15)
    monkeypatch.setattr("optidel_hf.curation.pilot.find_lead", lambda bits: lead)
    out = curate(replace(auto, output_dir=str(tmp_path / "out")))
    facts = json.loads(pq.read_schema(out / "selection.parquet").metadata[b"optidel"])
    assert (facts["strategy"], facts["score"]) == ("medium", "difficulty")
    assert (facts["pilot"]["gain"], facts["pilot"]["counts"]) == (0.1, [4, 8, 16])
    assert len(pilot_runs(out)) == 5 * 3 * 2


def pilot_runs(output: Path) -> dict[str, float]:
    (record,) = (output / ".selection").glob("pilot-*.json")
    return json.loads(record.read_text())


def test_checkpoints_that_moved_on_the_hub_are_taken_by_their_commits(
    config: CurationConfig, hub: HubServer, tiny_sam: str, tmp_path: Path
) -> None:
    first = {}
    for name, folder in (("me/sam", tiny_sam), ("me/mae", save_mae(tmp_path / "mae", tiny_mae()))):
        repo = hub.put(name, "models", {path.name: path.read_bytes() for path in Path(folder).iterdir()})
        first[name] = repo.history["main"][-1].oid
    hub_sam, hub_mae = replace(config.patches, sam="me/sam"), ReferenceConfig(reference="me/mae")
    asked = replace(config, output_dir=str(tmp_path / "out"), patches=hub_sam, reference=hub_mae)
    made = files(curate(asked))
    flags = f"--sam=me/sam --sam_revision={first['me/sam']}", f"--reference_revision={first['me/mae']}"
    assert all(flag in json.loads(made["config.json"])["command"] for flag in flags)
    assert json.loads(made["reference/fold-0/calibration.json"])["revision"] == first["me/mae"]

    for name in first:
        repo = hub.repo(name, "models")
        repo.commit("main", dict(repo.files), "moved")
    with pytest.raises(UserError, match=f"sam_revision was '{first['me/sam']}', now"):
        curate(asked)
    pinned = replace(asked, patches=replace(hub_sam, sam_revision=first["me/sam"]))
    with pytest.raises(UserError, match=f"reference_revision was '{first['me/mae']}', now"):
        curate(pinned)
    curate(replace(pinned, reference=replace(hub_mae, reference_revision=first["me/mae"])))
    assert files(tmp_path / "out") == made


def test_an_image_that_came_or_went_is_refused(
    config: CurationConfig, finished: Path, image_folder: Path, tmp_path: Path
) -> None:
    less = replace(config, output_dir=str(finished), inputs=replace(config.inputs, limit=20))
    with pytest.raises(UserError, match="is gone"):
        curate(less)


def test_whole_images_are_selected_by_the_same_columns(config: CurationConfig, tmp_path: Path) -> None:
    whole = replace(
        config,
        output_dir=str(tmp_path / "out"),
        patches=replace(config.patches, unit="image"),
        selection=replace(config.selection, strategy="random", tiles_per_mosaic=1),
    )
    out = curate(whole)
    curated = load_dataset(str(out / "curated"), split="train")
    assert len(curated) == 4
    assert {len(row["tiles"]) for row in curated} == {1}
    assert not (out / "scores").exists()  # a random choice needs none
