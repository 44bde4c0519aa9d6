"""The example of CONTRIBUTING.md: a third objective is a file like this class and one line in `OBJECTIVES`."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import ViTModel

from optidel_hf.pretraining.config import PretrainConfig
from optidel_hf.pretraining.draws import Augmentation
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.objectives import OBJECTIVES
from optidel_hf.pretraining.objectives.objective import Objective
from optidel_hf.pretraining.objectives.vit import build_vit, seeded
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


class SimSiam(Objective):
    """Two views predict each other, and gradients stop at what is predicted (Chen and He, CVPR 2021)."""

    augmentation = Augmentation(views=2, min_scale=0.2, jitter=0.5, grey=0.2, blur=0.5)

    def __init__(self, model: ViTModel) -> None:
        super().__init__()
        self.model, width = model, model.config.hidden_size
        self.predictor = nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width))

    @classmethod
    def from_config(cls, config: PretrainConfig, attn_implementation: str) -> SimSiam:
        model = build_vit(config.model, config.seed, attn_implementation, config.model_revision, **config.sizes())
        with seeded(config.seed):
            return cls(model)

    def forward(self, first: torch.Tensor, second: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        z = [self.model(view).last_hidden_state[:, 0] for view in (first, second)]
        p = [self.predictor(each) for each in z]
        return -sum(torch.cosine_similarity(p[i], z[1 - i].detach()).mean() for i in (0, 1)) / 2

    def backbone(self) -> ViTModel:
        return copy.deepcopy(self.model).eval()


def test_a_class_and_a_line_are_all_that_a_third_objective_takes(images, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "simsiam", SimSiam)
    changes = {"objective": "simsiam", "steps": 20, "gradient_accumulation_steps": 2, "base_learning_rate": 0.1}
    pretrainer = Pretrainer(tiny_config(tmp_path, **changes), images)
    pretrainer.train()
    pretrainer.save()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] - 0.2  # the cosine has risen
    trained = ViTModel.from_pretrained(tmp_path / "backbone", add_pooling_layer=False).state_dict()
    torch.testing.assert_close(trained, pretrainer.model.state_dict())
