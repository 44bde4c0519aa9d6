"""Where a tracker is installed it is really used, locally; where it is not, the refusal is what is tested."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys

import pytest

from optidel_hf.errors import UserError
from optidel_hf.pretraining.config import TRACKERS
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.trackers import require_tracker
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


def _train(images, out, tracker: str) -> None:
    looked_at = {"reconstruct_every": 2, "evaluate_every": 2, "report_to": tracker}
    config = tiny_config(out, steps=2, **looked_at)
    Pretrainer(config, images, evaluation=lambda encoder: {"knn_accuracy": 0.25}).train()


@pytest.mark.parametrize("tracker", [name for name in TRACKERS if name != "none"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_way_out(images, tmp_path, monkeypatch, tracker) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else found(name))
    with pytest.raises(UserError, match=f"--report_to {tracker}: .*`pip install {tracker}`"):
        Pretrainer(tiny_config(tmp_path, report_to=tracker), images)
    require_tracker("none")


def test_another_tracker_is_refused() -> None:
    with pytest.raises(ValueError, match="report_to must be one of none, trackio, tensorboard, wandb, not 'aim'"):
        tiny_config("out", report_to="aim")


def test_tensorboard_gets_curves_scores_and_pictures(images, tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(images, tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("knn_accuracy")] == [0, 2]
    assert [event.step for event in events.Images("reconstructions")] == [0, 2]


def test_trackio_keeps_them_in_a_local_database(images, tmp_path, monkeypatch) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    for name in [name for name in sys.modules if name.startswith("trackio")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    _train(images, tmp_path / "vit", "trackio")
    with sqlite3.connect(next((tmp_path / "trackio").glob("optidel*.db"))) as database:
        text = str(database.execute("select * from metrics").fetchall())
    assert "knn_accuracy" in text
    assert "reconstructions" in text
