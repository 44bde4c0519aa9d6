"""NormDEL against the figures that the paper prints."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from optidel_hf.evaluation.metrics.normdel import normdel as module
from optidel_hf.evaluation.metrics.normdel.normdel import NormDEL, normdel


@pytest.mark.parametrize(("miou", "ratio", "printed"), [(0.7938, 0.05, 68.03), (0.7970, 1.0, 57.28)])
def test_reproduces_the_papers_figures(miou: float, ratio: float, printed: float) -> None:
    assert round(100 * normdel(miou, ratio), 2) == printed


def test_alpha_zero_ignores_the_ratio() -> None:
    assert normdel(0.6, 0.1, alpha=0.0) == normdel(0.6, 0.9, alpha=0.0) > normdel(0.6, 0.1)


def test_a_percentage_is_refused() -> None:
    with pytest.raises(ValueError, match="fractions"):
        normdel(79.38, 0.05)


@pytest.mark.parametrize("path", [Path(module.__file__), Path(module.__file__).parent], ids=["file", "folder"])
def test_evaluate_loads_it_by_path(path: Path) -> None:
    inputs = {"miou": [0.7938, 0.7970], "data_ratio": [0.05, 1.0]}
    loaded = evaluate.load(str(path)).compute(**inputs)
    assert loaded == NormDEL().compute(**inputs)
    assert loaded["normdel"] == pytest.approx([0.6803, 0.5728], abs=5e-5)
