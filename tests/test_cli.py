"""`optidel` as a user meets it: bad images are listed, a mistake is one sentence and exit code 2, no traceback."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from transformers import ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

from optidel_hf import cli
from optidel_hf.arguments import named_paths
from optidel_hf.commands import say
from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError
from optidel_hf.sources import open_dataset


# What makes a random SAM of 64 pixels and a reference model of six steps give patches and scores.
LOOSE = "--max_area 0.9 --min_area 0.001 --box_nms_thresh 0.95 --crop_nms_thresh 0.95 --patch_size 32 "
SMALL = "--reference_steps 6 --reference_width 64 --reference_layers 1 --reference_batch_size 8 --image_size 32 "
FLAGS = (LOOSE + SMALL + "--min_image_side 16 --device cpu").split()

Refused = Callable[..., str]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def flags(tiny_sam: str) -> list[str]:
    return ["--sam", tiny_sam, *FLAGS]


@pytest.fixture(scope="module")
def curated(image_folder: Path, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished output that the tests share; none of them changes it."""
    output = tmp_path_factory.mktemp("curated") / "out"
    chosen = ["--dataset", str(image_folder), "--budget", "0.15", "--output_dir", str(output)]
    assert cli.main(["curate", *flags, *chosen]) == 0
    return output


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    folder = tmp_path_factory.mktemp("mae")
    ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture
