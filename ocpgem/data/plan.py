"""Which systems every process sees in every step: pure functions of sizes, a seed and the process count.

The order of an epoch and the systems of a step depend on neither the number of processes nor the memory
limit, so a run continues on other hardware with the same steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.draws import Draws, permutation
from ocpgem.errors import RequestError

Ints = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One process's share of one optimizer step.

    step counts all steps from 0; epoch is the number of epochs done once the step is (a fraction).
    micro_batches: as many on every process; the last `n_padding` of them repeat one system of the step,
    because there were not enough systems for all, and must weigh nothing in the loss.
    """

    step: int
    epoch: float
    micro_batches: list[Ints]
    n_padding: int
    n_systems_global: int
    n_free_atoms_global: int


@dataclass(frozen=True)
class TrainPlan:
    """The steps of a training run over systems of known size.

    n_edges, n_free: per system; batch_size: systems per step over all processes; max_edges: what one process
    can hold at once, beyond which a step is split into micro-batches; draws: how often systems are drawn in an
    epoch, each once if None. Raises RequestError for values that
    cannot be used, among them a system that exceeds max_edges alone.
    """

    n_edges: Ints
    n_free: Ints
    batch_size: int
    seed: int
    max_edges: int | None = None
    draws: Draws | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise RequestError(f"the batch size is {self.batch_size}; it must be at least 1")
        if self.seed < 0:
            raise RequestError(f"the seed is {self.seed}; it must not be negative")
        if len(self.n_edges) == 0:
            raise RequestError("there are no systems to train on")
        check_fits(self.n_edges, self.max_edges)

    @property
    def draws_per_epoch(self) -> int:
        """Systems in one epoch, those that are drawn several times counted as often."""
        return len(self.n_edges) if self.draws is None else self.draws.per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one epoch; the last may have fewer systems than the others."""
        return -(-self.draws_per_epoch // self.batch_size)

    def epoch_order(self, epoch: int) -> Ints:
        """The systems of this epoch in their order; all of them once, unless `draws` says otherwise."""
        if self.draws is not None:
            return self.draws.order(epoch)
        return epoch_order(len(self.n_edges), self.seed, epoch)

    def step(self, step: int, order: Ints, rank: int, world_size: int) -> StepPlan:
        """The share of `rank` in a step; `order` is the order of the epoch that the step belongs to."""
        within = step % self.steps_per_epoch
        systems = order[within * self.batch_size : (within + 1) * self.batch_size]
        micro_batches, n_padding = split_batch(
            systems, self.n_edges[systems], rank, world_size, self.max_edges
        )
        return StepPlan(
            step=step,
            epoch=(step + 1) / self.steps_per_epoch,
            micro_batches=micro_batches,
            n_padding=n_padding,
            n_systems_global=len(systems),
            n_free_atoms_global=int(self.n_free[systems].sum()),
        )


def epoch_order(n_systems: int, seed: int, epoch: int) -> Ints:
    """A permutation of all systems that depends on seed and epoch only."""
    return permutation(n_systems, seed, epoch)


def split_batch(
    systems: Ints, n_edges: Ints, rank: int, world_size: int, max_edges: int | None
) -> tuple[list[Ints], int]:
    """Divide the systems of a step over processes and micro-batches of at most `max_edges` edges.

    Every process gets the same number of micro-batches, as few as possible. Returns those of `rank` and how
    many of them, at the end, are padding: the smallest system of the step once more.
    """
    n_micro = 1 if max_edges is None else max(1, -(-int(n_edges.sum()) // (world_size * max_edges)))
    bins, loads = balance(n_edges, world_size * n_micro)
    while max_edges is not None and loads.max() > max_edges:
        n_micro += 1
        bins, loads = balance(n_edges, world_size * n_micro)
    by_load = np.argsort(-loads, kind="stable")
    mine = []
    for micro in range(n_micro):
        # Forth and back, so that nobody gets the largest of every round.
        place = rank if micro % 2 == 0 else world_size - 1 - rank
        chosen = bins[by_load[micro * world_size + place]]
        if chosen:
            mine.append(systems[np.array(sorted(chosen))])
    n_padding = n_micro - len(mine)
    smallest = systems[[int(np.argmin(n_edges))]]
    return mine + [smallest] * n_padding, n_padding


def balance(cost: Ints, n_bins: int) -> tuple[list[list[int]], Ints]:
    """Items into bins of similar total cost: the most expensive first, each into the cheapest bin so far.

    Returns the items of every bin and the bins' totals. No bin is empty unless there are fewer items.
    """
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    heap = [(0, 0, number) for number in range(n_bins)]  # total, items, bin
    loads = np.zeros(n_bins, dtype=np.int64)
    for item in np.argsort(-cost, kind="stable").tolist():
        load, count, number = heap[0]
        bins[number].append(item)
        loads[number] = load + int(cost[item])
        heapq.heapreplace(heap, (int(loads[number]), count + 1, number))
    return bins, loads


def plan_evaluation(
    n_edges: Ints, rank: int, world_size: int, max_systems: int, max_edges: int | None = None
) -> list[Ints]:
    """Batches of one process such that all processes together see every system exactly once.

    Systems of similar size share a batch, the largest come first; processes differ by at most one batch.
    """
    if max_systems < 1:
        raise RequestError(f"the evaluation batch size is {max_systems}; it must be at least 1")
    check_fits(n_edges, max_edges)
    largest_share = max(1, -(-len(n_edges) // world_size))
    batches = _consecutive_batches(
        np.argsort(-n_edges, kind="stable"), n_edges, min(max_systems, largest_share), max_edges
    )
    mine = []
    for round_start in range(0, len(batches), world_size):
        forth = (round_start // world_size) % 2 == 0
        place = round_start + (rank if forth else world_size - 1 - rank)
        if place < len(batches):
            mine.append(batches[place])
    return mine


def check_fits(n_edges: Ints, max_edges: int | None, name: Callable[[int], str] = "system {}".format) -> None:
    """Raise RequestError if one system alone exceeds `max_edges`; `name` says what to call it."""
    if max_edges is None or len(n_edges) == 0:
        return
    largest = int(np.argmax(n_edges))
    if n_edges[largest] > max_edges:
        raise RequestError(
            f"{name(largest)} has {n_edges[largest]} edges, more than max_edges {max_edges}; "
            "raise max_edges or leave the system out"
        )


def _consecutive_batches(order: Ints, n_edges: Ints, max_systems: int, max_edges: int | None) -> list[Ints]:
    if max_edges is None:
        return [order[i : i + max_systems] for i in range(0, len(order), max_systems)]
    batches = []
    start = total = 0
    for place, edges in enumerate(n_edges[order].tolist()):
        if place > start and (place - start == max_systems or total + edges > max_edges):
            batches.append(order[start:place])
            start, total = place, 0
        total += edges
    if start < len(order):
        batches.append(order[start:])
    return batches
