from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import CHILDREN
from datasets import Image
from hub_server import HubServer
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_sizes import TINY_SIZES
from torch.overrides import TorchFunctionMode
from transformers import AutoImageProcessor, ViTMAEForPreTraining, ViTModel

from optidel_hf.errors import UserError
from optidel_hf.files import alone_in
from optidel_hf.pretraining import accelerator
from optidel_hf.pretraining.checkpoints import start_over
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.trainer import Pretrainer, parameter_groups

from .test_stored import BROKEN, pictures, png, table
from .tiny import run_child, run_launched, tiny_config, torchrun


def _run(images: torch.Tensor, output_dir: Path, **changes: Any) -> list[dict[str, Any]]:
    pretrainer = Pretrainer(tiny_config(output_dir, **changes), images)
    pretrainer.train()
    pretrainer.save()
    return read_metrics(output_dir / "metrics.jsonl")


def _exactly(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines without their one figure that the clock decides."""
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def _losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def _weights_differ(one: Path, other: Path) -> float:
    """The largest difference over all that was saved: the model or the head, and the backbone."""
    first, second = ([load_file(file) for file in sorted(_saved(folder))] for folder in (one, other))
    assert [weights.keys() for weights in first] == [weights.keys() for weights in second]
    pairs = [(mine[name], its[name]) for mine, its in zip(first, second) for name in mine]
    return max((mine - its).abs().max().item() for mine, its in pairs)


def _saved(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), folder / "backbone" / "model.safetensors"]


def test_it_learns_and_the_rate_warms_up_and_follows_a_cosine(images, tmp_path) -> None:
    lines = _run(images, tmp_path, steps=60, warmup_steps=4, checkpoint_every=60)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert np.mean(_losses(lines)[-10:]) < 0.85 < 1 < np.mean(_losses(lines)[:10])  # predicting means costs 1
    peak = 2e-2 * 16 / 256
    rates = [line["lr"] for line in lines]
    assert rates[:5] == pytest.approx([0, peak / 4, peak / 2, 3 * peak / 4, peak])
    assert rates[4 + 28] == pytest.approx(peak / 2)  # half of the cosine's 56 steps
    assert rates[4 + 14] == pytest.approx(peak * (1 + math.cos(math.pi / 4)) / 2)


class NoWaiting(TorchFunctionMode):
    """Refuses what has the host wait until a GPU has done all that it was given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waiting = ("item", "tolist", "cpu", "numpy", "nonzero", "new_tensor", "__bool__", "__float__", "__int__")
        assert func.__name__ not in waiting, func
        assert func is not torch.tensor or "device" not in (kwargs or {}), "made on the host, and waited for"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"objective": "simclr"}, {"tile_augmentation": True, "tiles_per_mosaic": 4}])
def test_a_step_does_not_wait_for_the_device(changes, images, tmp_path) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, **changes), images)
    batches = pretrainer.batches.after(0)
    pretrainer.step(batches)  # what is made once
    with NoWaiting():
        pretrainer.step(batches)


@pytest.mark.parametrize("objective", ["mae", "simclr"])
def test_a_device_without_float64_trains(objective, images, tmp_path, no_float64) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, objective=objective, steps=2), images)
    with no_float64:
        pretrainer.train()


def test_biases_norms_and_fixed_tables_do_not_decay(images, tmp_path) -> None:
    model = Pretrainer(tiny_config(tmp_path), images).model
    decayed, spared = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in spared["params"])
    grouped = {names[id(p)] for p in decayed["params"] + spared["params"]}
    assert set(names.values()) - grouped == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


