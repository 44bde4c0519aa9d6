"""Where a tracker is installed it is really used, locally; where it is not, the refusal is what is tested."""

from __future__ import annotations

import importlib.util
import logging
import sqlite3
import sys
from dataclasses import replace
from typing import Any

import pytest
from accelerate.tracking import GeneralTracker

from optidel_hf.errors import UserError
from optidel_hf.pretraining.config import TRACKERS
from optidel_hf.pretraining.metrics import read_metrics
from optidel_hf.pretraining.trackers import resolve_tracker
from optidel_hf.pretraining.trainer import Pretrainer

from .tiny import tiny_config


def _train(images, out, tracker: str) -> None:
    looked_at = {"reconstruct_every": 2, "evaluate_every": 2, "report_to": tracker}
    config = tiny_config(out, steps=2, **looked_at)
    Pretrainer(config, images, evaluation=lambda encoder: {"knn_accuracy": 0.25}).train()


@pytest.fixture(autouse=True)
def nothing_said_yet():
    resolve_tracker.cache_clear()
    yield
    resolve_tracker.cache_clear()


@pytest.mark.parametrize("tracker", TRACKERS[2:])
def test_a_tracker_that_is_not_installed_is_refused_with_the_way_out(images, tmp_path, monkeypatch, tracker) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else found(name))
    with pytest.raises(UserError, match=f"--report_to {tracker}: .*`pip install {tracker}`"):
        Pretrainer(tiny_config(tmp_path, report_to=tracker), images)
    assert resolve_tracker("none") == "none"


def test_auto_is_trackio_where_it_is_installed_and_else_says_once_how_to_get_it(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [resolve_tracker("auto") for _ in range(2)] == ["none", "none"]
    assert caplog.messages == ["no tracker: with `pip install trackio`, `trackio show` draws what metrics.jsonl has"]
    resolve_tracker.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "trackio" else None)
    assert resolve_tracker("auto") == "trackio"


class Failing(GeneralTracker):
    """A tracker whose method `at` raises what no one expects."""

    name, requires_logging_directory, tracker = "failing", False, None

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at, self.calls = at, []

    def _call(self, method: str) -> None:
        self.calls.append(method)
        if method == self.at:
            raise sqlite3.OperationalError("database or disk is full")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: Any) -> None: ...

    def log(self, values: Any, step: Any, **rest: Any) -> None:
        self._call("log")

    def log_images(self, values: Any, step: Any, **rest: Any) -> None:
        self._call("log_images")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("at", ["start", "log", "log_images", "finish"])
def test_no_failure_of_a_tracker_ends_a_run(images, tmp_path, caplog, at: str) -> None:
    pretrainer = Pretrainer(tiny_config(tmp_path, steps=2, reconstruct_every=2), images)
    failing = Failing(at)
    pretrainer.accelerator.log_with = [failing]
    pretrainer.config = replace(pretrainer.config, report_to="wandb")
    pretrainer.train()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    assert failing.calls[-1] == at  # nothing is asked of it afterwards
    reason = "OperationalError: database or disk is full"
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"the tracker is given up, the training goes on: {reason}"]


def test_another_tracker_is_refused() -> None:
    with pytest.raises(
        ValueError, match="report_to must be one of auto, none, trackio, tensorboard, wandb, not 'aim'"
    ):
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
