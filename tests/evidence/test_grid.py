"""The grid gives the same results killed or not, by one process or two, and opens no test label unasked."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features
from datasets import Image as DatasetImage
from PIL import Image
from tiny_grid import ARMS, COUNTS, fake_arm, tiny_experiment, write_squares

from optidel_hf.cli import main
from optidel_hf.curation.frames import Frames
from optidel_hf.curation.stages import digest
from optidel_hf.errors import Preempted, UserError
from optidel_hf.evaluation import downstream as downstream_sets
from optidel_hf.evaluation.metrics.mean_iou.mean_iou import class_iou
from optidel_hf.evidence import labels
from optidel_hf.evidence.arm_data import ArmData
from optidel_hf.evidence.cells import Cell, cell_pretraining, enumerate_cells, judged_steps
from optidel_hf.evidence.grid import Grid
from optidel_hf.evidence.results import RESULT_SCHEMA, judged_names, write_rows
from optidel_hf.evidence.trials import count_trials, list_of_trials, note_trial
from optidel_hf.files import write_text
from optidel_hf.pretraining.trainer import Pretrainer


MEASURED = ["pretrain_seconds", "downstream_seconds"]
MakeGrid = Callable[..., Grid]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fake_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool is cut, no arm made, and no summary is written but for `straight`: what takes time here is the grid."""
    monkeypatch.setattr("optidel_hf.evidence.grid.cut_together", lambda pool, unit: None)
    monkeypatch.setattr("optidel_hf.evidence.cells.build_arm", fake_arm)
    monkeypatch.setattr("optidel_hf.evidence.grid.write_summary", lambda *told: None)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def make(image_folder: Path, squares: Path, tmp_path: Path) -> MakeGrid:
    """A grid in the folder of the given name."""
    return lambda name, **changes: Grid(tiny_experiment(image_folder, squares, tmp_path / name, **changes))