def test_killed_and_resumed_equals_straight_through_to_the_last_bit(images, tmp_path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    changes = {"steps": 50, "checkpoint_every": 10, "gradient_accumulation_steps": 2}
    child = CHILDREN.Process(target=run_child, args=(killed, images), kwargs=changes)
    child.start()
    last = random.randint(11, 35)  # at least one checkpoint is there
    while len(read_metrics(killed / "metrics.jsonl")) < last:
        assert child.is_alive(), "the child ended before it was killed"
        time.sleep(0.002)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(read_metrics(killed / "metrics.jsonl")) < 50
    resumed = _run(images, killed, **changes)
    assert _exactly(resumed) == _exactly(_run(images, straight, **changes))
    assert _weights_differ(killed, straight) == 0
    assert sorted(p.name for p in (killed / "checkpoints").glob("step-*")) == ["step-000040", "step-000050"]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"objective": "simclr", "base_learning_rate": 1e-3, "tile_augmentation": True, "tiles_per_mosaic": 4},
    ],
)
def test_two_processes_train_as_one(images, tmp_path, changes: dict[str, Any]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"steps": 8, **changes}
    torchrun(2, run_launched, two, images, changes)
    assert json.loads((two / "pretrain_config.json").read_text())["processes"] == 2
    expected, found = _run(images, one, **changes), read_metrics(two / "metrics.jsonl")
    assert [line["lr"] for line in found] == [line["lr"] for line in expected]
    np.testing.assert_allclose(_losses(found), _losses(expected), rtol=1e-5)
    np.testing.assert_allclose([f["grad_norm"] for f in found], [e["grad_norm"] for e in expected], rtol=1e-3)
    assert _weights_differ(one, two) < 1e-4


def test_accumulation_changes_rounding_only(images, tmp_path) -> None:
    changes = {"batch_size": 32, "base_learning_rate": 1e-2}  # a peak of 1.25e-3, as elsewhere here
    whole = _run(images, tmp_path / "whole", **changes)
    parts = _run(images, tmp_path / "parts", **changes, gradient_accumulation_steps=4)  # 4 x 8 against 1 x 32
    np.testing.assert_allclose(_losses(parts), _losses(whole), rtol=1e-5)
    np.testing.assert_allclose([p["grad_norm"] for p in parts], [w["grad_norm"] for w in whole], rtol=1e-4)
    assert _weights_differ(tmp_path / "parts", tmp_path / "whole") < 1e-4


def test_what_is_saved_loads_plainly(images, tmp_path) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, steps=2, norm_pix_loss=False, mask_ratio=0.5), images)
    pretrainer.train()
    pretrainer.save()
    mae, vit = ViTMAEForPreTraining.from_pretrained(tmp_path), ViTModel.from_pretrained(tmp_path / "backbone")
    assert (mae.config.norm_pix_loss, mae.config.mask_ratio) == (False, 0.5)
    for name, weight in mae.vit.state_dict().items():
        assert torch.equal(weight, vit.state_dict()[name])
        assert torch.equal(weight, pretrainer.model.vit.state_dict()[name])
    assert not any(name.startswith("pooler") for name in load_file(tmp_path / "backbone" / "model.safetensors"))
    for folder in (tmp_path, tmp_path / "backbone"):
        processor = AutoImageProcessor.from_pretrained(folder)
        assert processor.size["height"] == 32
        assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert not list(tmp_path.rglob(".*"))


def test_the_record_holds_the_configuration_and_the_facts(images, tmp_path) -> None:
    lines = _run(images, tmp_path, steps=3)
    record = json.loads((tmp_path / "pretrain_config.json").read_text())
    assert (record["steps"], record["base_learning_rate"], record["peak_learning_rate"]) == (3, 2e-2, 1.25e-3)
    assert (record["n_images"], record["device"], record["processes"]) == (len(images), "cpu", 1)
    assert record["final_loss"] == pytest.approx(np.mean(_losses(lines)))
    assert record["versions"]["torch"] == torch.__version__


def test_a_finished_run_stays_finished_and_starts_over_on_request(images, tmp_path) -> None:
    lines = _run(images, tmp_path, steps=4)
    assert _run(images, tmp_path, steps=4) == lines
    again = _run(images, tmp_path, steps=4, resume="never")
    assert _exactly(again) == _exactly(lines)
    assert again != lines  # the clock is another


def test_a_finished_model_without_its_checkpoints_is_not_written_over(images, tmp_path) -> None:
    _run(images, tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"holds a finished model, and no checkpoint .* --resume never"):
        _run(images, tmp_path, steps=2, seed=1)