def refused(
    image_folder: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a curation that must be refused: returns its one sentence."""

    def run(*arguments: object, command: str = "curate", output: Path | None = None) -> str:
        place = ["--dataset", str(image_folder), "--output_dir", str(output or tmp_path / "out"), "--budget", "0.15"]
        capsys.readouterr()
        assert cli.main([command, *flags, *place, *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        sentence = said.err.rstrip("\n").splitlines()[-1]
        assert sentence.startswith(f"optidel {command}: ")
        return sentence

    return run


def spoil(folder: Path, good: Path) -> dict[str, str]:
    """Fill `folder` with what real folders hold; returns the reason that each unusable file must get."""
    folder.mkdir()
    scene = Image.open(good).convert("RGB")
    content = good.read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "missing.png").symlink_to(folder / "nowhere.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (1, 10_000)).save(folder / "line.png")
    Image.new("L", (2000, 1000)).save(folder / "huge.png")
    Image.new("RGB", (96, 96), "grey").save(folder / "flat.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(folder / "turned.jpg", exif=exif)
    scene.save(folder / "animated.gif", save_all=True, append_images=[scene.rotate(180)])
    scene.convert("CMYK").save(folder / "cmyk.TIF")
    scene.convert("L").convert("I;16").point(lambda value: value * 257).save(folder / "sixteen.png")
    scene.quantize(16).save(folder / "palette.png", transparency=0)
    return {
        "truncated.png": "broken image: ",
        "text.jpg": "not an image that Pillow can read",
        "empty.png": "not an image that Pillow can read",
        "missing.png": "file not found",
        "dot.png": "1x1 is too small or too thin",
        "line.png": "1x10000 is too small or too thin",
        "huge.png": "2000x1000 is over the limit of 1000000 pixels",
    }


def test_every_bad_image_is_listed_with_its_reason(image_folder: Path, flags: list[str], tmp_path: Path) -> None:
    folder, output = tmp_path / "images", tmp_path / "out"
    reasons = spoil(folder, image_folder / "frame-01.png")
    place = ["--dataset", str(folder), "--output_dir", str(output), "--budget", "0.5"]
    assert cli.main(["patches", *flags, *place, "--max_image_pixels", "1000000"]) == 0
    gone = dict(zip(*read_columns(output / "rejected", ["source", "reason"]).to_pydict().values()))
    kept = set(read_columns(output / "patches", ["source"])["source"].to_pylist())
    assert {source: gone[source][: len(reason)] for source, reason in reasons.items()} == reasons
    assert {"turned.jpg", "animated.gif", "cmyk.TIF", "sixteen.png", "palette.png"} <= kept
    assert kept | gone.keys() == {path.name for path in folder.iterdir()}
    assert not kept & gone.keys()


def test_what_gave_no_patch_is_told(
    image_folder: Path, flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, output = shutil.copytree(image_folder, tmp_path / "images"), tmp_path / "out"
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    with caplog.at_level(logging.INFO, "optidel_hf"):
        assert cli.main(["patches", *flags, "--dataset", str(folder), "--output_dir", str(output)]) == 0
    found = re.search(r"(\d+) of 27 images gave no patch \(see (.*)\), 2 of them: not an image", caplog.text)
    assert found
    assert (int(found[1]), found[2]) == (len(read_columns(output / "rejected", ["source"])), str(output / "rejected"))


def test_no_patch_in_any_image(refused: Refused, tmp_path: Path) -> None:
    said = refused("--pred_iou_thresh", "2", command="patches")
    assert "No key patch in 24 images; 24 of them: SAM found no key patch" in said
    assert f"See {tmp_path / 'out' / 'rejected'}, and loosen --pred_iou_thresh" in said
    reasons = read_columns(tmp_path / "out" / "rejected", ["reason"])["reason"].to_pylist()
    assert reasons == ["SAM found no key patch that passed the filters"] * 24


def test_curated_opens_everywhere(curated: Path) -> None:
    folder = curated / "curated"
    assert {"README.md", "config.json"} < {path.name for path in folder.iterdir()}
    mosaics = load_dataset(str(folder), split="train")
    assert len(mosaics) == 4  # 0.15 of 24 is 3.6
    assert [image.size for image in mosaics["image"]] == [(32, 32)] * 4
    opened = open_dataset(str(folder))
    assert opened["source"] == [f"shard-00000-of-00001.parquet#{row}" for row in range(4)]
    assert [value["bytes"] for value in opened["image"]] == [
        row["bytes"] for row in pq.read_table(folder / "shard-00000-of-00001.parquet")["image"].to_pylist()
    ]


def test_finished_work_is_not_done_again(
    curated: Path, image_folder: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optidel_hf.curation.patches.MaskGenerator", None)
    before = {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")}
    place = ["--dataset", str(image_folder), "--output_dir", str(curated), "--budget", "0.15"]
    assert cli.main(["curate", *flags, *place]) == 0
    assert {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")} == before


@pytest.mark.parametrize(
    ("flag", "value", "was", "stage"),
    [
        ("--max_patches", "3", "max_patches was 16, now 3", "patches"),
        ("--reference_steps", "7", "reference_steps was 6, now 7", "reference"),
        ("--trim", "0.1", "trim was None, now 0.1", ".selection"),
        ("--image_size", "64", "image_size was 32, now 64", "curated"),
    ],
)
def test_changed_configuration(curated: Path, refused: Refused, flag: str, value: str, was: str, stage: str) -> None:
    said = refused(flag, value, output=curated)
    assert f"{curated / stage} was made with another configuration ({was})" in said
    assert f"--reuse {curated} --output_dir" in said


def test_changed_inputs(curated: Path, refused: Refused) -> None:
    assert "lists 24 images and the dataset now has 20: 'frame-20.png' is gone" in refused(
        "--limit", "20", output=curated
    )


def test_reuse_takes_over_what_did_not_change(
    curated: Path, image_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    place = ["--dataset", str(image_folder), "--output_dir", str(output), "--budget", "0.25"]
    assert cli.main(["curate", *flags, *place, "--reuse", str(curated)]) == 0
    shard = "scores/shard-00000-of-00001.parquet"
    assert (output / shard).read_bytes() == (curated / shard).read_bytes()
    assert len(open_dataset(str(output / "curated"))) == 6


def test_reuse_takes_over_from_a_run_that_did_not_end(image_folder: Path, flags: list[str], tmp_path: Path) -> None:
    place = ["curate", *flags, "--dataset", str(image_folder), "--strategy", "random"]
    refused, output = tmp_path / "refused", tmp_path / "out"
    assert cli.main([*place, "--output_dir", str(refused), "--budget", "1"]) == 2
    assert not (refused / "config.json").exists()
    assert cli.main([*place, "--output_dir", str(output), "--budget", "0.25", "--reuse", str(refused)]) == 0
    shard = "patches/shard-00000-of-00001.parquet"
    assert (output / shard).stat().st_ino == (refused / shard).stat().st_ino  # the file itself, not one made again


EARLY = [
    ("--strategy nosuch", "strategy is 'nosuch': choose one of optidel, hardest, easiest, medium, random"),
    ("--budget 0", "Budget 0 is not a fraction of the source images: give one in (0, 1]"),
    ("--budget 1.5", "Budget 1.5 is not a fraction"),
    ("--budget nan", "Budget nan is not a fraction"),
    ("--budget 0.01", "Budget 0.01 of 24 images rounds to none: give at least 0.020834"),
    ("--budget much", "argument --budget: invalid float value: 'much'"),
    ("--image_size 33", "image_size 33 is no multiple of 2"),
    ("--image_size 8", "image_size is 8: a curated image has at least 16 pixels"),
    ("--tiles_per_mosaic 5", "tiles_per_mosaic is 5: a mosaic is a square grid, of 1, 4, 9 or 16"),
    ("--unit tile", "unit is 'tile': it is 'patch'"),
    ("--max_border -1", "max_border is -1.0: it is a fraction, from 0 to 1"),
    ("--stability_score_thresh 95", "stability_score_thresh is 95.0: it is a fraction, from 0 to 1"),
    ("--context -1", "context is above 0; max_aspect and max_image_pixels are at least 1"),
    ("--max_aspect 0.5", "context is above 0; max_aspect and max_image_pixels are at least 1"),
    ("--max_upscale nan", "max_upscale is nan: it is above 0; inf leaves none out"),
    ("--max_distance nan", "max_distance is nan: a distance is 0 or more"),
    ("--device distributed", "--device distributed: give auto, cpu, cuda, mps, xpu, or one of these with :N"),
    ("--device cpu:x", "--device cpu:x: give auto"),
    ("--limit 0", "limit is 0: take at least one image"),
    ("--images_per_shard 0", "images_per_shard is 0: a shard holds at least one image"),
    ("--id_column nope", "--id_column nope: no such column; the columns are"),
    ("--group_column nope", "--group_column nope: no such column; the columns are"),
    ("--image_column nope", "--image_column nope: no such image column; the image columns are ['image']"),
    ("--split nope", "--split nope: the dataset has the splits ['train']"),
    ("--dataset /no/such/folder", "--dataset /no/such/folder is neither a folder or file here"),
    ("--sam no/such-sam", "--sam no/such-sam cannot be loaded"),
    ("--sam /no/such/sam", "--sam /no/such/sam cannot be loaded"),
    ("--reference no/such-mae", "--reference no/such-mae cannot be loaded"),
    ("--reuse /no/such/output", "--reuse /no/such/output is no output of `optidel curate`"),
    ("--config /no/such.yaml", "--config /no/such.yaml cannot be read"),
    ("--budgets 0.1", "unrecognized arguments: --budgets"),
    ("--dataset no/such/*.jpg", "--dataset no/such/*.jpg names images: give the folder that holds them, no/such."),
]


@pytest.mark.parametrize(("mistake", "said"), EARLY)
def test_mistakes_are_refused_before_any_image_is_read(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, said: str
) -> None:
    monkeypatch.setattr("PIL.Image.open", None)
    assert said in refused(*mistake.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("below", "where"), [("", ""), ("deeper/out", ": {file}")])
def test_an_output_at_or_below_a_file_is_refused(refused: Refused, tmp_path: Path, below: str, where: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    output = file / below
    assert f"--output_dir {output}{where.format(file=file)} is a file: give a folder" in refused(output=output)


def test_checkpoints_of_another_kind_are_refused_before_any_image_is_read(
    refused: Refused, mae: Path, tiny_sam: str, image_folder: Path, tmp_path: Path
) -> None:
    assert f"--sam {mae} is a 'vit_mae' model, not a 'sam'" in refused("--sam", mae)
    assert f"--reference {tiny_sam} is a 'sam' model, not a 'vit_mae'" in refused("--reference", tiny_sam)
    assert f"--sam {image_folder} cannot be loaded" in refused("--sam", image_folder)
    bare = shutil.copytree(mae, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    assert f"--reference {bare} cannot be loaded" in refused("--reference", bare)
    assert not (tmp_path / "out").exists()


def test_a_given_checkpoint_scores(
    mae: Path, curated: Path, image_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    place = ["--dataset", str(image_folder), "--output_dir", str(tmp_path / "out"), "--reuse", str(curated)]
    assert cli.main(["score", *flags, *place, "--budget", "0.15", "--reference", str(mae)]) == 0
    assert json.loads((tmp_path / "out/reference/fold-0/calibration.json").read_text())["model"] == str(mae)


def test_budget_over_the_patches(refused: Refused) -> None:
    said = refused("--budget", "1", "--strategy", "random")
    assert "Budget 1 of 24 images needs 96 patches and the pool has" in said
    assert "lower it to at most" in said


def test_folders_without_images_and_tables_without_image_column(
    refused: Refused, tmp_path: Path, curated: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty} holds no image." in refused("--dataset", empty)
    assert "holds no image." in refused("--dataset", empty.parent / "empty", "--split", "train")
    scores = curated / "scores" / "shard-00000-of-00001.parquet"
    assert "The dataset has no image column (columns: [" in refused("--dataset", scores)
    assert "occurs twice in column 'source'" in refused("--dataset", curated / "patches")


def test_yaml(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("budget: 0.1\nbudgets: 0.2\n")
    assert "'budgets' is no flag of this command" in refused("--config", tmp_path / "a.yaml")


def test_status(curated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--output_dir", str(curated)]) == 0
    said = capsys.readouterr().out
    assert "patches    1 of 1 shards" in said
    assert "reference  fold-0, fold-1" in said
    assert "selection  published" in said
    (curated / "selection.parquet").rename(curated / "aside")
    assert cli.main(["status", "--output_dir", str(curated)]) == 0
    assert "selection  chosen, and published with the curated images" in capsys.readouterr().out
    (curated / ".selection" / "draft.parquet").rename(curated / "draft")  # as long as a pilot asks what to choose by
    assert cli.main(["status", "--output_dir", str(curated)]) == 0
    (curated / "draft").rename(curated / ".selection" / "draft.parquet")
    (curated / "aside").rename(curated / "selection.parquet")
    assert "selection  not yet" in capsys.readouterr().out
    assert cli.main(["status", "--output_dir", "/no/such/output"]) == 2
    assert "/no/such/output is no output of `optidel curate`" in capsys.readouterr().err


def test_status_while_images_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".hashes" / "0123").mkdir(parents=True)
    (tmp_path / ".hashes" / "0123" / "shard-00000-of-00030.parquet").touch()
    assert cli.main(["status", "--output_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "inputs     1 of 30 shards\n"


def test_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage: optidel COMMAND") == 2
    assert cli.main(["curat"]) == 2
    assert "optidel: 'curat' is no command." in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: optidel {command} ")
    assert "--config FILE" in said
    assert "{'" not in said  # a percent sign in a help text is formatted by argparse


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        (errno.EACCES, "Permission denied: 'out'; give a place that may be read and written"),
        (errno.EFBIG, "File too large: 'out'; make room there, and the same command goes on from here"),
        (errno.EEXIST, "File exists: 'out'; give a folder for folders"),
        (errno.ENOTDIR, "Not a directory: 'out'; give a folder for folders"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(
    code: int, way_out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(flags: Sequence[str]) -> None:
        raise OSError(code, os.strerror(code), "out")

    monkeypatch.setitem(cli.COMMANDS, "theory", refuse)
    assert cli.main(["theory"]) == 2
    assert way_out in capsys.readouterr().err


def test_two_folders_of_one_name_are_told_apart() -> None:
    assert named_paths(["a/vit", "other=b/vit"]) == {"vit": "a/vit", "other": "b/vit"}
    with pytest.raises(UserError, match="Two of a/vit, b/vit have the same name: tell them apart by name=path"):
        named_paths(["a/vit", "b/vit"])


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "lr=0.1"
    assert named_paths([str(folder)]) == {f"{tmp_path}/lr": "0.1"}
    folder.mkdir()
    assert named_paths([str(folder), f"slow={folder}"]) == {"lr=0.1": str(folder), "slow": str(folder)}


def test_a_reader_that_goes_early_ends_no_command() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        say("first", pipe)
        say("second", pipe)


def test_what_a_stream_cannot_show_ends_no_command() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    say("ViT ± 3 [−1, 2]", stream)
    assert stream.buffer.getvalue().decode("latin-1") == "ViT ± 3 [?1, 2]\n"
