"""Which systems every rank computes in every step: pure functions of sizes, an order and the number of ranks.

The systems of a step depend on neither the number of ranks nor the memory limit, so a run continues on other
hardware with the same steps; only who computes them differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.balance import balance
from ocpgem.data.cost import SYSTEMS, Batching
from ocpgem.data.draws import Draws
from ocpgem.data.sizes import SizeTable
from ocpgem.errors import RequestError

Ints = NDArray[np.integer]
LOOK_AHEAD = 4096
"""Systems whose sizes are looked up together."""


@dataclass(frozen=True)
class Step:
    """The systems of one optimiser step, over all ranks, and the rows of the side table that belong to them.

    step counts all steps from 0; drawn is the number of systems drawn since the run began, once the step is done.
    """

    step: int
    drawn: int
    systems: Ints
    rows: SizeTable


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One rank's share of one optimiser step.

    step, drawn: as in `Step`; epoch is the number of epochs done once the step is (a fraction).
    micro_batches: as many on every rank; the last `n_padding` of them repeat one system of the step,
    because there were not enough systems for all, and must weigh nothing in the loss.
    """

    step: int
    drawn: int
    epoch: float
    micro_batches: list[Ints]
    n_padding: int
    n_systems_global: int
    n_free_atoms_global: int


