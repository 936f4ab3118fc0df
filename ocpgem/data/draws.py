"""How often the systems of each data set are drawn in an epoch, and in which order, from seed and epoch alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.permutation import permuted
from ocpgem.errors import RequestError

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Draws:
    """The draws of an epoch from several data sets, whose systems are numbered through one set after the other.

    A set of n systems with weight w is drawn round(w * n) times in every epoch, at least once: with weight 1 each of
    its systems once, with 2 each twice, with 0.1 a tenth of them. Every set is gone through in passes, each a
    permutation of all its systems, and an epoch goes on where the one before stopped, so that the systems of a set
    have never been drawn more than once more than others of it.

    counts, weights: systems and weight of each set.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RequestError(f"the seed is {self.seed}; it must not be negative")
        if not sum(self.counts):
            raise RequestError("there are no systems to train on")
        if not all(0 < weight < float("inf") for weight in self.weights):
            raise RequestError(f"the weights are {list(self.weights)}; each must be above 0")

    @property
    def of_sets(self) -> tuple[int, ...]:
        """Draws from each set in every epoch."""
        pairs = zip(self.counts, self.weights, strict=True)
        return tuple(max(1, round(weight * count)) for count, weight in pairs)

    @property
    def per_epoch(self) -> int:
        """Draws in every epoch."""
        return sum(self.of_sets)

    def order(self, epoch: int) -> Ints:
        """The systems of an epoch, in the order in which they are drawn."""
        return self.take(epoch, 0, self.per_epoch)

    def take(self, epoch: int, start: int, stop: int) -> Ints:
        """The systems at the places `start` to `stop - 1` of `order`, without the others."""
        draws = permuted(np.arange(start, stop), self.per_epoch, self.seed, epoch)
        if all(weight == 1 for weight in self.weights):
            return draws
        systems = np.empty_like(draws)
        first_draws, first_systems = np.cumsum([0, *self.of_sets]), np.cumsum([0, *self.counts])
        sets = np.searchsorted(first_draws, draws, side="right") - 1
        for number in np.unique(sets).tolist():
            mine = sets == number
            systems[mine] = first_systems[number] + self._drawn_from(
                number, epoch, draws[mine] - first_draws[number]
            )
        return systems

    def _drawn_from(self, number: int, epoch: int, draws: Ints) -> Ints:
        """The systems of one set at some of its draws in an epoch: the next ones of its passes."""
        count = self.counts[number]
        passes, places = np.divmod(epoch * self.of_sets[number] + draws, count)
        systems = np.empty_like(places)
        for number_of_pass in np.unique(passes).tolist():
            mine = passes == number_of_pass
            systems[mine] = permuted(places[mine], count, self.seed, number + 1, number_of_pass)
        return systems


def all_once(count: int, seed: int) -> Draws:
    """Every system of one data set once in every epoch."""
    return Draws((count,), (1.0,), seed)
