from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from optidel_hf.errors import UserError
from optidel_hf.pretraining import metrics
from optidel_hf.pretraining.metrics import SETTLED_SECONDS, StepLog, keep_lines, read_metrics


def _log(path, start: int = 0) -> StepLog:
    sizes = {"batch_size": 4, "start": start, "steps": 5, "description": "test"}
    return StepLog(path, Accelerator(cpu=True), **sizes, images_of=lambda step: [step, 7], peak=lambda: 1000.0)


def _add(log: StepLog, step: int, loss: float) -> None:
    log.add(step, 0.1, torch.tensor(loss), torch.tensor(2.0))


def test_each_step_is_a_line_written_when_looked_at(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    with _log(path) as log:
        _add(log, 1, 0.5)
        _add(log, 2, 0.25)
        assert read_metrics(path) == []
        log.flush()
        log.flush()  # nothing new
    lines = read_metrics(path)
    assert [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines] == [
        (1, 0.5, 0.1, 2.0),
        (2, 0.25, 0.1, 2.0),
    ]
    assert lines[0]["images_per_second"] > 0


def test_a_run_that_slept_has_a_rate_all_the_same(tmp_path) -> None:
    with _log(tmp_path / "metrics.jsonl") as log:
        log.looked -= 3e5
        _add(log, 1, 0.5)
        log.flush()
    assert 0 < read_metrics(tmp_path / "metrics.jsonl")[0]["images_per_second"] < 0.05


def test_a_resumed_log_has_each_step_once(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
    path.write_text(whole + '{"step": 4, "lo')  # killed while writing
    keep_lines(path, 2)
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    with _log(path, start=2) as log:
        _add(log, 3, 0.5)
        log.flush()
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize(("name", "loss", "norm"), [("loss", math.nan, 1.0), ("grad_norm", 0.25, math.inf)])
def test_what_is_not_finite_ends_the_run_and_its_images_are_listed(tmp_path, name: str, loss: float, norm: float):
    path = tmp_path / "metrics.jsonl"
    with _log(path) as log:
        _add(log, 1, 0.5)
        log.add(2, 0.1, torch.tensor(loss), torch.tensor(norm))
        _add(log, 3, 0.5)
        with pytest.raises(UserError, match=f"The {name} is (nan|inf) at step 2 .*nonfinite.json lists the images"):
            log.flush()
    assert [line["step"] for line in read_metrics(path)] == [1]
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (record["step"], record["images"], record["lr"]) == (2, [2, 7], 0.1)
    assert record[name] in ("nan", "inf")  # JSON has no such numbers


def test_the_bar_tells_the_fraction_of_peak_once_the_run_has_settled(tmp_path, monkeypatch) -> None:
    shown = []
    with _log(tmp_path / "metrics.jsonl") as log:
        monkeypatch.setattr(log.bar, "set_postfix_str", shown.append)
        for step, began in enumerate((log.began, log.began - 1 - SETTLED_SECONDS), 1):
            log.began, log.looked = began, time.perf_counter() - 0.04  # 4 images in 40 ms are 100 a second
            _add(log, step, 0.5)
            log.flush()
    assert shown[0].startswith("loss 0.5000, lr 1.00e-01, ")
    assert "of peak" not in shown[0]
    percent = float(shown[1].rpartition(", ")[2].removesuffix("% of peak"))
    assert 1 <= percent <= 10  # 10 % less what a busy machine took


def test_a_rate_is_that_of_all_steps_since_the_last_look(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with _log(tmp_path / "metrics.jsonl") as log:  # 4 images a step
        for step, seconds in ((1, 1.0), (2, 1.0), (3, 4.0)):
            now[0] += seconds
            _add(log, step, 0.5)
            if step > 1:
                log.flush()
        now[0] += 3.0
        log.skip_time()  # an evaluation
        now[0] += 0.5
        _add(log, 4, 0.5)
        log.flush()
    assert [line["images_per_second"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [4, 4, 1, 8]
