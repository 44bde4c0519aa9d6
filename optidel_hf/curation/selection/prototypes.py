"""
Distance to a prototype as difficulty (Sorscher et al. 2022, arXiv 2206.14486, the self-supervised pruning metric).

Embeddings are clustered by k-means; a patch is the harder, the farther it lies from the nearest centroid, its
prototype. The paper keeps the hard where data are plentiful and the easy where they are scarce, hence `keep`. Its
floor on class balance needs labels and is left out. Which distance it takes we could not establish, hence `distance`.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options, reasons
from optidel_hf.curation.selection.clusters import cluster


def prototypes(candidates: Candidates, count: int, options: Options) -> Choice:
    """The `count` patches farthest from their cluster's centre, or nearest to it with `keep="near"`."""
    label, distance = cluster(candidates, count, options.seed, options.distance)
    chosen = np.argsort(-distance if options.keep == "far" else distance, kind="stable")[:count]
    where = "far from" if options.keep == "far" else "near"
    why = reasons(len(candidates), chosen, f"{where} its prototype", f"not {where} its prototype")
    return Choice(chosen, why, label, {"keep": options.keep, "distance": options.distance})
