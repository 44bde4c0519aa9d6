"""
The whole round trip with the clients that people use, unpatched: a run pushes, and a stranger opens what it pushed.

All of it happens in one process of its own, because each costs seconds of imports and reads `HF_ENDPOINT` but once:
`python tests/test_round_trip.py FOLDER` is that process, and writes what it found to `FOLDER/found.json`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from hub_server import HubServer
from huggingface_hub import ModelCard
from PIL import Image


TESTS = Path(__file__).parent
LOOSE = "--max_area 0.9 --min_area 0.001 --box_nms_thresh 0.95 --crop_nms_thresh 0.95 --patch_size 32 --image_size 32 "
CURATE = (
    LOOSE + "--reference_steps 2 --reference_width 64 --reference_layers 1 --reference_batch_size 8 --budget 0.15 "
)
VIT = "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 32 "
DECODER = "--decoder_hidden_size 32 --decoder_num_hidden_layers 1 --decoder_num_attention_heads 2 "
PRETRAIN = VIT + DECODER + "--image_size 32 --steps 2 --batch_size 4 "


def visit(folder: Path) -> dict[str, Any]:
    """Curate, pre-train and push by the command line; then open everything by the libraries alone."""
    import torch

    torch.set_num_threads(1)
    found = {**_push(folder), **_open_datasets(folder), **_open_models(folder)}
    found |= {**_run_cards(), **_open_metric()}  # which commits to the model's repository once more
    return {**found, **_start_from(folder, found["pushed"]), **_refusals(folder)}


def _push(folder: Path) -> dict[str, Any]:
    from optidel_hf import cli
    from optidel_hf.evaluation import metrics

    out, vit = str(folder / "out"), str(folder / "vit")
    images = ["--dataset", str(folder / "images"), "--sam", "me/sam", "--device", "cpu"]
    training = ["--dataset", "me/frames", "--output_dir", vit, "--device", "cpu", "--push_to_hub", "me/vit"]
    metric = ["--folder", str(Path(metrics.__file__).parent / "mean_iou"), "--repo_id", "me/mean_iou"]
    codes = [
        cli.main(["curate", *images, *CURATE.split(), "--output_dir", out, "--push_to_hub", "me/frames"]),
        cli.main(["push", "--folder", out, "--repo_id", "me/list", "--selection_only", "true"]),
        cli.main(["rebuild", "--selection", "me/list", "--source", images[1], "--output_dir", str(folder / "again")]),
        cli.main(["pretrain", *training, *PRETRAIN.split()]),
        cli.main(["push", *metric]),
    ]
    return {"codes": codes}


def _open_datasets(folder: Path) -> dict[str, Any]:
    from datasets import load_dataset

    from optidel_hf.evaluation.downstream import load_downstream
    from optidel_hf.sources import open_dataset

    pushed = load_dataset("me/frames", split="train")
    local = load_dataset("parquet", data_files=str(folder / "out/curated/*.parquet"), split="train")
    streamed = list(load_dataset("me/frames", split="train", streaming=True))
    return {
        "features": str(pushed.features),
        "pixels": [image.tobytes() for image in pushed["image"]] == [image.tobytes() for image in local["image"]],
        "tiles": pushed["tiles"][:] == local["tiles"][:] == [row["tiles"] for row in streamed],
        "streamed": [row["image"].size for row in streamed],
        "selection": load_dataset("me/frames", "selection", split="train").num_rows,
        "scores": load_dataset("me/frames", "scores", split="train").column_names,
        "list": load_dataset("me/list", split="train").num_rows,
        "sources": [open_dataset("me/frames", config=name)["source"][0] for name in (None, "default")],
        "masks": load_downstream("me/segmented", "train", 8, revision="main", config="rings")
        .masks.float()
        .mean()
        .item(),
    }


def _open_models(folder: Path) -> dict[str, Any]:
    from huggingface_hub import HfApi
    from transformers import AutoModel, ViTMAEForPreTraining

    from optidel_hf.evaluation.backbone import load_backbone

    backbone = AutoModel.from_pretrained("me/vit", subfolder="backbone", add_pooling_layer=False)
    ours = load_backbone(str(folder / "vit")).encoder.state_dict()
    return {
        "pushed": HfApi().model_info("me/vit").sha,
        "mae": ViTMAEForPreTraining.from_pretrained("me/vit").config.image_size,
        "backbone": type(backbone).__name__,
        "weights": all(bool((tensor == ours[name]).all()) for name, tensor in backbone.state_dict().items()),
        "encoder": load_backbone("me/vit").fingerprint() == load_backbone(str(folder / "vit")).fingerprint(),
    }


def _run_cards() -> dict[str, Any]:
    """The cards' own code, as a reader would paste it."""
    from huggingface_hub import RepoCard

    names: dict[str, Any] = {}
    for repo, kind in (("me/frames", "dataset"), ("me/vit", "model"), ("me/mean_iou", "space")):
        code = re.findall(r"```python\n(.*?)```", RepoCard.load(repo, repo_type=kind).text, re.DOTALL)
        exec("\n".join(code), names)
    features = names["features"](Image.new("RGB", (40, 40), "brown"))
    kinds = {name: type(names[name]).__name__ for name in ("dataset", "model", "metric")}
    return {"card": kinds | {"features": [len(features[0]), len(features[0][0])]}}