def test_a_disk_that_is_full_at_the_end_is_told(images, tmp_path, monkeypatch) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, steps=2), images)
    pretrainer.train()

    def refuse(*_: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(type(pretrainer.objective), "save", refuse)
    with pytest.raises(UserError, match=r"cannot be written .*No space left.*: make room there"):
        pretrainer.save()


def test_an_output_that_another_process_is_at_work_in_is_left_to_it(images, tmp_path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="Another process is at work in --output_dir"):
        _run(images, tmp_path, steps=2, resume="never")
    assert not list(tmp_path.iterdir())
    _run(images, tmp_path, steps=2)


def test_the_gpu_that_is_asked_for_is_taken(tmp_path, monkeypatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(accelerator, "resolve_device", torch.device)
    monkeypatch.setattr(accelerator, "Accelerator", lambda **options: options)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for device in ("cuda:1", "cuda"):
        assert not accelerator.make_accelerator(tiny_config(tmp_path, device=device))["cpu"]  # type: ignore[index]
    assert taken == [torch.device("cuda:1")]


def test_the_environment_changes_no_number_of_parts(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    made = accelerator.make_accelerator(tiny_config(tmp_path, gradient_accumulation_steps=2))
    assert made.gradient_accumulation_steps == 2


def test_a_curations_own_folder_is_left_to_it(images, tmp_path) -> None:
    (tmp_path / "inputs.parquet").touch()
    with pytest.raises(UserError, match=f"{tmp_path} is a curation's: give the model another folder, such as"):
        Pretrainer(tiny_config(tmp_path), images)
    for place in ("scores", "curated", "curated/vit"):
        with pytest.raises(UserError, match=f"is part of the curation {tmp_path}: give another folder"):
            Pretrainer(tiny_config(tmp_path / place), images)
    Pretrainer(tiny_config(tmp_path / "vit"), images)


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_a_dataset_is_trained_on_whatever_its_format_and_broken_images(tmp_path, caplog, kind: str | None) -> None:
    values = [png(pixels) for pixels in pictures(6)]
    values[2] = BROKEN
    dataset = table(values).cast_column("image", Image()).with_format(kind)
    Pretrainer(tiny_config(tmp_path, steps=2), dataset).train()
    assert caplog.text.count("is left out, the next one takes its place") == 1
    with pytest.raises(UserError, match=r"Images must be a datasets\.Dataset or a uint8 tensor"):
        Pretrainer(tiny_config(tmp_path), np.zeros((4, 3, 32, 32), np.uint8))  # type: ignore[arg-type]


def test_another_configuration_or_other_images_are_refused(images, tmp_path) -> None:
    _run(images, tmp_path, steps=2)
    with pytest.raises(UserError, match=r"seed was 0, now 1, steps was 2, now 3"):
        Pretrainer(tiny_config(tmp_path, steps=3, seed=1), images).train()
    with pytest.raises(UserError, match="images was"):
        Pretrainer(tiny_config(tmp_path, steps=2), images[:-1]).train()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_files_that_no_run_has_written_are_left_alone(images, tmp_path, name) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"{name} is of something else and would be replaced: give another"):
        Pretrainer(tiny_config(tmp_path, steps=2), images).train()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_weights_can_be_read_by_whom_other_files_can(images, tmp_path) -> None:
    _run(images, tmp_path, steps=1, objective="simclr")
    written = [tmp_path / "projection_head.safetensors", *(tmp_path / "backbone").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask()}


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_starting_over_leaves_nothing_of_the_model_before(images, tmp_path) -> None:
    _run(images, tmp_path, steps=2, reconstruct_every=2)
    found_out = ["held_out.json", "downstream.json", "provenance.json", "nonfinite.json"]
    for name in found_out:
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("the user's own")
    with pytest.raises(UserError, match=r"--model .*backbone lies in --output_dir .*: give another one"):
        _run(images, tmp_path, steps=2, resume="never", model=str(tmp_path / "backbone"), objective="simclr")
    assert (tmp_path / "model.safetensors").exists()
    _run(images, tmp_path, steps=2, resume="never", objective="simclr")
    of_the_run = {"backbone", "checkpoints", "metrics.jsonl", "pretrain_config.json", "projection_head.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {*of_the_run, "notes.txt"}
    _run(images, tmp_path, steps=2, resume="never")
    assert not (tmp_path / "projection_head.safetensors").exists()


def test_only_a_finished_runs_model_is_removed(tmp_path) -> None:
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (tmp_path / name).touch()
    start_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_training_goes_on_from_a_given_model(images, tmp_path) -> None:
    _run(images, tmp_path / "first", steps=30)
    given = {"hidden_size": 64, "image_size": 64, "patch_size": 16, "decoder_hidden_size": 64}
    lines = _run(images, tmp_path / "second", steps=2, model=str(tmp_path / "first"), **given)
    assert lines[0]["loss"] < 0.8 * read_metrics(tmp_path / "first" / "metrics.jsonl")[0]["loss"]
    assert ViTModel.from_pretrained(tmp_path / "second" / "backbone").config.hidden_size == 32
    record = json.loads((tmp_path / "second" / "pretrain_config.json").read_text())
    assert {name: record[name] for name in given} == {name: TINY_SIZES[name] for name in given}


def test_a_start_that_has_changed_is_noticed(images, tmp_path) -> None:
    start = {"steps": 2, "model": str(tmp_path / "first")}
    _run(images, tmp_path / "first", steps=1)
    _run(images, tmp_path / "second", **start)
    _run(images, tmp_path / "first", steps=1, seed=5, resume="never")
    with pytest.raises(UserError, match="was made by another run: weights was"):
        _run(images, tmp_path / "second", **start)


def test_a_start_that_has_moved_on_the_hub_is_gone_on_from_by_its_commit(hub: HubServer, images, tmp_path) -> None:
    _run(images, tmp_path / "first", steps=1)
    files = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir() if path.is_file()}
    repo = hub.put("me/first", "models", files)
    first = repo.history["main"][-1].oid
    lines = _run(images, tmp_path / "second", steps=2, model="me/first")
    repo.commit("main", dict(repo.files), "moved")
    with pytest.raises(UserError, match=f"weights was '{first}', now"):
        _run(images, tmp_path / "second", steps=2, model="me/first")
    assert _run(images, tmp_path / "second", steps=2, model="me/first", model_revision=first) == lines


def test_a_loss_that_explodes_ends_the_run_before_it_is_saved(images, tmp_path) -> None:
    with pytest.raises(UserError, match=r"The loss is (nan|inf) at step \d+"):
        _run(images, tmp_path, base_learning_rate=1e22, log_every=10, checkpoint_every=5)
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        assert all(w.isfinite().all() for w in load_file(checkpoint / "model.safetensors").values())


def test_bfloat16_and_float32_runs_may_follow_each_other(images, tmp_path) -> None:
    half = _run(images, tmp_path / "bf16", steps=3, mixed_precision="bf16")
    full = _run(images, tmp_path / "full", steps=3)
    assert half[0]["loss"] != full[0]["loss"]
    np.testing.assert_allclose(_losses(half), _losses(full), rtol=2e-2)


def test_what_cannot_be_trained_on_is_refused(images, tmp_path) -> None:
    with pytest.raises(UserError, match=r"--batch_size 16 .* 1 processes x --gradient_accumulation_steps 3 = 3"):
        Pretrainer(tiny_config(tmp_path, gradient_accumulation_steps=3), images)
    with pytest.raises(UserError, match=r"uint8 tensor \(N, 3, S, S\), not torch.float32"):
        Pretrainer(tiny_config(tmp_path), images.float())
    with pytest.raises(UserError, match="no images"):
        Pretrainer(tiny_config(tmp_path), images[:0])


def test_adamw_has_the_papers_momenta_and_the_decay_that_was_asked_for(images, tmp_path) -> None:
    groups = Pretrainer(tiny_config(tmp_path, weight_decay=0.3), images).optimizer.param_groups
    assert [(group["betas"], group["weight_decay"]) for group in groups] == [((0.9, 0.95), 0.3), ((0.9, 0.95), 0.0)]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_long_gradient_is_scaled_to_what_was_asked_for(images, tmp_path, parts: int) -> None:
    changes = {"max_grad_norm": 1e-3, "gradient_accumulation_steps": parts}
    pretrainer, norms = Pretrainer(tiny_config(tmp_path, **changes), images), []

    def note(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in weights]).item())

    pretrainer.optimizer.optimizer.register_step_pre_hook(note)
    _, told = pretrainer.step(pretrainer.batches.after(0))
    assert norms == pytest.approx([1e-3], rel=1e-3)
    assert told > 0.01  # before


def test_the_record_tells_the_time_of_all_steps_and_the_loss_of_the_last(images, tmp_path) -> None:
    lines = _run(images, tmp_path, steps=30, checkpoint_every=30)
    record = json.loads((tmp_path / "pretrain_config.json").read_text())
    assert record["final_loss"] == pytest.approx(np.mean(_losses(lines)[-20:]))
    assert record["seconds"] == pytest.approx(sum(16 / line["images_per_second"] for line in lines), abs=0.06)
