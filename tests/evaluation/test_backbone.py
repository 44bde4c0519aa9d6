"""Encoders: exact loading of ViT and MAE checkpoints, fresh ones that can tell positions apart, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertModel, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from optidel_hf.errors import UserError
from optidel_hf.evaluation.backbone import fresh_backbone, load_backbone
from optidel_hf.pretraining.objectives.mae import build_mae
from optidel_hf.pretraining.objectives.vit import build_vit, load


DECODER = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}


@torch.no_grad()
def test_mae_checkpoint_gives_the_maes_own_tokens(tmp_path: Path, vit_folder: Path) -> None:
    sizes = {name: getattr(AutoConfig.from_pretrained(vit_folder), name) for name in ("image_size", "patch_size")}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    mae = build_mae(mask_ratio=0.0, **sizes, **DECODER).eval()
    mae.half().save_pretrained(tmp_path)
    mae.float()
    encoder = load_backbone(str(tmp_path)).encoder
    assert encoder.dtype == torch.float32
    images = torch.randn(2, 3, 32, 32)
    every_patch_in_order = torch.arange(64.0).repeat(2, 1)
    expected = mae.vit(images, noise=every_patch_in_order).last_hidden_state
    assert torch.allclose(encoder(images).last_hidden_state, expected, atol=1e-5)


def test_backbone_subfolder_and_its_normalisation_are_preferred(tmp_path: Path, vit_folder: Path) -> None:
    encoder = ViTModel.from_pretrained(vit_folder, add_pooling_layer=False)
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        encoder.layernorm.weight.fill_(2.0)
    encoder.save_pretrained(tmp_path / "backbone")
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "image_processor_type": "X"}
    (tmp_path / "backbone" / "preprocessor_config.json").write_text(json.dumps(processor))
    backbone = load_backbone(str(tmp_path))
    assert (backbone.encoder.layernorm.weight == 2.0).all()
    assert (backbone.mean, backbone.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert load_backbone(str(vit_folder)).mean == tuple(IMAGENET_DEFAULT_MEAN)


def test_a_file_that_was_cut_short_is_told(tmp_path: Path, vit_folder: Path) -> None:
    shutil.copytree(vit_folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"No ViT can be loaded from '{tmp_path}'"):
        load_backbone(str(tmp_path))
    with pytest.raises(UserError, match="in safetensors"):
        load(ViTModel, str(tmp_path), ["vit"], "a ViT", add_pooling_layer=False)


@torch.no_grad()
def test_fresh_encoder_is_seeded_and_knows_positions(vit_folder: Path) -> None:
    like = load_backbone(str(vit_folder))
    state = torch.get_rng_state()
    first, again, other = (fresh_backbone(like, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.fingerprint() != like.fingerprint()
    positions = first.encoder.embeddings.position_embeddings[0, 1:]
    assert torch.cdist(positions, positions).fill_diagonal_(1.0).min() > 0.1
    assert all(weight.std() > 1e-3 for weight in first.encoder.parameters() if weight.ndim > 1)
    # the same patch everywhere: only positions can make tokens differ
    tokens = first.encoder(torch.ones(1, 3, 32, 32)).last_hidden_state[0, 1:]
    assert tokens.std(dim=0).mean() > 0.1


def test_fresh_encoder_is_what_pretraining_starts_from(vit_folder: Path) -> None:
    like = load_backbone(str(vit_folder))
    fresh = fresh_backbone(like, 3).encoder.state_dict()
    start = build_vit(None, 3, "sdpa", **like.encoder.config.to_dict()).state_dict()
    assert fresh.keys() == start.keys()
    assert all(torch.equal(fresh[name], start[name]) for name in start)


def test_fingerprint_sees_one_weight(vit_folder: Path) -> None:
    backbone = load_backbone(str(vit_folder))
    before = backbone.fingerprint()
    with torch.no_grad():
        backbone.encoder.layernorm.bias[3] += 1e-3
    assert backbone.fingerprint() != before


def test_a_model_that_is_no_vit_is_refused(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no ViT or ViT-MAE checkpoint"):
        load_backbone(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json, which `save_pretrained` writes"):
        load_backbone(str(tmp_path))


def test_the_normalisation_is_a_part_of_the_encoder(vit_folder: Path) -> None:
    given = load_backbone(str(vit_folder))
    other = replace(given, std=(0.5, 0.5, 0.5))
    assert other.fingerprint() != given.fingerprint() != replace(given, mean=(0.5, 0.5, 0.5)).fingerprint()
    fresh = fresh_backbone(replace(other, mean=(0.1, 0.2, 0.3)), 0)
    assert (fresh.mean, fresh.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
