"""Pushing against the local Hub: one commit or nothing, resumed, without clobbering and without telling the token."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import Fault, HubServer
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, ModelCard
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from test_cards import RAW, RUN
from transformers import ViTConfig, ViTModel

from optidel_hf import cli
from optidel_hf.errors import UserError
from optidel_hf.evaluation import metrics
from optidel_hf.evaluation.backbone import load_backbone
from optidel_hf.layout import existing_shards
from optidel_hf.publishing import burned_in, transfer
from optidel_hf.publishing.burned_in import refuse_burned_in_text
from optidel_hf.publishing.cards import curation_facts
from optidel_hf.publishing.hub import PublishConfig, push_dataset, push_metric, push_model
from optidel_hf.publishing.provenance import dataset_facts, find_file, write_provenance
from optidel_hf.publishing.records import Row, find_rows, patch_key, read_curation


SHARDS = [*(f"scores/shard-{i:05d}-of-00003.parquet" for i in range(3)), "curated/shard-00000-of-00001.parquet"]
SMALL = ["README.md", "assets/contact_sheet.png", "assets/scores.png", "config.json", "selection.parquet"]


def png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def text(hub: HubServer, name: str, kind: str = "datasets", path: str = "README.md") -> str:
    return hub.repo(name, kind).files[path].content.decode()


def test_a_dataset_goes_up_in_one_commit(hub: HubServer, curation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "FILES_PER_COMMIT", len([*SHARDS, *SMALL]))  # just as many
    assert push_dataset(curation, "me/frames", license="cc-by-4.0") == f"{hub.url}/datasets/me/frames"
    repo = hub.repo("me/frames")
    assert repo.private
    assert len(repo.history["main"]) == 2  # the empty one and ours
    assert not repo.pulls
    assert sorted(repo.files) == sorted([*SHARDS, *SMALL])
    for path in SHARDS:
        assert repo.files[path].content == (curation / path).read_bytes()
    card = DatasetCard(text(hub, "me/frames"))
    assert card.data.license == "cc-by-4.0"
    assert [config["config_name"] for config in card.data.configs] == ["default", "selection", "scores"]
    assert "](assets/contact_sheet.png)" in card.text

    push_dataset(curation, "me/frames", license="cc-by-4.0")
    assert len(repo.history["main"]) == 2  # nothing has changed


def test_memory_does_not_grow_with_the_shards(hub: HubServer, curation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def add(path: str, content: Any) -> CommitOperationAdd:
        given[path] = content
        return CommitOperationAdd(path, content)

    monkeypatch.setattr(transfer, "CommitOperationAdd", add)
    push_dataset(curation, "me/frames")
    assert {path for path, content in given.items() if isinstance(content, Path)} == {*SHARDS, *SMALL[3:]}


def test_the_selection_alone_has_no_image(hub: HubServer, curation: Path) -> None:
    push_dataset(curation, "me/list", selection_only=True)
    assert sorted(hub.repo("me/list").files) == ["README.md", "assets/scores.png", "selection.parquet"]
    push_dataset(curation, "me/frames")
    with pytest.raises(UserError, match="would stay in its history"):
        push_dataset(curation, "me/frames", selection_only=True)
    assert set(SHARDS) < set(hub.repo("me/frames").files)


def test_images_with_burned_in_text_stay_here_unless_allowed(hub: HubServer, curation: Path, tmp_path: Path) -> None:
    lettered = shutil.copytree(curation, tmp_path / "lettered")
    first = pq.read_table(lettered / "selection.parquet").sort_by("rank").slice(0, 1).to_pylist()[0]
    shard, row = find_rows(lettered / "scores", {patch_key(first)})[patch_key(first)]
    path = existing_shards(lettered / "scores")[shard]
    scores = pq.read_table(path).to_pylist()
    scores = [one | {"text": 0.02} for one in scores]  # the limit itself is let through
    scores[row]["text"] = 0.03
    pq.write_table(pa.Table.from_pylist(scores), path)
    with pytest.raises(UserError, match=r"1 of the 16 key patches seem to .* of video_\d/frame.png and") as refused:
        push_dataset(lettered, "me/frames")
    assert "--strategy optidel" not in str(refused.value)  # which this is
    record = read_curation(lettered)
    record.facts["strategy"] = "hardest"
    with pytest.raises(UserError, match="`--strategy optidel` cuts most of them"):
        refuse_burned_in_text(record)
    assert cli.main(["push", "--folder", str(lettered), "--repo_id", "me/frames"]) == 2
    assert hub.calls == []
    push_dataset(lettered, "me/list", selection_only=True)
    flags = ["--allow_text", "true", "--license", "cc0-1.0"]
    assert cli.main(["push", "--folder", str(lettered), "--repo_id", "me/frames", *flags]) == 0
    assert set(SHARDS) < set(hub.repo("me/frames").files)
    assert hub.repo("me/frames").private
    assert DatasetCard(text(hub, "me/frames")).data.license == "cc0-1.0"


def test_sources_with_burned_in_text_are_named_once_and_in_order(
    curation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burned_in, "BATCH", 5)
    lettered = shutil.copytree(curation, tmp_path / "lettered")
    for path in existing_shards(lettered / "scores"):
        rows = [row | {"text": 0.03} for row in pq.read_table(path).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows), path)
    first, second, third, *_ = sorted(set(read_curation(lettered).selection["source"].to_pylist()))
    with pytest.raises(UserError) as refused:
        refuse_burned_in_text(read_curation(lettered))
    assert (
        f"16 of the 16 key patches seem to have burned-in text (`text` above 0.02), of {first}, {second}, {third} "
        in (str(refused.value))
    )


def test_text_that_was_not_scored_is_looked_for_in_the_patches(hub: HubServer, curation: Path, tmp_path: Path) -> None:
    unscored = shutil.copytree(curation, tmp_path / "unscored")
    shutil.rmtree(unscored / "scores")
    page = Image.new("RGB", (48, 48), "grey")
    plain = png(page)
    for top in range(-2, 48, 10):
        ImageDraw.Draw(page).text((0, top), "MHE4A8WNKB", fill="white")
    chosen = {patch_key(row) for row in pq.read_table(unscored / "selection.parquet").to_pylist()}
    last = max(find_rows(unscored / "patches", chosen).values())

    def write_patches(images: dict[Row, dict[str, Any]]) -> None:
        """The chosen patches plain but for `images`; the others keep their noise, which passes for text."""
        for shard, path in enumerate(existing_shards(unscored / "patches")):
            rows = pq.read_table(path).to_pylist()
            for number, row in enumerate(rows):
                if patch_key(row) in chosen:
                    row["image"] = images.get((shard, number), plain)
            pq.write_table(pa.Table.from_pylist(rows), path)

    write_patches({})
    scored = {"assets/scores.png": b"old", "scores/shard-00000-of-00001.parquet": b"old"}  # of an earlier push
    hub.put("me/frames", "datasets", {"README.md": b"---\ntags:\n- optidel\n---\n", **scored}, private=True)
    push_dataset(unscored, "me/frames")
    assert sorted(hub.repo("me/frames").files) == sorted({*SHARDS[3:], *SMALL} - {"assets/scores.png"})
    configs = DatasetCard(text(hub, "me/frames")).data.configs
    assert [config["config_name"] for config in configs] == ["default", "selection"]
    write_patches({last: png(page)})
    with pytest.raises(UserError, match="1 of the 16 key patches seem to have burned-in text"):
        push_dataset(unscored, "me/frames")
    shutil.copytree(curation / "scores", unscored / "scores")
    existing_shards(unscored / "scores")[-1].unlink()  # scoring that did not end: another strategy needs none
    with pytest.raises(UserError, match="1 of the 16 key patches seem to have burned-in text"):
        refuse_burned_in_text(read_curation(unscored))
    shutil.rmtree(unscored / "scores")
    for path in existing_shards(unscored / "patches"):
        path.unlink()
    with pytest.raises(UserError, match="it cannot be told whether they have burned-in text"):
        push_dataset(unscored, "me/frames")
    push_dataset(unscored, "me/frames", allow_text=True)


@pytest.mark.parametrize("fault", [{"status": 500}, {"cut": True}], ids=["500", "cut"])
def test_a_push_that_broke_off_goes_on(
    hub: HubServer, curation: Path, patient: list[float], fault: dict[str, Any]
) -> None:
    hub.arm(Fault("PUT /lfs", after=2, **fault))
    with pytest.raises(UserError, match=r"pushing to me/frames failed .* the same push goes on") as broken:
        push_dataset(curation, "me/frames")
    assert str(fault.get("status", "Error")) in str(broken.value)
    assert len(hub.uploads) == 2
    assert hub.repo("me/frames").files == {}
    hub.arm()
    push_dataset(curation, "me/frames")
    large = {file.sha256 for file in hub.repo("me/frames").files.values() if file.large}
    assert len(hub.uploads) == len(set(hub.uploads)) == len(large)


def test_a_killed_push_shows_nothing_and_goes_on(hub: HubServer, curation: Path) -> None:
    hub.arm(Fault("PUT /lfs", after=2, wait=60))  # the third file hangs
    child = multiprocessing.get_context("fork").Process(target=push_dataset, args=(curation, "me/frames"), daemon=True)
    child.start()
    while len(hub.uploads) < 2:
        assert child.is_alive(), "the child ended before it was killed"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert hub.repo("me/frames").files == {}
    hub.arm()
    push_dataset(curation, "me/frames")
    large = {file.sha256 for file in hub.repo("me/frames").files.values() if file.large}
    assert len(hub.uploads) == len(set(hub.uploads)) == len(large)


def test_a_refused_commit_shows_nothing(hub: HubServer, curation: Path) -> None:
    hub.arm(Fault("/commit/", status=500, times=1))
    with pytest.raises(UserError, match="500") as refused:
        push_dataset(curation, "me/frames")
    assert "For more information" not in str(refused.value)  # the HTTP library's link says nothing of the Hub
    assert hub.repo("me/frames").files == {}
    sent = list(hub.uploads)
    push_dataset(curation, "me/frames")
    assert hub.uploads == sent
    assert set(SHARDS) < set(hub.repo("me/frames").files)


def test_an_update_replaces_shards_and_keeps_what_is_the_owners(
    hub: HubServer, curation: Path, tmp_path: Path
) -> None:
    push_dataset(curation, "me/frames")
    repo = hub.repo("me/frames")
    card = text(hub, "me/frames").replace("license: unknown", "license: mit\nlanguage: de")
    card = card.replace("tags:", "tags:\n- endoscopy")
    api = HfApi()
    for path, content in (("README.md", card.encode()), ("notes/mine.md", b"mine"), ("scores/old.md", b"old")):
        api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id="me/frames", repo_type="dataset")

    other = shutil.copytree(curation, tmp_path / "out")
    for path in (other / "scores").glob("*-00003.parquet"):
        path.rename(path.with_name(path.name.replace("00003", "00004")))
    push_dataset(other, "me/frames")
    assert "notes/mine.md" in repo.files
    assert [path for path in repo.files if path.startswith("scores/")] == [
        f"scores/shard-{i:05d}-of-00004.parquet" for i in range(3)
    ]
    assert "(declared licence: mit)" in text(hub, "me/frames")
    kept = DatasetCard(text(hub, "me/frames")).data
    assert (kept.license, kept.language) == ("mit", "de")
    assert kept.tags == ["optidel", "data-curation", "self-supervised-learning", "endoscopy"]


def test_a_tag_without_a_list_is_one_tag() -> None:
    kept = DatasetCard(transfer._with_kept_metadata("---\ntags:\n- optidel\n---\n", {"tags": "endoscopy"}))
    assert kept.data.tags == ["optidel", "endoscopy"]


def test_a_commit_of_someone_else_meanwhile_is_not_overrun(
    hub: HubServer, curation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = transfer._upload

    def disturbed(target: transfer.Target, *rest: Any) -> None:
        file = {"path_or_fileobj": b"mine", "path_in_repo": "mine.md"}
        target.api.upload_file(**file, repo_id="me/frames", repo_type="dataset")
        upload(target, *rest)

    monkeypatch.setattr(transfer, "_upload", disturbed)
    with pytest.raises(UserError, match="A commit has happened since"):
        push_dataset(curation, "me/frames")
    assert list(hub.repo("me/frames").files) == ["mine.md"]


def test_more_files_than_one_commit_takes_become_visible_at_once(
    hub: HubServer, curation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FILES_PER_COMMIT", 4)
    hub.arm(Fault("/merge", status=500, times=1))
    with pytest.raises(UserError, match="500"):
        push_dataset(curation, "me/frames")
    repo = hub.repo("me/frames")
    assert repo.files == {}
    assert len(repo.history["refs/pr/1"]) == 4  # main's, and three commits of 4, 4 and 1 files
    push_dataset(curation, "me/frames")
    assert sorted(repo.files) == sorted([*SHARDS, *SMALL])
    assert len(repo.history["main"]) == 2
    assert len(hub.uploads) == len(set(hub.uploads))


def test_other_peoples_and_public_repositories_are_left_alone(hub: HubServer, curation: Path) -> None:
    hub.put("me/other", "datasets", {"data.csv": b"1,2", "README.md": b"---\nlicense: mit\n---\n"}, private=True)
    with pytest.raises(UserError, match=r"holds something else \('data.csv' for one\)"):
        push_dataset(curation, "me/other")
    hub.put("me/open", "datasets", {"README.md": b"---\nlicense: mit\n---\n", "LICENSE.md": b"MIT"})
    with pytest.raises(UserError, match="me/open is public: give --private false") as refused:
        push_dataset(curation, "me/open")
    assert "failed" not in str(refused.value)  # nothing was begun that could go on
    assert sorted(hub.repo("me/open").files) == ["LICENSE.md", "README.md"]
    push_dataset(curation, "me/open", private=False)
    assert set(SHARDS) < set(hub.repo("me/open").files)
    with pytest.raises(UserError, match="403"):
        push_dataset(curation, "you/frames")


def test_without_a_place_or_a_token_nothing_begins(
    hub: HubServer,
    curation: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="'frames' is no repository on the Hub: give owner/name"):
        PublishConfig(push_to_hub="frames")
    for wrong in ("me/a b", "me/", "/frames", "me/frames.git"):
        with pytest.raises(UserError, match=r"is no repository on the Hub \(.*\): give owner/name"):
            PublishConfig(push_to_hub=wrong)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for begin in (lambda: PublishConfig(push_to_hub="me/frames"), lambda: push_dataset(curation, "me/frames")):
        with pytest.raises(UserError, match="There is no token to push with"):
            begin()
    assert cli.main(["curate", "--dataset", str(tmp_path), "--push_to_hub", "me/frames"]) == 2
    assert "There is no token to push with" in capsys.readouterr().err
    assert hub.calls == []


def test_the_token_is_told_to_nobody(
    hub: HubServer,
    curation: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    patient: list[float],
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = shutil.copytree(curation, tmp_path / "out")
    arguments = ["push", "--folder", str(folder), "--repo_id", "me/frames"]
    hub.arm(Fault("PUT /lfs", status=500))
    assert cli.main(arguments) == 2
    hub.arm()
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert out == f"pushed: {hub.url}/datasets/me/frames\n"
    assert "optidel push: pushing to me/frames failed" in err
    said = [out, err, caplog.text]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    pushed = [file.content for file in hub.repo("me/frames").files.values()]
    assert len(written) > 10
    assert len(pushed) == 9
    assert not any(hub.token in text for text in said)
    assert not any(hub.token.encode() in content for content in written + pushed)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "vit"
    for part in (folder, folder / "backbone"):
        part.mkdir()
        save_file({}, part / "model.safetensors")
        for name in ("config.json", "preprocessor_config.json"):
            (part / name).write_text("{}")
    (folder / "pretrain_config.json").write_text(json.dumps(RUN))
    (folder / "metrics.jsonl").write_text("")
    write_provenance(folder, RAW)
    return folder


def test_a_model_goes_up_with_its_scores(hub: HubServer, model: Path, results: Any) -> None:
    evaluation = results(model / "results.json", {"optidel": 0.6123, "random": 0.5877})
    push_model(model, "me/vit")
    before = ModelCard(text(hub, "me/vit", "models"))
    assert before.data.eval_results is None
    assert hub.repo("me/vit", "models").private
    assert push_model(model, "me/vit", results=evaluation, arm="optidel", license="mit") == f"{hub.url}/me/vit"
    card = ModelCard(text(hub, "me/vit", "models"))
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert card.data.model_name == "vit"
    assert scores == {
        "mean IoU, finetune, mean of 3 seeds": 0.6123,
        "mean IoU, probe, mean of 3 seeds": pytest.approx(0.5123),
    }
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    parts = [f"{part}{name}" for part in ("", "backbone/") for name in names]
    assert {*parts, "pretrain_config.json"} < set(hub.repo("me/vit", "models").files)
    assert "provenance.json" not in hub.repo("me/vit", "models").files

    assert "(declared: mit)" in card.text
    card.data["base_model"], card.data["datasets"], card.data["language"] = "me/other", ["me/other"], "de"
    card.data["tags"] = [*card.data["tags"], "vit", "mine"]
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="me/vit")
    push_model(model, "me/vit")  # what the old card says of its weights is not true of these
    after = ModelCard(text(hub, "me/vit", "models"))
    data = after.data
    assert data.license == "mit"
    assert "(declared: mit)" in after.text
    assert [data.get(name) for name in ("base_model", "datasets", "metrics", "model_name")] == [None] * 4
    assert data.language == "de"
    assert "mine" in data.tags
    assert ("vit" in data.tags) != ("vit_mae" in data.tags)

    with pytest.raises(UserError, match="no such arm in the results, which have optidel, random"):
        push_model(model, "me/vit", results=evaluation, arm="full")
    with pytest.raises(UserError, match="--results is given without --arm"):
        push_model(model, "me/vit", results=evaluation)
    with pytest.raises(UserError, match="--arm is given without --results"):
        push_model(model, "me/vit", arm="optidel")
    with pytest.raises(UserError, match=r"pretrain_config\.json is no results\.json of `optidel evaluate`"):
        push_model(model, "me/vit", results=model / "pretrain_config.json", arm="optidel")
    (model / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        push_model(model, "me/vit")
    (model / "model.safetensors").unlink()
    (model / "backbone" / "model.safetensors").unlink()
    save_file({}, model / "projection_head.safetensors")  # is no model
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        push_model(model, "me/vit")


def test_scores_of_other_weights_are_refused(hub: HubServer, model: Path, results: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(model / "backbone")
    evaluation = results(tmp_path / "results.json", {"optidel": 0.6, "none": 0.5})
    told = json.loads(evaluation.read_text())
    own = load_backbone(str(model)).fingerprint()
    told["rows"] = [{"arm": "optidel", "weights": own}, {"arm": "none", "weights": "another"}]
    evaluation.write_text(json.dumps(told))
    push_model(model, "me/vit", results=evaluation, arm="optidel")
    assert load_backbone("me/vit").fingerprint() == own
    with pytest.raises(UserError, match="--arm none: the results are of other weights"):
        push_model(model, "me/vit", results=evaluation, arm="none")


def test_another_objectives_files_do_not_stay(hub: HubServer, model: Path) -> None:
    save_file({}, model / "projection_head.safetensors")
    push_model(model, "me/vit")
    assert "projection_head.safetensors" in hub.repo("me/vit", "models").files
    (model / "projection_head.safetensors").unlink()
    push_model(model, "me/vit")
    assert "projection_head.safetensors" not in hub.repo("me/vit", "models").files


def test_what_lies_beside_ours_or_in_the_owners_folders_stays(hub: HubServer, curation: Path, model: Path) -> None:
    push_dataset(curation, "me/frames")
    push_model(model, "me/vit")
    api = HfApi()
    for kind, repo, path in (
        ("dataset", "me/frames", "assets/mine.png"),
        ("model", "me/vit", "adapter/adapter_model.safetensors"),
        ("model", "me/vit", "backbone/notes.safetensors"),
    ):
        api.upload_file(path_or_fileobj=b"mine", path_in_repo=path, repo_id=repo, repo_type=kind)
    push_dataset(curation, "me/frames")
    push_model(model, "me/vit")
    assert "assets/mine.png" in hub.repo("me/frames").files
    assert {"adapter/adapter_model.safetensors", "backbone/notes.safetensors"} < {*hub.repo("me/vit", "models").files}


def test_a_metric_goes_up_as_a_space(hub: HubServer) -> None:
    folder = Path(metrics.__file__).parent / "normdel"
    with pytest.raises(UserError, match="must end in /normdel"):
        push_metric(folder, "me/metric")
    assert cli.main(["push", "--folder", str(folder), "--repo_id", "me/normdel", "--private", "false"]) == 0
    files = hub.repo("me/normdel", "spaces").files
    assert sorted(files) == ["README.md", "app.py", "normdel.py", "requirements.txt"]
    assert files["normdel.py"].content == (folder / "normdel.py").read_bytes()
    assert b'evaluate.load("me/normdel")' in files["app.py"].content
    assert files["requirements.txt"].content.split() == [b"evaluate", b"numpy"]
    assert not hub.repo("me/normdel", "spaces").private
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id="me/normdel", repo_type="space")
    push_metric(folder, "me/normdel", private=False)
    assert "notes.md" in hub.repo("me/normdel", "spaces").files


def test_a_folder_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["push", "--folder", str(tmp_path), "--repo_id", "me/x"]) == 2
    assert "is no output of `optidel curate`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("holds", "flag", "refusal"),
    [
        ("inputs.parquet", "--results x.json --arm a", "--results and --arm says nothing of a curation"),
        ("pretrain_config.json", "--selection_only true", "--selection_only says nothing of a pre-training"),
        ("pretrain_config.json", "--allow_text true", "--allow_text says nothing of a pre-training"),
        ("a.py", "--arm optidel", "--arm says nothing of a metric"),
        ("a.py", "--allow_text true", "--allow_text says nothing of a metric"),
    ],
)
def test_a_flag_for_another_kind_of_folder_is_refused(
    holds: str, flag: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "a").mkdir()
    (folder / holds).touch()
    assert cli.main(["push", "--folder", str(folder), "--repo_id", "me/x", *flag.split()]) == 2
    assert refusal in capsys.readouterr().err


def test_a_dataset_is_known_by_its_commit(hub: HubServer, curation: Path) -> None:
    repo = hub.put("me/frames", "datasets", {"selection.parquet": (curation / "selection.parquet").read_bytes()})
    commit, facts = repo.history["main"][-1].oid, curation_facts(curation)
    known = {"name": "me/frames", "hub_id": "me/frames", "revision": commit, "curation": facts}
    assert dataset_facts("me/frames", "main") == known
    HfApi().delete_file("selection.parquet", "me/frames", repo_type="dataset")
    assert dataset_facts("me/frames")["curation"] is None
    assert dataset_facts("me/frames", commit) == known


def test_without_a_connection_a_file_is_not_taken_for_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be told without the Hub"):
        find_file("me/frames", "selection.parquet", "a" * 40)
