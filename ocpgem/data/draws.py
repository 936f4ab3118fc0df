"""How often the systems of each data set are drawn in an epoch, and in which order, from seed and epoch alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        if all(weight == 1 for weight in self.weights):
            return permutation(sum(self.counts), self.seed, epoch)
        starts = np.cumsum([0, *self.counts])
        drawn = [starts[number] + self._drawn_from(number, epoch) for number in range(len(self.counts))]
        return np.concatenate(drawn)[permutation(self.per_epoch, self.seed, epoch)]

    def _drawn_from(self, number: int, epoch: int) -> Ints:
        """What an epoch draws from one set: the next part of its passes."""
        count, n_draws = self.counts[number], self.of_sets[number]
        first, last = epoch * n_draws, (epoch + 1) * n_draws
        parts = []
        for number_of_pass in range(first // count, -(-last // count)):
            whole = permutation(count, self.seed, number + 1, number_of_pass)
            start = number_of_pass * count
            parts.append(whole[max(first - start, 0) : last - start])
        return np.concatenate(parts)


def permutation(n: int, seed: int, *key: int) -> Ints:
    """A permutation of the numbers below `n` that depends on `seed` and `key` only.

    Sorting raw random bits keeps it the same in every numpy version; `Generator.permutation` need not.
    """
    # One number is part of the entropy, as it always was; two are a key, because entropy does not tell (1) from (1, 0).
    sequence = (
        np.random.SeedSequence([seed, *key]) if len(key) == 1 else np.random.SeedSequence(seed, spawn_key=key)
    )
    return np.argsort(np.random.PCG64(sequence).random_raw(n), kind="stable")
