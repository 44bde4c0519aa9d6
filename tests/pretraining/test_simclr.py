from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from children import CHILDREN
from PIL import Image
from safetensors.torch import load_file
from tiny_sizes import TINY_SIZES
from transformers import AutoModel, ViTConfig, ViTModel, pipeline

from optidel_hf.errors import UserError
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.objectives.mae import build_mae
from optidel_hf.pretraining.objectives.simclr import SimCLR, nt_xent
from optidel_hf.pretraining.objectives.vit import build_vit
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


def _simclr(seed: int = 0) -> SimCLR:
    torch.manual_seed(seed)
    return SimCLR(build_vit(None, seed, "eager", **TINY_SIZES), temperature=0.5, projection_size=16)


def _views(count: int = 6) -> torch.Tensor:
    return torch.randn(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_the_loss_is_the_papers_equation() -> None:
    z = torch.randn(10, 7, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for i in range(10):
        similar = [torch.cosine_similarity(z[i], z[k], dim=0).item() / 0.3 for k in range(10)]
        negatives = sum(math.exp(similar[k]) for k in range(10) if k != i)
        total -= math.log(math.exp(similar[(i + 5) % 10]) / negatives)
    assert nt_xent(z, 0.3).item() == pytest.approx(total / 10, rel=1e-5)


def test_orthogonal_pairs_cost_what_a_count_says() -> None:
    # Both views of each of 4 images coincide and the images are orthogonal: e^(1/t) against it and 6 times e^0.
    z = torch.eye(4).repeat(2, 1)
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))


def test_the_loss_is_float32_whatever_autocast_says() -> None:
    z = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(z, 0.1), nt_xent(z, 0.1).float())
        loss = nt_xent(z, 0.1)
    torch.testing.assert_close(loss, nt_xent(z, 0.1), atol=0, rtol=0)


def _one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    objective = torch.nn.parallel.DistributedDataParallel(_simclr())
    loss = objective(*_views()[:, 3 * rank : 3 * rank + 3])
    loss.backward()
    gradients = [p.grad for p in objective.parameters() if p.requires_grad]
    torch.save((loss.detach(), gradients), folder / f"{rank}.pt")
    # Taking gloo's group apart hangs one run in fifty: it holds Python's lock and waits for a thread that wants it.
    os._exit(0)


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path) -> None:
    ranks = [CHILDREN.Process(target=_one_of_two, args=(rank, tmp_path), daemon=True) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    objective = _simclr()
    loss = objective(*_views())
    loss.backward()
    expected = [p.grad for p in objective.parameters() if p.requires_grad]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss.detach())
    assert max(gradient.abs().max() for gradient in expected) > 1e-2
    for gradients in (found[0][1], found[1][1]):
        torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)


def test_it_learns_to_tell_images_apart(images, tmp_path) -> None:
    # Their colours tell these images apart, so colours stay as they are.
    changes = {"objective": "simclr", "color_jitter": 0.0, "grayscale": 0.0, "steps": 40, "checkpoint_every": 40}
    Pretrainer(tiny_config(tmp_path, **changes), images).train()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]) < 0.5 * math.log(31)  # one of 31 other views by chance


def test_what_is_saved_is_a_backbone_and_beside_it_the_head(images, tmp_path) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, objective="simclr", steps=1), images)
    pretrainer.train()
    pretrainer.save()
    trained, folder = pretrainer.accelerator.unwrap_model(pretrainer.objective), tmp_path / "backbone"
    assert not (tmp_path / "model.safetensors").exists()
    assert not any(name.startswith(("pooler", "head")) for name in load_file(folder / "model.safetensors"))
    head = load_file(tmp_path / "projection_head.safetensors")
    assert {name: tuple(weight.shape) for name, weight in head.items()} == {
        "0.weight": (32, 32),
        "0.bias": (32,),
        "2.weight": (128, 32),
    }
    assert all(torch.equal(weight, trained.head.state_dict()[name]) for name, weight in head.items())
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    pixels = image_processor(32)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = trained.model(pixels).last_hidden_state
        torch.testing.assert_close(AutoModel.from_pretrained(folder)(pixels).last_hidden_state, expected)
    features = pipeline("image-feature-extraction", model=str(folder))
    found = torch.tensor(features(picture))
    assert found.shape == (1, 17, 32)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(found, torch.tensor(features(picture)))


def test_it_starts_from_a_vit_or_a_mae(tmp_path) -> None:
    mae = build_mae(**TINY_SIZES, seed=4)
    mae.save_pretrained(tmp_path / "mae")
    vit = build_vit(str(tmp_path / "mae"), 0, "eager")
    torch.testing.assert_close(vit.state_dict(), mae.vit.state_dict())
    assert vit.pooler is None
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).half().save_pretrained(tmp_path)
    assert build_vit(str(tmp_path), 0, "sdpa").dtype == torch.float32
    with pytest.raises(UserError, match="nowhere is no folder or Hub id of a ViT"):
        build_vit(str(tmp_path / "nowhere"), 0, "eager")


def test_a_new_encoder_is_told_by_its_seed_and_knows_places() -> None:
    first, again, other = (build_vit(None, seed, "eager", **TINY_SIZES) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters()))
    assert not torch.equal(first.layers[0].mlp.fc1.weight, other.layers[0].mlp.fc1.weight)
    table = first.embeddings.position_embeddings
    assert not table.requires_grad
    assert torch.cdist(table[0], table[0]).fill_diagonal_(1).min() > 0.1


def test_the_head_is_what_it_is_told_to_be(tmp_path) -> None:
    def made(**changes: object) -> SimCLR:
        return SimCLR.from_config(tiny_config(tmp_path, objective="simclr", **changes), "eager")

    told = made(temperature=0.3, projection_size=24, seed=5)
    assert (told.temperature, told.head[2].weight.shape) == (0.3, (24, 32))
    again, other = made(projection_size=24, seed=5), made(projection_size=24, seed=6)
    assert torch.equal(told.head[0].weight, again.head[0].weight)
    assert not torch.equal(told.head[0].weight, other.head[0].weight)