@dataclass(frozen=True)
class TrainPlan:
    """The steps of a training run.

    draws: which system is drawn when; rows: looks systems up in the side table. The last step of an epoch may hold
    less than the others.
    """

    draws: Draws
    rows: Callable[[Ints], SizeTable]
    batching: Batching

    def steps(self, start_step: int = 0, drawn: int | None = None) -> Iterator[Step]:
        """Every step from `start_step` on, without end.

        drawn: how many systems the steps before it drew, as that of the step before says; else it is computed from
        the beginning of the run, which takes about a second for a million systems unless steps are counted in them.
        """
        step = start_step
        start = self.drawn_before(start_step) if drawn is None else drawn
        length = self.draws.per_epoch
        epoch, place = divmod(start, length)
        while True:
            for systems, rows in self._rest_of_epoch(epoch, place):
                place += len(systems)
                yield Step(step, epoch * length + place, systems, rows)
                step += 1
            epoch, place = epoch + 1, 0

    def drawn_before(self, step: int) -> int:
        """How many systems all steps before this one draw."""
        if step == 0:
            return 0
        size, length = self.batching.size, self.draws.per_epoch
        if size.cost == SYSTEMS:
            epoch, within = divmod(step, -(-length // size.amount))
            return epoch * length + within * size.amount
        return next(found.drawn for found in self.steps() if found.step == step - 1)

    def share(self, step: Step, rank: int, world_size: int) -> StepPlan:
        """What one rank computes of a step."""
        limit = self.batching.limit
        micro_batches, n_padding = split_batch(
            self.batching.work.of(step.rows),
            rank,
            world_size,
            None if limit is None else (limit.cost.at_most(step.rows), limit.amount),
        )
        return StepPlan(
            step=step.step,
            drawn=step.drawn,
            epoch=step.drawn / self.draws.per_epoch,
            micro_batches=[step.systems[chosen] for chosen in micro_batches],
            n_padding=n_padding,
            n_systems_global=len(step.systems),
            n_free_atoms_global=int(step.rows["n_free"].sum()),
        )

    def _rest_of_epoch(self, epoch: int, place: int) -> Iterator[tuple[Ints, SizeTable]]:
        """The steps of an epoch from a place of its order on."""
        size, length = self.batching.size, self.draws.per_epoch
        systems = self.draws.take(epoch, place, place)
        rows = self.rows(systems)
        ends = np.zeros(0, dtype=np.int64)
        while True:
            while place < length and (not len(ends) or ends[-1] <= size.amount):
                stop = min(place + LOOK_AHEAD, length)
                more = self.draws.take(epoch, place, stop)
                place = stop
                more_rows = self.rows(more)
                systems, rows = np.concatenate([systems, more]), np.concatenate([rows, more_rows])
                ends = np.cumsum(size.cost.of(rows))
            if not len(systems):
                return
            count = max(1, int(np.searchsorted(ends, size.amount, side="right")))
            yield systems[:count], rows[:count]
            systems, rows, ends = systems[count:], rows[count:], ends[count:] - ends[count - 1]


def split_batch(
    work: Ints, rank: int, world_size: int, limit: tuple[Ints, int] | None = None
) -> tuple[list[Ints], int]:
    """Divide the systems of a step over ranks, then those of each rank over micro-batches.

    work: [n], what is balanced over ranks; limit: another cost [n], each at most the number with it, which no
    micro-batch exceeds. Every rank gets as many micro-batches as the one that needs most. Returns the places in the
    step of those of `rank`, the largest first, and how many of them, at the end, are padding: the cheapest system of
    the step once more.
    """
    shares = balance(work, world_size)
    shares.sort(key=lambda share: -int(work[share].sum()))
    pieces = [[share] if share else [] for share in shares]
    if limit is not None:
        pieces = [_first_fit(share, *limit) for share in shares]
    n_micro = max(1, *map(len, pieces))
    even = [[shares[rank][place] for place in chosen] for chosen in balance(work[shares[rank]], n_micro)]
    if limit is None or all(limit[0][piece].sum() <= limit[1] for piece in even):
        pieces[rank] = [piece for piece in even if piece]
    pieces[rank].sort(key=lambda piece: -int(work[piece].sum()))
    mine = [np.array(sorted(piece)) for piece in pieces[rank]]
    n_padding = n_micro - len(mine)
    return mine + [np.array([int(np.argmin(work))])] * n_padding, n_padding


def _first_fit(share: list[int], cost: Ints, most: int) -> list[list[int]]:
    """Some systems in few groups of at most so much: the costliest first, each into the first group with room."""
    groups: list[list[int]] = []
    room: list[int] = []
    for system, needed in sorted(zip(share, cost[share].tolist(), strict=True), key=lambda pair: -pair[1]):
        place = next((number for number, left in enumerate(room) if needed <= left), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(most)
        groups[place].append(system)
        room[place] -= needed
    return groups


def plan_evaluation(work: Ints, rank: int, world_size: int, caps: Sequence[tuple[Ints, int]]) -> list[Ints]:
    """Batches of one rank such that all ranks together see every system exactly once.

    caps: costs [n], each with the most of it a batch may hold; a system that exceeds one alone is a batch of its own.
    Systems of similar work share a batch, the largest come first; ranks differ by at most one batch.
    """
    largest_share = max(1, -(-len(work) // world_size))
    every = [*caps, (np.ones(len(work), dtype=np.int64), largest_share)]
    batches = _consecutive_batches(np.argsort(-work, kind="stable"), every)
    mine = []
    for round_start in range(0, len(batches), world_size):
        forth = (round_start // world_size) % 2 == 0
        place = round_start + (rank if forth else world_size - 1 - rank)
        if place < len(batches):
            mine.append(batches[place])
    return mine


def _consecutive_batches(order: Ints, caps: Sequence[tuple[Ints, int]]) -> list[Ints]:
    ends = [(np.cumsum(cost[order]), most) for cost, most in caps]
    batches = []
    start = 0
    while start < len(order):
        stop = start + 1
        reach = math.inf
        for end, most in ends:
            before = int(end[start - 1]) if start else 0
            reach = min(reach, int(np.searchsorted(end, before + most, side="right")))
        stop = max(stop, int(reach))
        batches.append(order[start:stop])
        start = stop
    return batches


def check_fits(cost: Ints, most: int, unit: str, first: int, name: Callable[[int], str]) -> None:
    """Raise RequestError if one of some consecutive systems alone exceeds a limit.

    first: number of the first of them; name: says what to call a system.
    """
    largest = int(np.argmax(cost))
    if cost[largest] > most:
        raise RequestError(
            f"{name(first + largest)} has {cost[largest]} {unit}, more than max_{unit} {most}; "
            f"raise max_{unit} or leave the system out"
        )
