from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator

from optidel_hf.errors import UserError
from optidel_hf.pretraining.metrics import StepLog, keep_lines, read_metrics


def _log(path, start: int = 0) -> StepLog:
    return StepLog(path, Accelerator(cpu=True), batch_size=4, start=start, steps=5, description="test")


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


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_its_step(tmp_path, loss: float) -> None:
    path = tmp_path / "metrics.jsonl"
    with _log(path) as log:
        _add(log, 1, 0.5)
        _add(log, 2, loss)
        with pytest.raises(UserError, match=f"The loss is {loss} at step 2 "):
            log.flush()
    assert [line["step"] for line in read_metrics(path)] == [1]
