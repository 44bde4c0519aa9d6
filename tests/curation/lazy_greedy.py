"""The plain way to what `optidel` does fast: for its tests and its benchmark."""

from __future__ import annotations

import heapq

import numpy as np


def lazy_greedy(
    codes: list[np.ndarray], worth: np.ndarray, similar: np.ndarray, weight: float, count: int
) -> list[int]:
    """Greedy on F by definition, in turns of `codes` (source, group, cluster); stale entries are renewed."""
    given = [np.zeros(code.max() + 1, dtype=int) for code in codes]
    covered = np.zeros(len(worth), dtype=similar.dtype)

    def entry(row: int) -> tuple:
        gain = worth[row] + weight * np.maximum(similar[row] - covered, 0).sum(dtype=np.float64)
        return *(count[code[row]] for count, code in zip(given, codes)), -gain, row

    heap = [entry(row) for row in range(len(worth))]
    heapq.heapify(heap)
    chosen: list[int] = []
    while len(chosen) < count:
        fresh = entry(heapq.heappop(heap)[-1])
        if heap and fresh > heap[0]:
            heapq.heappush(heap, fresh)
            continue
        chosen.append(fresh[-1])
        covered = np.maximum(covered, similar[fresh[-1]])
        for counts, code in zip(given, codes):
            counts[code[fresh[-1]]] += 1
    return chosen