def _open_metric() -> dict[str, Any]:
    import evaluate
    import huggingface_hub
    from packaging.version import Version

    if Version(huggingface_hub.__version__) < Version("2.2"):  # asks huggingface.co, wherever the Hub is
        huggingface_hub.RepoCard.validate = lambda *arguments, **options: None  # type: ignore[method-assign]
    metric = evaluate.load("me/mean_iou")
    evaluate.push_to_hub(
        "me/vit",
        task_type="image-segmentation",
        dataset_type="me/frames",
        dataset_name="frames",
        metric_type="mean_iou",
        metric_name="mean IoU",
        metric_value=0.25,
    )
    return {"mean_iou": metric.compute(predictions=[[[0, 1]]], references=[[[0, 1]]])["mean_iou"]}


def _start_from(folder: Path, commit: str) -> dict[str, Any]:
    """Pre-train from a commit that the branch has left behind, and from one that is not there."""
    from optidel_hf import cli

    start = ["pretrain", "--dataset", "me/frames", "--device", "cpu", "--steps", "1", "--batch_size", "4"]
    start += ["--model", "me/vit", "--output_dir", str(folder / "on"), "--model_revision"]
    missing = _sentence(lambda: cli.main([*start, "v9"]))
    code = cli.main([*start, commit])
    return {"on": [code, (folder / "on" / "README.md").read_text(encoding="utf-8")], "missing": missing}


def _refusals(folder: Path) -> dict[str, Any]:
    from optidel_hf import cli
    from optidel_hf.evaluation.backbone import load_backbone
    from optidel_hf.sources import open_dataset

    other = ["--output_dir", str(folder / "other"), "--dataset"]
    curate = ["curate", *other, str(folder / "images"), "--sam", "me/pickled-sam"]
    return {
        "script": _sentence(lambda: open_dataset("me/scripted")),
        "evil": _sentence(lambda: open_dataset("me/evil")),
        "zipped": _sentence(lambda: open_dataset("me/zipped")),
        "pickled sam": _sentence(lambda: cli.main(curate)),
        "pickled backbone": _sentence(lambda: load_backbone("me/pickled-mae")),
        "pickled start": _sentence(lambda: cli.main(["pretrain", *other, "me/frames", "--model", "me/pickled-mae"])),
    }


