"""Items into bins of similar total cost: greedy, then exchanges out of the fullest bin."""

from __future__ import annotations

import heapq
from functools import cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
CLOSE_ENOUGH = 1.005
ALONE = 0.93
"""An item of more than this share of the mean may be alone."""
PARTNERS = (8, 32)
"""How many of the emptiest bins the fullest one exchanges items with; more where the first of them do not help."""
FEW = 12
"""So many items of two bins are divided in the best way; of more, the best swap of two is made."""


def balance(cost: Ints, n_bins: int) -> list[list[int]]:
    """The items of every bin; no bin is empty unless there are fewer items.

    cost: [n], whole numbers. Greedy (the most expensive item first, each into the cheapest bin so far) leaves the
    fullest of many bins 2 to 6 % above the mean where bins hold 4 to 8 items; exchanging items between it and the
    emptiest bins brings that to about 1 %, or as far as so few items allow. An item that is nearly the mean may be
    alone, although its bin then has less than the mean.
    """
    bins = _balanced(cost, n_bins)
    enough = _enough(cost, n_bins)
    alone = np.flatnonzero(cost > ALONE * cost.sum() / n_bins)
    if not 0 < len(alone) < n_bins < len(cost) or _fullest(cost, bins) <= enough:
        return bins
    rest = np.setdiff1d(np.arange(len(cost)), alone)
    apart = [[item] for item in alone.tolist()]
    apart += [rest[chosen].tolist() for chosen in _balanced(cost[rest], n_bins - len(alone))]
    return min(bins, apart, key=lambda found: _fullest(cost, found))


def _enough(cost: Ints, n_bins: int) -> float:
    """What the fullest bin may have."""
    return max(float(cost.sum()) / n_bins * CLOSE_ENOUGH, float(cost.max(initial=0)))


def _fullest(cost: Ints, bins: list[list[int]]) -> int:
    return max(int(cost[items].sum()) for items in bins)


def _balanced(cost: Ints, n_bins: int) -> list[list[int]]:
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
    """Exchange items of the fullest bin with those of an emptier one as long as that makes it less full."""
    enough = _enough(cost, len(bins))
    for _ in range(2 * len(bins)):
        full = int(loads.argmax())
        if loads[full] <= enough or not _relieve(cost, bins, loads, full):
            return


def _relieve(cost: Ints, bins: list[list[int]], loads: Ints, full: int) -> bool:
    """Make the fuller of the fullest bin and another as empty as can be; False where nothing helps."""
    emptiest = np.argsort(loads, kind="stable")[: PARTNERS[-1]].tolist()
    tried = 0
    for upto in PARTNERS:
        partners = [other for other in emptiest[tried:upto] if other != full]
        tried = upto
        found = [(*_best_division(cost, bins, loads, full, other), other) for other in partners]
        if found and (best := min(found))[0] < loads[full]:
            _, division, other = best
            bins[full], bins[other] = _divided(bins[full], bins[other], division)
            loads[full], loads[other] = cost[bins[full]].sum(), cost[bins[other]].sum()
            return True
    return False


def _best_division(cost: Ints, bins: list[list[int]], loads: Ints, full: int, other: int) -> tuple[int, int]:
    """The load of the fuller of two bins after the best exchange, and the number of this exchange."""
    mine, theirs = bins[full], bins[other]
    if len(mine) + len(theirs) <= FEW:
        first = _halves(len(mine) + len(theirs)) @ cost[mine + theirs]
        after = np.maximum(first, loads[full] + loads[other] - first)
    else:
        gain = (cost[mine][:, None] - cost[theirs]).ravel()
        after = np.maximum(loads[full] - gain, loads[other] + gain)
    best = int(after.argmin())
    return int(after[best]), best


def _divided(mine: list[int], theirs: list[int], division: int) -> tuple[list[int], list[int]]:
    """What two bins hold after an exchange."""
    items = mine + theirs
    if len(items) <= FEW:
        chosen = _halves(len(items))[division]
        first = [item for item, taken in zip(items, chosen, strict=True) if taken]
        return first, [item for item, taken in zip(items, chosen, strict=True) if not taken]
    here, there = divmod(division, len(theirs))
    ours, others = list(mine), list(theirs)
    ours[here], others[there] = others[there], ours[here]
    return ours, others


@cache
def _halves(n: int) -> Ints:
    """Every division of n items into two bins that leaves neither empty, ones for the first, up to which is which."""
    numbers = np.arange(1, 2 ** (n - 1))
    return (numbers[:, None] >> np.arange(n)) & 1
