"""Items into bins of similar total cost: greedy, then exchanges out of the fullest bin."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
CLOSE_ENOUGH = 1.005
PARTNERS = 8


def balance(cost: Ints, n_bins: int) -> list[list[int]]:
    """The items of every bin; no bin is empty unless there are fewer items.

    cost: [n], whole numbers. Greedy (the most expensive item first, each into the cheapest bin so far) leaves the
    fullest of many bins 2 to 6 % above the mean where bins hold 4 to 8 items; exchanging items between it and the
    emptiest bins brings that to about 1 %, or as far as so few items allow.
    """
    bins, loads = _greedy(cost, n_bins)
    if len(cost) > n_bins:
        _exchange(cost, bins, loads)
    return bins


def _greedy(cost: Ints, n_bins: int) -> tuple[list[list[int]], Ints]:
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = [(0, 0, number) for number in range(n_bins)]  # total, items, bin
    loads = np.zeros(n_bins, dtype=np.int64)
    for item in np.argsort(-cost, kind="stable").tolist():
        load, count, number = heap[0]
        bins[number].append(item)
        loads[number] = load + int(cost[item])
        heapq.heapreplace(heap, (int(loads[number]), count + 1, number))
    return bins, loads


def _exchange(cost: Ints, bins: list[list[int]], loads: Ints) -> None:
    """Swap an item of the fullest bin with one of an emptier bin as long as that makes it less full."""
    enough = loads.mean() * CLOSE_ENOUGH
    for _ in range(2 * len(bins)):
        full = int(loads.argmax())
        if loads[full] <= enough:
            return
        partners = np.argsort(loads, kind="stable")[:PARTNERS].tolist()
        swaps = [_best_swap(cost, bins, loads, full, other) for other in partners if other != full]
        if not swaps:
            return
        after, other, mine, theirs = min(swaps)
        if after >= loads[full]:
            return
        gain = int(cost[bins[full][mine]] - cost[bins[other][theirs]])
        bins[full][mine], bins[other][theirs] = bins[other][theirs], bins[full][mine]
        loads[full] -= gain
        loads[other] += gain


def _best_swap(
    cost: Ints, bins: list[list[int]], loads: Ints, full: int, other: int
) -> tuple[int, int, int, int]:
    """The load of the fuller of two bins after the best swap of two items, the other bin, and the items' places."""
    gain = cost[bins[full]][:, None] - cost[bins[other]]
    after = np.maximum(loads[full] - gain, loads[other] + gain)
    mine, theirs = divmod(int(after.argmin()), gain.shape[1])
    return int(after[mine, theirs]), other, mine, theirs
