"""What must not change a training: where it was stopped, what is computed twice or compiled, how it is sharded."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from children import CHILDREN
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from optidel_hf.errors import Preempted, UserError
from optidel_hf.pretraining import trainer
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding
from optidel_hf.pretraining.trainer import Pretrainer

from .test_launch_configs import launch_arguments
from .tiny import free_port, run_child, tiny_config


COUNT, STEPS = 40, 10  # 16 images a step: four epochs, and the first ends amid the third step


def _numbered() -> torch.Tensor:
    """Images of one grey each, which no crop changes: image `i` has the value `6 i`."""
    return (6 * torch.arange(COUNT, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, 40, 40).contiguous()


def _images_read(pretrainer: Pretrainer, stop_after: int | None = None) -> list[int]:
    """The numbers of the images that the model really gets, step by step, until the run ends or is stopped."""
    read: list[int] = []

    def note(module: torch.nn.Module, views: tuple[torch.Tensor, ...], rest: dict[str, torch.Tensor]) -> None:
        grey = 255 * (views[0].mean(dim=(1, 2, 3)) * np.mean(IMAGENET_DEFAULT_STD) + np.mean(IMAGENET_DEFAULT_MEAN))
        read.extend((grey / 6).round().int().tolist())
        if stop_after is not None and len(read) == 16 * stop_after:
            signal.raise_signal(signal.SIGTERM)

    pretrainer.objective.register_forward_pre_hook(note, with_kwargs=True)
    try:
        pretrainer.train()
    except Preempted:
        assert stop_after is not None
    return read


def test_a_run_stopped_amid_an_epoch_reads_every_image_once_an_epoch(tmp_path) -> None:
    images, config = _numbered(), tiny_config(tmp_path / "stopped", steps=STEPS, checkpoint_every=100)
    first = _images_read(Pretrainer(config, images), stop_after=4)  # 64 images: amid the second epoch
    assert len(first) == 64
    read = first + _images_read(Pretrainer(config, images))
    for epoch in np.reshape(read, (4, COUNT)):
        assert sorted(epoch) == list(range(COUNT))
    assert read == _images_read(Pretrainer(tiny_config(tmp_path / "straight", steps=STEPS), images))


@pytest.mark.parametrize("stopped", [4, 9])
def test_the_last_steps_may_be_on_other_images(tmp_path, stopped: int) -> None:
    first, last = _numbered()[:20], _numbered()[20:]  # 8 steps on one, 2 on the other

    def pretrainer(name: str) -> Pretrainer:
        config = tiny_config(tmp_path / name, steps=STEPS, checkpoint_every=100, last_share=0.2)
        return Pretrainer(config, first, last=last)

    straight = _images_read(pretrainer("straight"))
    assert max(straight[:128]) < 20 <= min(straight[128:])
    assert straight == _images_read(pretrainer("stopped"), stop_after=stopped) + _images_read(pretrainer("stopped"))
    shown = pretrainer("straight").batches
    assert [row for step in range(STEPS) for row in shown.images_of(step)] == [number % 20 for number in straight]


def test_the_record_says_which_images_were_seen(tmp_path) -> None:
    first, last = _numbered()[:20], _numbered()[20:25]
    pretrainer = Pretrainer(tiny_config(tmp_path, steps=STEPS, last_share=0.2), first, last=last)
    pretrainer.train()
    pretrainer.save()
    record = json.loads((tmp_path / "pretrain_config.json").read_text())
    assert (record["n_images"], record["last_images"]) == (25, 5)
    hashes = tuple(hashlib.sha256(pool.numpy().data).hexdigest()[:16] for pool in (first, last))
    assert (record["images_sha256"], record["last_images_sha256"]) == hashes


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_of_no_step_or_of_all_is_refused(tmp_path, share: float) -> None:
    with pytest.raises(ValueError, match=f"last_share {share:g} of 4 steps is {round(4 * share)} of them"):
        tiny_config(tmp_path, steps=4, last_share=share)


def test_last_images_and_their_share_go_together(images, tmp_path) -> None:
    with pytest.raises(UserError, match="give --last_dataset"):
        Pretrainer(tiny_config(tmp_path, last_share=0.2), images)
    with pytest.raises(UserError, match="with --last_share"):
        Pretrainer(tiny_config(tmp_path), images, last=images)


def _losses(images: torch.Tensor, out: Path, **changes: Any) -> list[float]:
    Pretrainer(tiny_config(out, **changes), images).train()
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl")]


@pytest.mark.parametrize("objective", ["mae", "simclr"])
def test_gradient_checkpointing_saves_memory_and_changes_no_bit(images, tmp_path, objective: str) -> None:
    kept = {False: 0, True: 0}

    def count(tensor: torch.Tensor, checkpointing: bool) -> torch.Tensor:
        kept[checkpointing] += tensor.numel()
        return tensor

    losses = []
    for checkpointing in (False, True):
        noted = functools.partial(count, checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
            changes = {"steps": 3, "objective": objective, "gradient_checkpointing": checkpointing}
            losses.append(_losses(images, tmp_path / str(checkpointing), **changes))
    assert losses[0] == losses[1]
    assert 0 < kept[True] < 0.5 * kept[False]


def test_compiling_changes_rounding_only(images, tmp_path, monkeypatch) -> None:
    # The whole path but the last stage, which writes C++: that takes minutes, and is torch's own to test.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    changes = {"steps": 4, "gradient_accumulation_steps": 2}
    compiled = _losses(images, tmp_path / "compiled", **changes, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # nothing broke the graph or compiled it anew
    np.testing.assert_allclose(compiled, _losses(images, tmp_path / "eager", **changes), rtol=1e-5)


def _sharded_rank(*arguments: Any, **changes: Any) -> None:
    """
    One process of an FSDP training on CPUs, with the settings of `recipes/configs/gpu8_fsdp.yaml`.

    Accelerate shards on accelerators only; told that it is to shard, it does so with gloo all the same.
    """
    launched = prepare_multi_gpu_env(launch_arguments("gpu8_fsdp.yaml"))
    os.environ.update({name: value for name, value in launched.items() if name.startswith("FSDP_")})
    whole = trainer.make_accelerator

    def sharding(config: Any) -> Any:
        accelerator = whole(config)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # from the environment
        if accelerator.mixed_precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
        return accelerator

    trainer.make_accelerator = sharding
    save = Pretrainer.save

    def checked(pretrainer: Pretrainer) -> None:
        assert all(isinstance(weight, DTensor) for weight in pretrainer.objective.parameters())
        assert len(pretrainer.whole()._no_split_modules) == 1
        save(pretrainer)

    Pretrainer.save = checked  # type: ignore[method-assign]
    forward = MaskedAutoencoding.forward

    def in_float32(objective: MaskedAutoencoding, views: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        assert views.dtype == noise.dtype == torch.float32
        return forward(objective, views, noise=noise)

    MaskedAutoencoding.forward = in_float32  # type: ignore[assignment]
    run_child(*arguments, **changes)


def _sharded_run(out: Path, images: torch.Tensor, **changes: Any) -> None:
    port = free_port()
    ranks = [
        CHILDREN.Process(target=_sharded_rank, args=(out, images, rank, 2, port), kwargs=changes) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]


@pytest.mark.skipif(torch.__version__ < "2.9", reason="before torch 2.9 gloo adds up FSDP's gradients, for their mean")
def test_a_sharded_model_trains_resumes_and_is_saved_as_a_whole_one(images, tmp_path) -> None:
    whole, sharded, changes = tmp_path / "whole", tmp_path / "sharded", {"steps": 4, "checkpoint_every": 2}
    expected = _losses(images, whole, **changes)
    _sharded_run(sharded, images, **changes, reconstruct_every=4)
    straight = read_metrics(sharded / "metrics.jsonl")
    np.testing.assert_allclose([line["loss"] for line in straight], expected, rtol=1e-5)
    assert (sharded / "reconstructions" / "step-000004.png").exists()
    saved = load_file(sharded / "model.safetensors")

    (sharded / "checkpoints" / "step-000004" / "pytorch_model_fsdp_0" / "__1_0.distcp").write_bytes(b"damaged")
    _sharded_run(sharded, images, **changes)
    resumed = read_metrics(sharded / "metrics.jsonl")
    assert [line["loss"] for line in resumed] == [line["loss"] for line in straight]
    assert all(torch.equal(weight, saved[name]) for name, weight in load_file(sharded / "model.safetensors").items())


def test_a_sharded_model_in_bf16_is_trained_as_a_whole_one_is(images, tmp_path) -> None:
    changes = {"steps": 4, "mixed_precision": "bf16"}
    expected = _losses(images, tmp_path / "whole", **changes)
    _sharded_run(tmp_path / "sharded", images, **changes)
    losses = [line["loss"] for line in read_metrics(tmp_path / "sharded" / "metrics.jsonl")]
    np.testing.assert_allclose(losses, expected, rtol=2e-3)