def _sentence(call: Callable[[], Any]) -> str:
    """What a refusal says, raised or printed."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return err.getvalue().splitlines()[-1]


@pytest.fixture
def foreign(hub: HubServer, tiny_sam: str, image_folder: Path) -> None:
    """What others may have put on the Hub."""
    sam = {path.name: path.read_bytes() for path in Path(tiny_sam).iterdir()}
    hub.put("me/sam", "models", sam)
    settings = {name: content for name, content in sam.items() if name.endswith(".json")}
    hub.put("me/pickled-sam", "models", {**settings, "pytorch_model.bin": b"\x80\x04."})
    mae = {"config.json": json.dumps({"model_type": "vit_mae", "image_size": 32}).encode()}
    hub.put("me/pickled-mae", "models", {**mae, "pytorch_model.bin": b"\x80\x04."})
    hub.put("me/scripted", "datasets", {"scripted.py": b"import os\nos.abort()\n"})
    picture = (image_folder / "frame-00.png").read_bytes()
    hub.put("me/segmented", "datasets", _segmented(picture))
    hub.put("me/evil", "datasets", {"../../evil.png": picture})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("frame.png", picture)
        file.writestr("../../../../evil.png", picture)
    hub.put("me/zipped", "datasets", {"frames.zip": archive.getvalue()})


def _segmented(picture: bytes) -> dict[str, bytes]:
    """A set of two configurations: one with masks that are white all over, and one with black ones."""
    files = {}
    for name, level in (("rings", 255), ("discs", 0)):
        mask, table = io.BytesIO(), io.BytesIO()
        with Image.open(io.BytesIO(picture)) as image:
            Image.new("L", image.size, level).save(mask, "png")
        row = {"image": {"bytes": picture, "path": None}, "mask": {"bytes": mask.getvalue(), "path": None}}
        Dataset.from_list([row], features=Features({"image": ImageFeature(), "mask": ImageFeature()})).to_parquet(
            table
        )
        files[f"{name}/train-00000-of-00001.parquet"] = table.getvalue()
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("rings", "discs"))
    return files | {"README.md": f"---\nconfigs:\n{configs}---\n".encode()}


def test_a_run_pushes_and_a_stranger_opens(
    hub: HubServer, foreign: None, tiny_sam: str, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").symlink_to(image_folder)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }
    visitor = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(visitor, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))

    assert found["codes"] == [0] * 5, done.stderr
    assert found["features"].startswith("{'image': Image(")
    assert found["pixels"]
    assert found["tiles"]
    assert found["streamed"] == [[32, 32]] * 4
    assert found["selection"] == found["list"] == 16
    plain, named = found["sources"]
    assert re.fullmatch(r"me/frames@\w{40}/train#0", plain)
    assert named == plain.replace("/train", "/default/train")
    assert found["masks"] == 1.0
    assert {"pvi", "difficulty", "embedding", "source"} < set(found["scores"])
    assert "image" not in found["scores"]
    shards = [{p.name: p.read_bytes() for p in (tmp_path / n / "curated").glob("*.parquet")} for n in ("out", "again")]
    assert shards[0] == shards[1] != {}

    assert (found["mae"], found["backbone"]) == (32, "ViTModel")
    assert found["weights"]
    assert found["encoder"]
    kinds = {"dataset": "Dataset", "model": "ViTMAEForPreTraining", "metric": "MeanIoU"}
    assert found["card"] == {**kinds, "features": [17, 32]}  # 16 patches and the class token
    assert found["mean_iou"] == 1.0
    commit = hub.repo("me/sam", "models").history["main"][-1].oid
    card = hub.repo("me/frames").files["README.md"].content.decode()
    assert f"| SAM | `me/sam` | {commit} | `{commit}` |" in card
    code, text = found["on"]
    assert code == 0
    assert f"| starts from | me/vit ({found['pushed']}) |" in text
    assert f"--model=me/vit --model_revision={found['pushed']}" in text
    assert found["pushed"] != hub.repo("me/vit", "models").history["main"][-1].oid
    assert found["missing"].startswith("optidel pretrain: ")
    assert "v9" in found["missing"]
    card = ModelCard(hub.repo("me/vit", "models").files["README.md"].content.decode())
    assert [(score.metric_type, score.metric_value) for score in card.data.eval_results] == [("mean_iou", 0.25)]
    assert card.data.datasets == ["me/frames"]
    assert f"at revision `{hub.repo('me/frames').history['main'][-1].oid}`" in card.text
    assert "The strategy `optidel` with the score `difficulty` chose the 16 patches from 24 source images" in card.text
    assert all(hub.repo(*name).private for name in (("me/frames",), ("me/list",), ("me/vit", "models")))

    assert found["script"].startswith("UserError: --dataset me/scripted is neither")
    assert "Dataset scripts are no longer supported" in found["script"]
    assert found["pickled sam"].startswith(
        "optidel curate: --sam me/pickled-sam has no model.safetensors, and pickled"
    )
    assert found["pickled backbone"].startswith("UserError: me/pickled-mae has no model.safetensors")
    assert found["pickled start"].startswith("optidel pretrain: --model me/pickled-mae has no model.safetensors")
    assert not [call for call in hub.calls if "pytorch_model.bin" in call]
    assert found["evil"].startswith("UserError: ")
    assert found["zipped"].startswith("UserError: ")
    escaped = [path for path in tmp_path.parent.rglob("evil*") if tmp_path / "home" not in path.parents]
    assert escaped == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if hub.token.encode() in path.read_bytes()]
    assert hub.token not in done.stdout + done.stderr


if __name__ == "__main__":
    here = Path(sys.argv[1])
    (here / "found.json").write_text(json.dumps(visit(here)), encoding="utf-8")