@pytest.fixture(scope="module")
def straight(image_folder: Path, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a grid that ran through, which several tests compare with and none changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optidel_hf.evidence.cells.build_arm", fake_arm)
        path = Grid(tiny_experiment(image_folder, squares, tmp_path_factory.mktemp("straight") / "out")).run()
    assert path is not None
    return path


def rows_of(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    return pq.read_table(path).drop_columns(MEASURED).to_pylist()


def test_cells_come_seed_by_seed_and_arms_without_budget_once(make: MakeGrid) -> None:
    cells = enumerate_cells(make("out", budgets=[0.1, 0.5]).grid)
    first = [("none", 0.0), ("full", 1.0), ("random_images", 0.1), ("random_images", 0.5)]
    assert cells == [Cell(arm, budget, seed) for seed in range(2) for arm, budget in first]


def test_a_row_is_a_run_with_every_images_confusion(straight: Path) -> None:
    table = pq.read_table(straight)
    assert table.schema.remove_metadata() == RESULT_SCHEMA
    assert judged_names(table) == {"validation": [f"validation_{i:02d}" for i in range(COUNTS["validation"])]}
    assert table.num_rows == 2 * (2 + 2 * 4)  # none has one checkpoint, the other arms two; two modes
    matrices = np.array(table["confusion"].to_pylist()).reshape(20, 3, 2, 2)
    assert (matrices.sum((2, 3)) == 32 * 32).all()
    pooled = [np.nanmean(class_iou(matrix)) for matrix in matrices.sum(1)]
    assert table["miou"].to_pylist() == pytest.approx(pooled)
    rows = table.to_pylist()
    assert {(row["arm"], row["step"], row["steps"], row["images_seen"]) for row in rows} == {
        ("none", 0, 0, 0),
        *((arm, step, 4, 8 * step) for arm in ARMS[1:] for step in (2, 4)),
    }
    assert {row["images"] for row in rows} == {24.0}
    assert {row["coverage"] for row in rows} == {None}


def test_an_arm_may_be_trained_longer_or_end_on_other_images(
    image_folder: Path, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(name: str, *rest: Any, **options: Any) -> ArmData:
        return replace(fake_arm(name, *rest, **options), last=3 if name == "optidel_last_whole" else 0)

    monkeypatch.setattr("optidel_hf.evidence.cells.build_arm", fake)
    arms = ["full", "full_equal_compute", "optidel_last_whole"]
    changes = {"arms": arms, "curation_steps": 4, "seeds": 1, "checkpoints": 1, "modes": ["probe"]}
    grid = Grid(tiny_experiment(image_folder, squares, tmp_path / "out", {"steps": 10}, **changes))
    rows = {row["arm"]: row for row in rows_of(grid.run())}
    assert [rows[arm]["steps"] for arm in arms] == [10, 14, 10]
    told = [
        json.loads((path / "pretrain_config.json").read_text()) for path in sorted((tmp_path / "out/models").iterdir())
    ]
    assert [one["last_share"] for one in told] == [0, 0, 0.2]
    assert {one["n_images"] for one in told} == {24}
    assert len({tuple(row["confusion"]) for row in rows.values()}) == 3


def test_arms_share_a_seeds_labels_head_and_start(straight: Path) -> None:
    last = [row for row in rows_of(straight) if row["step"] == row["steps"]]
    confusion = {(row["arm"], row["seed"], row["mode"]): row["confusion"] for row in last}
    assert (
        confusion["full", 0, "finetune"] == confusion["random_images", 0, "finetune"]
    )  # both are the whole pool here
    assert confusion["full", 0, "finetune"] != confusion["full", 1, "finetune"]
    assert confusion["full", 0, "finetune"] != confusion["none", 0, "finetune"]


def test_results_are_summed_up_beside_them(straight: Path) -> None:
    title, *_ = (straight.parent / "results.md").read_text().splitlines()
    assert title in ("# Results on the validation part: no headroom", "# Results on the validation part: gate not run")
    assert (straight.parent / "results.png").exists()


def test_validation_readings_are_logged(straight: Path) -> None:
    trials = [json.loads(line) for line in (straight.parent.parent / "trials.jsonl").read_text().splitlines()]
    assert [(trial["arm"], trial["seed"]) for trial in trials] == [(arm, seed) for seed in range(2) for arm in ARMS]
    told = json.loads((straight.parent / "config.json").read_text())
    assert {trial["config_hash"] for trial in trials} == {told["hash"]}
    assert {trial["split"] for trial in trials} == {"validation"}


def test_a_reading_that_a_full_disk_cut_short_costs_no_other(tmp_path: Path) -> None:
    path = list_of_trials(tmp_path / "out")
    assert path == tmp_path / "trials.jsonl"
    note_trial(path, "part", "first", {"arm": "full"})
    path.write_text(path.read_text() + '{"date": "2026-')
    note_trial(path, "part", "second", {"arm": "full"})
    assert count_trials(path, "part") == {"full": 2}


def test_readings_are_listed_in_the_output_where_nothing_can_be_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    assert list_of_trials(tmp_path / "out") == tmp_path / "out" / "trials.jsonl"


def test_finished_cells_that_are_not_asked_for_are_told(make: MakeGrid, caplog: pytest.LogCaptureFixture) -> None:
    make("out", arms=["none"], seeds=1).run()
    with caplog.at_level(logging.INFO):
        make("out", arms=["full"], seeds=1).run()
    assert "1 finished cells are not in the results, such as 0000_none_0" in caplog.text


def test_a_contrastive_grid_needs_held_out_groups_to_tell_apart(
    make: MakeGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optidel_hf.evidence.cells._held_out_frames", lambda pool: Frames([], [], ["one"]))
    grid = make("out", arms=["full"], seeds=1, held_out=0.04, training={"objective": "simclr"})
    with pytest.raises(UserError, match=r"--held_out 0.04 holds out 1 group\(s\).* at least 3"):
        grid.run()
    assert not (tmp_path / "out" / "models" / "0000_full_1" / "metrics.jsonl").exists()


def test_killed_and_resumed_is_the_same(make: MakeGrid, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    step, taken = Pretrainer.step, []

    def dies_at_the_seventh(trainer: Pretrainer, batches: Any) -> Any:
        taken.append(trainer.out.name)
        if len(taken) == 7:
            raise Killed
        return step(trainer, batches)

    monkeypatch.setattr(Pretrainer, "step", dies_at_the_seventh)
    with pytest.raises(Killed):
        make("killed").run()
    assert taken == ["0000_full_1"] * 4 + ["0000_random_images_0.05"] * 3
    resumed = rows_of(make("killed").run())
    assert taken[7:9] == ["0000_random_images_0.05"] * 2  # on from its checkpoint after two steps
    assert taken.count("0000_full_1") == 4
    assert resumed == rows_of(straight)
    assert not list((straight.parent / "models").rglob("checkpoints"))


def test_a_run_that_was_told_to_end_keeps_what_is_to_be_judged(
    make: MakeGrid, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, taken = Pretrainer.step, []

    def told_to_end_in_the_third(trainer: Pretrainer, batches: Any) -> Any:
        taken.append(trainer.out.name)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGTERM)  # writes a third checkpoint, and two are judged
        return step(trainer, batches)

    monkeypatch.setattr(Pretrainer, "step", told_to_end_in_the_third)
    with pytest.raises(Preempted):
        make("out").run()
    assert rows_of(make("out").run()) == rows_of(straight)
    assert taken.count("0000_full_1") == 4


def test_two_processes_give_the_union(make: MakeGrid, straight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = make("two")
    monkeypatch.setenv("RANK", "1")
    assert make("two").run() is None
    finished = {path.stem for path in (first.output / "cells" / "validation").iterdir()}
    assert finished == {str(cell) for cell in first.cells[1::2]}
    monkeypatch.setenv("RANK", "0")
    assert rows_of(first.run()) == rows_of(straight)


@pytest.mark.parametrize(
    ("world", "asked", "units"),
    [
        ("2", {"arms": ["full", "optidel"], "measured": False}, ["image", "patch"]),
        ("2", {"arms": ["full"]}, ["image", "patch"]),
        ("2", {"arms": ["none", "full"], "measured": False}, ["image"]),
        ("2", {"arms": ["none"]}, []),
        ("1", {"arms": ["full", "optidel"]}, []),
    ],
)
def test_processes_of_one_launcher_cut_the_pool_together(
    world: str, asked: dict[str, Any], units: list[str], make: MakeGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr("optidel_hf.evidence.grid.cut_together", lambda pool, unit: together.append(unit))
    monkeypatch.setattr(Grid, "_compute", lambda grid, cells: None)
    monkeypatch.setattr("optidel_hf.evidence.grid.wait_for", lambda paths: None)
    monkeypatch.setattr(Grid, "_write_results", lambda grid: None)
    make("out", **asked).run()
    assert together == units


def test_processes_started_one_by_one_share_an_output(make: MakeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    together, written = Barrier(2), []

    def digest_together(value: Any) -> str:  # the last step before the configuration is looked for
        together.wait(timeout=60)
        return digest(value)

    def write_slowly(text: str, path: Path) -> None:
        written.append(path.name)
        time.sleep(0.2)
        write_text(text, path)

    monkeypatch.setattr("optidel_hf.evidence.grid.digest", digest_together)
    monkeypatch.setattr("optidel_hf.evidence.grid.write_text", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(make, ["out", "out"])
    assert first.hash == second.hash
    assert sorted(written) == ["config.json", "made_from.json"]


def test_merged_folders_give_the_union_without_computing(
    make: MakeGrid, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make(name, seeds=1, seed=seed) for name, seed in (("here", 0), ("there", 1))]
    for grid in made:
        grid.run()
    monkeypatch.delattr("optidel_hf.evidence.grid.run_cell")
    assert rows_of(make("here", merge=[str(made[1].output)]).run()) == rows_of(straight)


def test_frames_of_a_group_are_judged_as_one_image(make: MakeGrid, straight: Path) -> None:
    make("out").run()
    table = pq.read_table(make("out", downstream_groups="^[a-z]+").run())  # the same cells, put together anew
    assert judged_names(table) == {"validation": ["validation"]}
    one_by_one = np.array(pq.read_table(straight)["confusion"].to_pylist()).reshape(20, 3, 4)
    assert (np.array(table["confusion"].to_pylist()) == one_by_one.sum(1)).all()
    with pytest.raises(UserError, match=r"--downstream_groups 'test' finds no group in the name 'validation_00'"):
        make("out", downstream_groups="test")
    with pytest.raises(UserError, match="finds no group in the name 'test_00'"):  # before any hour is spent
        make("out", downstream_groups="[vr]a")


def test_arms_data_of_other_images_are_refused(
    make: MakeGrid, image_folder: Path, squares: Path, tmp_path: Path
) -> None:
    shared = {"curation_dir": str(tmp_path / "shared")}
    make("out", **shared)
    make("other", finetune_steps=3, **shared)
    with pytest.raises(UserError, match=r"arms of another pool or SAM \(pool was .*: give another --curation_dir"):
        Grid(tiny_experiment(squares / "images", squares, tmp_path / "another", **shared))


def test_another_configuration_is_refused_with_the_way_out(make: MakeGrid, straight: Path, tmp_path: Path) -> None:
    make("out")
    with pytest.raises(UserError, match=r"grid.finetune_steps was 2, now 3\): give another --output_dir"):
        make("out", finetune_steps=3)
    with pytest.raises(UserError, match=r"pretrain.batch_size was 8, now 16"):
        make("out", training={"batch_size": 16})
    with pytest.raises(UserError, match=r"straight.*holds cells of another configuration \(grid.finetune_steps"):
        make("other", finetune_steps=3, merge=[str(straight.parent)])
    with pytest.raises(UserError, match="no output of `optidel reproduce`"):
        make("another", merge=[str(tmp_path)])
    make("out", seeds=5, arms=["full"], budgets=[0.5])  # which cells there are is no part of it


def test_an_unknown_arm_is_refused(make: MakeGrid) -> None:
    with pytest.raises(UserError, match=r"--arms ful: no such arm; there are none, full, "):
        make("out", arms=["ful"])


def test_a_pool_that_cannot_serve_is_refused_before_any_cell(make: MakeGrid, squares: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Budget 0\.001 of \d+ images rounds to none"):
        make("out", budgets=[0.2, 0.001])
    with pytest.raises(UserError, match="--group_column nosuch: no such column"):
        make("out", group_column="nosuch")
    with pytest.raises(UserError, match="--pool /no/such/pool is neither a folder or file here"):
        Grid(tiny_experiment(Path("/no/such/pool"), squares, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_columns_of_tables_have_flags_of_their_own(squares: Path, tmp_path: Path) -> None:
    kinds = Features({"photo": DatasetImage(), "truth": DatasetImage()})
    for split in COUNTS:
        photos = sorted(map(str, (squares / "images").glob(f"{split}_*")))
        columns = {"photo": photos, "truth": [photo.replace("images", "masks") for photo in photos]}
        Dataset.from_dict(columns, features=kinds).to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    place = (tmp_path / "set", tmp_path / "set", tmp_path / "out")
    with pytest.raises(UserError, match="name one with --pool_image_column"):
        Grid(tiny_experiment(*place))
    with pytest.raises(UserError, match="--downstream_image_column image: no such image column"):
        Grid(tiny_experiment(*place, pool_image_column="photo"))
    with pytest.raises(UserError, match="--downstream_mask_column mask: no such image column"):
        Grid(tiny_experiment(*place, pool_image_column="photo", downstream_image_column="photo"))
    columns = {"pool_image_column": "photo", "downstream_image_column": "photo", "downstream_mask_column": "truth"}
    with pytest.raises(UserError, match="--validation_split night: "):
        Grid(tiny_experiment(*place, **columns, validation_split="night"))
    assert len(Grid(tiny_experiment(*place, **columns)).validation) == COUNTS["validation"]


def test_images_that_judge_are_found_in_the_pool(
    image_folder: Path,
    squares: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("optidel_hf.evidence.cells.build_arm", fake_arm)
    pool = shutil.copytree(image_folder, tmp_path / "pool")
    place = (pool, squares, tmp_path / "out")
    Grid(tiny_experiment(*place, arms=["full"], seeds=1)).run()
    assert "near-duplicates" not in caplog.text
    for name in ("validation_01", "train_09"):  # which `test_range` makes a test image
        Image.open(squares / "images" / f"{name}.png").resize((64, 64)).save(pool / f"of_{name}.png")
    Image.open(squares / "images" / "train_02.png").save(pool / "unlabelled.png")  # is only ever labelled
    Grid(tiny_experiment(*place[:2], tmp_path / "shared", arms=["none", "full"], seeds=1)).run()
    assert "2 images of the pool, such as 'of_train_09.png', are near-duplicates of validation or test" in caplog.text


def test_nothing_is_written_among_the_pools_images(
    image_folder: Path, squares: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--pool", str(image_folder), "--downstream", str(squares)]
    inside = str(image_folder / "runs")
    for flags in (["--output_dir", inside], ["--output_dir", "elsewhere", "--curation_dir", inside]):
        assert main(["reproduce", *places, *flags]) == 2
        assert f"{flags[-2]} {inside} lies among the images of {image_folder}" in capsys.readouterr().err
    assert not Path(inside).exists()


@pytest.mark.parametrize(
    ("steps", "checkpoints", "every"), [(1000, 1, 500), (1000, 4, 250), (997, 1, 997), (60, 1, 60)]
)
def test_a_kill_costs_few_steps_of_a_cell(
    image_folder: Path, squares: Path, tmp_path: Path, steps: int, checkpoints: int, every: int
) -> None:
    told = tiny_experiment(image_folder, squares, tmp_path, training={"steps": steps}, checkpoints=checkpoints)
    config = cell_pretraining(Cell("full", 1.0, 0), ArmData(str(image_folder), {}), told)
    assert (config.checkpoint_every, config.keep_checkpoints) == (every, 2 if checkpoints == 1 else steps)
    judged = judged_steps(config, told.grid)
    assert (len(judged), judged[-1]) == (checkpoints, steps)
    assert all(step % every == 0 for step in judged)


def test_test_labels_are_opened_by_a_final_reading_alone(
    make: MakeGrid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: set[Path] = set()

    def noting(open_image: Callable[..., Any]) -> Callable[..., Any]:
        return lambda value, **told: (opened.add(Path(value)), open_image(value, **told))[1]

    for module in (downstream_sets, labels):
        monkeypatch.setattr(module, "open_image", noting(module.open_image))
    test_masks = {f"test_{i:02d}" for i in range(4)} | {f"train_{i:02d}" for i in range(8, 12)}
    few: dict[str, Any] = {"arms": ["none"], "seeds": 1}
    make("out", **few).run()
    assert {path.stem for path in opened if path.parent.name == "images"} >= test_masks  # to compare them by dHash
    masks = {path.stem for path in opened if path.parent.name == "masks"}
    assert masks
    assert not masks & test_masks
    reads = tmp_path / "out" / "reads.md"
    assert not reads.exists()

    results = pq.read_table(make("out", **few, final=True).run())
    assert {path.stem for path in opened if path.parent.name == "masks"} >= test_masks
    assert results["split"].to_pylist() == ["validation"] * 2 + ["test"] * 2
    assert set(judged_names(results)["test"]) == test_masks
    written = reads.read_text()
    opening, result = written.splitlines()[-2:]
    assert opening.endswith("| opened, first reading |")
    assert "none 0 %, 4 labels, fine-tuned: " in result
    make("out", **few, final=True).run()  # nothing is left to compute, so nothing is opened
    assert reads.read_text() == written
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1


def test_a_final_reading_is_shown_when_it_is_whole(
    make: MakeGrid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    few: dict[str, Any] = {"arms": ["none", "full"], "seeds": 1}
    make("out", **few).run()

    def dies_at_the_second(rows: Any, *told: Any) -> None:
        if rows[0]["arm"] == "full":
            raise Killed
        write_rows(rows, *told)

    with monkeypatch.context() as patch:
        patch.setattr("optidel_hf.evidence.grid.write_rows", dies_at_the_second)
        with pytest.raises(Killed):
            make("out", **few, final=True).run()
    assert set(pq.read_table(make("out", **few).run())["split"].to_pylist()) == {"validation"}
    for _ in range(2):  # asked for or not, once it has been told
        make("out", **few, final=True).run()
        assert set(pq.read_table(make("out", **few).run())["split"].to_pylist()) == {"validation", "test"}
    make("out", arms=["none", "full"], seeds=2).run()
    make("out", arms=["none", "full"], seeds=2, final=True).run()
    said = [line.split(" | ")[-1] for line in (tmp_path / "out" / "reads.md").read_text().splitlines()]
    assert [line for line in said if line.startswith(("opened", "READING"))] == [
        "opened, first reading |",
        "opened, resumed |",
        "opened, READING 2 OF THIS CONFIGURATION |",
    ]


def test_a_final_reading_judges_the_models_of_validation(make: MakeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, Any] = {"arms": ["full"], "seeds": 1}
    there = make("there", **few)
    there.run()
    monkeypatch.delattr(Pretrainer, "step")  # nothing may be trained again
    here = {**few, "merge": [str(there.output)]}
    make("here", **here).run()
    assert len(pq.read_table(make("here", **here, final=True).run())) == 8
    shutil.rmtree(there.output / "models")
    with pytest.raises(UserError, match=r"that of 0000_full_1 is not there: copy it from where it was trained to"):
        make("again", **here, final=True).run()


def test_cells_of_other_images_are_not_put_together(make: MakeGrid) -> None:
    grid = make("out", seeds=1, arms=["none", "full"])
    grid.run()
    path = grid.path(grid.cells[1])
    table = pq.read_table(path)
    backwards = json.dumps({split: names[::-1] for split, names in judged_names(table).items()}).encode()
    pq.write_table(table.replace_schema_metadata({b"images": backwards}), path)
    with pytest.raises(UserError, match=r"0000_full_1.parquet was judged on other validation images"):
        grid.run()
    told = {name: table.schema.metadata[name] for name in (b"images", b"sha256")}
    hashes = json.loads(told[b"sha256"])
    assert hashes == {"validation": grid.validation.sha256()}
    other = json.dumps({"validation": "f" * 64}).encode()  # masks that were corrected under the same names
    pq.write_table(table.replace_schema_metadata({**told, b"sha256": other}), path)
    with pytest.raises(UserError, match=r"0000_full_1.parquet was judged on validation images of the same names, but"):
        grid.run()
    pq.write_table(table.replace_schema_metadata({b"images": told[b"images"]}), path)  # as before there were hashes
    grid.run()
    column = pa.array(["f" * 64] * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index("config_hash"), "config_hash", column), path)
    with pytest.raises(UserError, match=r"0000_full_1.parquet is of configuration ffff"):
        grid.run()
