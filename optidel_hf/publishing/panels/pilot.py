"""The panel "keep hard or easy?": what a pilot on this pool found, beside what theory says of a perceptron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from optidel_hf.publishing.figures import line_class, lines
from optidel_hf.publishing.measures import pilot_text


RATIOS = {20: "scarce", 100: "plentiful"}
"""Points of a perceptron's pool a dimension, one chart each: where the easy teach more, and where the hard do."""
FRACTIONS = np.logspace(-2, 0, 9)
PROBE_ANGLE = 10.0
STRATEGIES = {"easy": line_class(0), "hard": line_class(3), "random": line_class(7)}
"""What the theory keeps, and the line's class: `easy` looks like the pilot's `easiest`, the others like no arm."""

Errors = Callable[[str, float, np.ndarray, float], np.ndarray]
"""`theory.saddle_point.saddle_point_errors`: strategy, ratio, fractions kept and angle to the student's errors."""


def pilot_panel(facts: dict[str, Any], errors: Errors | None) -> dict[str, Any] | None:
    """
    The pilot's figures and the theory's curves.

    Args:
        facts (`dict`): The selection's metadata; without a `pilot` the panel is left out.
        errors (`Callable`, *optional*): The theory; without it the pilot stands alone.

    Returns:
        `dict`, or `None`: `sentence`, `svg`, `arms` (`name`, `css`, `bits` at each of `counts`), and `theory` (`svg`,
        `ratio` and `word`) with the `kept` strategies' names and `css`.
    """
    if "pilot" not in facts:
        return None
    found = facts["pilot"]
    counts = np.array(found["counts"], dtype=np.float64)
    arms = {name: (counts, np.array(bits)) for name, bits in found["bits"].items()}
    return {
        "sentence": pilot_text(facts),
        "svg": lines(arms, "patches", "V-information, bits per value", "x" if len(set(counts)) > 1 else ""),
        "counts": found["counts"],
        "arms": [
            {"name": name, "css": line_class(place), "bits": bits.tolist()}
            for place, (name, (_, bits)) in enumerate(arms.items())
        ],
        "theory": [_theory(errors, ratio, word) for ratio, word in RATIOS.items()] if errors else [],
        "kept": [{"name": name, "css": css} for name, css in STRATEGIES.items()],
    }


def _theory(errors: Errors, ratio: int, word: str) -> dict[str, Any]:
    curves = {name: (100 * FRACTIONS, errors(name, ratio, FRACTIONS, PROBE_ANGLE)) for name in STRATEGIES}
    svg = lines(curves, "% of the pool kept", "error", "xy", list(STRATEGIES.values()))
    return {"svg": svg, "ratio": ratio, "word": word}
