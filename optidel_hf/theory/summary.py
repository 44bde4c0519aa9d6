"""The study's numbers: what goes to `theory.json`, and which strategy errs least where."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from optidel_hf.theory.study import STRATEGIES, Study, TheoryConfig, error_of_mean_overlap


def results(config: TheoryConfig, study: Study) -> dict[str, Any]:
    """Errors by strategy, ratio and fraction, as the figure shows them and as the published study counts them."""
    errors = study.errors()
    return {
        "config": asdict(config),
        "fractions": config.kept().tolist(),
        "strategies": STRATEGIES,
        "mean_error": errors.mean(axis=-1).tolist(),
        "standard_error": (errors.std(axis=-1, ddof=1) / np.sqrt(config.draws)).tolist(),
        "error_of_mean_pearson_overlap": error_of_mean_overlap(study.overlaps(centred=True)).tolist(),
    }


def best_strategies(config: TheoryConfig, study: Study) -> list[str]:
    """One line a ratio: the least error's strategy at each fraction below 1, `=` where the next is within 95 %."""
    errors = study.errors()
    lines = []
    for number, ratio in enumerate(config.ratios):
        words = []
        for kept, by_strategy in zip(config.kept()[:-1], errors[:, number].swapaxes(0, 1)):
            first, second = by_strategy.mean(axis=-1).argsort()[:2]
            gap = by_strategy[second] - by_strategy[first]
            clear = gap.mean() > 1.96 * gap.std(ddof=1) / np.sqrt(config.draws)
            words.append(f"{kept:.1%} {STRATEGIES[first]}{'' if clear else ' = ' + STRATEGIES[second]}")
        lines.append(f"{ratio} points a dimension: {', '.join(words)}")
    return lines
