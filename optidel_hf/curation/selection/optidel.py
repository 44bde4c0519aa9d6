"""
Hard *and* diverse: OptiDEL's "key patches of high difficulty and diversity" as an objective under a fair deal.

The paper states the aim (raise H_V(Y|0) by diversity, choose what is hard) and no rule for diversity; this one is
ours. Spoilt patches and outliers are cut (`outliers.py`). Then no source image and no near-duplicate group gives a
second patch before all have given one, and of those whose turn it is, the k-means clusters of the embeddings give
equally, each the patch that raises F(S) most: hardness and coverage (`objective.py`), or, as an ablation, hardness and
the log-determinant (`logdet.py`).
"""

from __future__ import annotations

import heapq

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options
from optidel_hf.curation.selection.clusters import cluster, members
from optidel_hf.curation.selection.logdet import LogDet, equal_bits
from optidel_hf.curation.selection.objective import MEMORY, Directions, Objective, equal_weight, make_blocks
from optidel_hf.curation.selection.outliers import cut_outliers


GROUPS = 1 << 31  # above any count: what source and group have given are two digits of one number

Turn = tuple[int, int, float, int]
"""Times that its source and group have given, that its cluster has, the gain's negative, row: the least is next."""


def optidel(candidates: Candidates, count: int, options: Options, memory: int = MEMORY) -> Choice:
    """
    `count` hard and diverse patches.

    Args:
        options ([`Options`]): seed, `diversity`, `hardness_weight`, and `trim`, for which see [`cut_outliers`].
        memory (`int`, *optional*, defaults to 2 GiB): bytes for similarities; without enough, coverage is by blocks.
    """
    assert candidates.embedding is not None
    label = cluster(candidates, count, options.seed).label
    pool, why, cut = cut_outliers(candidates, count, options.trim)
    hardness, directions = candidates.hardness[pool], Directions(candidates.embedding, pool)
    worth = options.hardness_weight * hardness
    if options.diversity == "logdet":
        weight = equal_bits(hardness, directions, count, options.seed)
        objective: Objective | LogDet = LogDet(worth, directions, weight)
        facts = {"diversity": "logdet", "bit_weight": weight}
    else:
        weight = equal_weight(hardness, directions, count, options.seed)
        objective = Objective(worth, directions, weight, make_blocks(directions, label[pool], memory))
        facts = {"diversity": "coverage", "coverage_weight": weight, "blocks": len(objective.blocks)}
    turns = Turns(candidates.source[pool], candidates.group[pool], label[pool])
    chosen, last = deal(turns, objective, count)
    why[pool] = turns.reasons(chosen, last)
    return Choice(pool[chosen], why, label, {**cut, "hardness_weight": options.hardness_weight, **facts})


class Turns:
    """
    Who has given how often, and so whose turn it is.

    Args:
        source, group, cluster (`np.ndarray` of shape `(n,)`): codes of each patch, those to be preferred first.
    """

    def __init__(self, source: np.ndarray, group: np.ndarray, cluster: np.ndarray) -> None:
        self.source, self.group, self.cluster = source, group, cluster
        self.by_source, self.by_group, self.by_cluster = (
            np.zeros(codes.max() + 1, dtype=np.int64) for codes in (source, group, cluster)
        )
        self.left = members(cluster)

    def offer(self, code: int, gain: np.ndarray) -> Turn:
        """A cluster's next patch: of those whose source and then group have given least, the one of highest gain."""
        rows = self.left[code]
        given = self._given(rows)
        least = given.min()
        rows = rows[given == least]
        row = rows[gain[rows].argmax()]
        return int(least), int(self.by_cluster[code]), -float(gain[row]), int(row)

    def take(self, row: int) -> int:
        """Count a patch as given; how many its cluster has left."""
        code = self.cluster[row]
        self.by_source[self.source[row]] += 1
        self.by_group[self.group[row]] += 1
        self.by_cluster[code] += 1
        self.left[code] = self.left[code][self.left[code] != row]
        return len(self.left[code])

    def reasons(self, chosen: np.ndarray, last: Turn) -> np.ndarray:
        """Why each patch was chosen, or not by the `last` turn: `(n,)`."""
        given, clusters = self._given(np.arange(len(self.source))), self.by_cluster[self.cluster]
        why = np.full(len(given), "dropped: adds less than those chosen in its turn", dtype=object)
        why[clusters > last[1]] = "dropped: its cluster had its share"
        why[given > last[0]] = "dropped: its near-duplicate group had its share"
        why[given // GROUPS > last[0] // GROUPS] = "dropped: its source image had its share"
        why[chosen] = "kept: adds most hardness and diversity in its turn"
        return why

    def _given(self, rows: np.ndarray) -> np.ndarray:
        return self.by_source[self.source[rows]] * GROUPS + self.by_group[self.group[rows]]


def deal(turns: Turns, objective: Objective | LogDet, count: int) -> tuple[np.ndarray, Turn]:
    """
    Greedy, one patch at a time: the one whose source has given least so far, then whose group, then whose cluster; of
    those the one that raises F most, and of equals the first.

    Counts rise and gains fall, so what a cluster offers never gets better. The best of all is therefore an offer that,
    when renewed, still stands at the top of the heap (Minoux's lazy greedy, with clusters for elements).

    Returns:
        `tuple[np.ndarray, Turn]`: chosen rows in order, and the last one's turn.
    """
    chosen: list[int] = []
    offers = [turns.offer(code, objective.gain) for code, rows in enumerate(turns.left) if len(rows)]
    heapq.heapify(offers)
    while True:
        turn = turns.offer(turns.cluster[heapq.heappop(offers)[-1]], objective.gain)
        if offers and turn > offers[0]:
            heapq.heappush(offers, turn)
            continue
        chosen.append(turn[-1])
        if len(chosen) == count:
            turns.take(turn[-1])
            return np.array(chosen), turn
        objective.add(turn[-1])
        if turns.take(turn[-1]):
            heapq.heappush(offers, (turn[0], turn[1] + 1, *turn[2:]))  # at best; renewed when it comes up
