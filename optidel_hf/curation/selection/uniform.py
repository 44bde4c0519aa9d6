"""Selection without a score: the baselines that every strategy has to beat."""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options, reasons


def random(candidates: Candidates, count: int, options: Options) -> Choice:
    """`count` patches drawn without replacement, every patch equally likely."""
    chosen = np.random.default_rng(options.seed).permutation(len(candidates))[:count]
    return Choice(chosen, reasons(len(candidates), chosen, "drawn", "not drawn"))


def random_images(candidates: Candidates, count: int, options: Options) -> Choice:
    """
    All patches of one source image after another, every image equally likely, until there are `count`.

    The last image drawn gives as many as are missing, by position. Where every image is one patch, as in a table of
    whole images, this is [`random`] draw for draw.
    """
    turn = np.argsort(np.random.default_rng(options.seed).permutation(candidates.source.max() + 1))
    chosen = np.argsort(turn[candidates.source], kind="stable")[:count]
    return Choice(
        chosen, reasons(len(candidates), chosen, "its source image was drawn", "its source image was not drawn")
    )
