"""Items into bins of similar total cost: greedy, then exchanges out of the fullest bins."""

from __future__ import annotations

import heapq
from functools import cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
CLOSE_ENOUGH = 1.005
ALONE = 0.93
"""An item of more than this share of the mean may be alone."""
ROUNDS = 12
"""How often all bins that are too full swap at once, before they are looked at one by one."""
PARTNERS = (8, 32)
"""How many of the emptiest bins the fullest one exchanges items with; more where the first of them do not help."""
FEW = 12
"""So many items of two bins are divided in the best way; of more, the best swap of two is made."""


def balance(cost: Ints, n_bins: int) -> list[list[int]]:
    """The items of every bin; no bin is empty unless there are fewer items.

    cost: [n], whole numbers. Greedy (the most expensive item first, each into the cheapest bin so far) leaves the
    fullest of many bins 2 to 6 % above the mean where bins hold 4 to 8 items; exchanging items between full and
    empty bins brings that to 0.5 %, or as far as so few items allow: no division is better than the largest item.
    An item that is nearly the mean may be alone, although its bin then has less than the mean.
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
    return int(_loads(cost, bins).max())


def _loads(cost: Ints, bins: list[list[int]]) -> Ints:
    owner = np.repeat(np.arange(len(bins)), [len(items) for items in bins])
    loads = np.zeros(len(bins), dtype=np.int64)
    np.add.at(loads, owner, cost[np.concatenate([np.array(items, dtype=np.int64) for items in bins])])
    return loads


def _balanced(cost: Ints, n_bins: int) -> list[list[int]]:
    bins = _greedy(cost, n_bins)
    if len(cost) > n_bins > 1:
        bins = _swap(cost, bins)
        _exchange(cost, bins, _loads(cost, bins))
    return bins


def _greedy(cost: Ints, n_bins: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = list(range(n_bins))  # load * n_bins + bin: whole numbers are compared faster than pairs
    order = np.argsort(-cost, kind="stable")
    added = np.maximum(cost[order], 1) * n_bins  # what costs nothing must still fill every bin
    for item, more in zip(order.tolist(), added.tolist(), strict=True):
        least = heap[0]
        bins[least % n_bins].append(item)
        heapq.heapreplace(heap, least + more)
    return bins


def _swap(cost: Ints, bins: list[list[int]]) -> list[list[int]]:
    """In each round every bin that is too full makes the best swap with an empty one of its own, or gives an item."""
    nothing, width = len(cost), max(map(len, bins)) + 1
    table = np.array([items + [nothing] * (width - len(items)) for items in bins])  # [n_bins, width]
    costs, enough = np.append(cost, 0), _enough(cost, len(bins))
    for shift in range(ROUNDS):
        costs_now = costs[table]
        loads = costs_now.sum(axis=1)
        order = np.argsort(-loads, kind="stable")
        count = min(int((loads > enough).sum()), len(bins) // 2)
        if not count:
            break
        full = order[:count]
        partners = order[::-1][: max(count, min(PARTNERS[0], len(bins) - count))]
        empty = partners[(np.arange(count) + shift) % len(partners)]
        gain = costs_now[full][:, :, None] - costs_now[empty][:, None, :]  # [count, width, width]
        after = np.maximum(loads[full][:, None, None] - gain, loads[empty][:, None, None] + gain)
        best = after.reshape(count, -1).argmin(axis=1)
        better = after.reshape(count, -1)[np.arange(count), best] < loads[full]
        mine, theirs = np.divmod(best[better], width)
        full, empty = full[better], empty[better]
        table[full, mine], table[empty, theirs] = table[empty, theirs], table[full, mine]
    return [[item for item in row if item != nothing] for row in table.tolist()]


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
