"""Sums over training records from which normalisation and energies of elements follow, gathered by all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.system import System
from ocpgem.errors import DataError, OcpgemError
from ocpgem.models.normalization import MAX_ATOMIC_NUMBER
from ocpgem.parallel import group

Floats = NDArray[np.float64]
N = MAX_ATOMIC_NUMBER + 1
_CHUNK = 1024
_ROUNDING = 1e-13
"""A variance below this part of the terms that it is made up of is rounding."""


@dataclass(frozen=True)
class Moments:
    """Weighted sums over records with energies y and numbers of atoms by element n [N], in float64.

    Sums are of y' = y - per_atom * (all atoms), because total energies are many times their spread.
    """

    per_atom: float
    weight: float
    energy: float
    square: float
    counts: Floats
    """Sums of n [N]."""
    products: Floats
    """Sums of n n^T [N, N]."""
    energy_counts: Floats
    """Sums of y' n [N]."""
    n_records: Floats
    """Records that hold each element [N], without weights; of 0, which is no element, all records."""
    force_square: float
    """Sum over components of forces on free atoms, and their number."""
    force_components: float

    def residual(self, element_energies: Floats) -> tuple[float, float]:
        """Mean and standard deviation of what is left of the energies, in eV.

        A standard deviation that is 0 up to rounding is 0.
        """
        c = element_energies - self.per_atom
        mean = (self.energy - self.counts @ c) / self.weight
        # Of centred sums, so that nothing large cancels.
        square = self.square - self.energy**2 / self.weight
        mixed = self.energy_counts - self.counts * (self.energy / self.weight)
        products = self.products - np.outer(self.counts, self.counts) / self.weight
        variance = float(square - 2 * c @ mixed + c @ products @ c)
        largest = float(square + 2 * np.abs(c) @ np.abs(mixed) + np.abs(c) @ np.abs(products) @ np.abs(c))
        return float(mean), (variance / self.weight) ** 0.5 if variance > _ROUNDING * largest else 0.0

    @property
    def force_rms(self) -> float:
        """Root mean square of the force components of free atoms in eV/A; 0 without any."""
        return (self.force_square / self.force_components) ** 0.5 if self.force_components else 0.0

    @property
    def elements(self) -> NDArray[np.int64]:
        """The elements that occur."""
        return np.flatnonzero(self.counts)


@dataclass(frozen=True)
class FitSample:
    """Which records are read: all, or so many, evenly spaced from the first to the last; and whether forces must be."""

    limit: int | None = None
    forces: bool = True

    def indices(self, n: int) -> NDArray[np.int64]:
        """The chosen of `n` records."""
        if self.limit is None or self.limit >= n:
            return np.arange(n)
        return np.linspace(0, n - 1, self.limit).astype(np.int64)


def gather_moments(
    dataset: Dataset, sample: FitSample, advance: Callable[[int], None] = lambda n_records: None
) -> Moments:
    """The sums over the chosen records, each weighed as often as training draws it; every rank reads its part.

    Every rank calls it and returns the same. Raises DataError on all of them, naming the record, where one lacks the
    labels or is unusable on any of them.
    """
    chosen = sample.indices(len(dataset))
    total, error, per_atom = np.zeros(_LENGTH), None, 0.0
    try:
        first = _labelled(dataset[int(chosen[0])], sample.forces)
        per_atom = float(first.energy or 0.0) / first.n_atoms
        mine = np.array_split(chosen, group.world_size())[group.rank()]
        weights = _weights(dataset, mine)
        for start in range(0, len(mine), _CHUNK):
            part = mine[start : start + _CHUNK]
            systems = [_labelled(dataset[index], sample.forces) for index in part.tolist()]
            total += _sums(systems, weights[start : start + _CHUNK], per_atom)
            advance(len(part))
    except OcpgemError as caught:
        error = caught
    group.raise_together(error)
    return _moments(per_atom, group.all_reduce_sum(torch.from_numpy(total)).numpy())


def _labelled(system: System, forces: bool) -> System:
    if system.energy is None or (forces and system.forces is None):
        missing = "energy" if system.energy is None else "forces"
        raise DataError(f"{system.where} has no {missing} to train on")
    system.validate()
    return system


def _weights(dataset: Dataset, indices: NDArray[np.int64]) -> Floats:
    """Mean number of draws of each record in an epoch."""
    draws = dataset.draws(0)
    if draws is None:
        return np.ones(len(indices))
    per_record = np.array(draws.of_sets) / np.array(draws.counts)
    return per_record[np.searchsorted(np.cumsum(draws.counts), indices, side="right")]


_LENGTH = 5 + 3 * N + N * N


def _sums(systems: list[System], weights: Floats, per_atom: float) -> Floats:
    """What some records add, as one vector."""
    counts = np.stack([np.bincount(system.atomic_numbers, minlength=N) for system in systems]).astype(
        np.float64
    )
    energies = np.array([system.energy for system in systems]) - per_atom * counts.sum(axis=1)
    weighted = counts * weights[:, None]
    present = (counts > 0).sum(axis=0).astype(np.float64)
    present[0] = len(systems)
    scalars = [weights.sum(), weights @ energies, weights @ energies**2, *_force_sums(systems, weights)]
    return np.concatenate(
        [scalars, weighted.sum(axis=0), energies @ weighted, present, (counts.T @ weighted).ravel()]
    )


def _force_sums(systems: list[System], weights: Floats) -> tuple[float, float]:
    square = count = 0.0
    for system, weight in zip(systems, weights.tolist(), strict=True):
        if system.forces is not None:
            free = system.forces[~system.fixed]
            square += weight * float(np.square(free, dtype=np.float64).sum())
            count += weight * free.size
    return square, count


def _moments(per_atom: float, total: Floats) -> Moments:
    weight, energy, square, force_square, force_components = total[:5].tolist()
    counts, energy_counts, n_records = total[5 : 5 + 3 * N].reshape(3, N)
    products = total[5 + 3 * N :].reshape(N, N)
    return Moments(
        per_atom,
        weight,
        energy,
        square,
        counts,
        products,
        energy_counts,
        n_records,
        force_square,
        force_components,
    )
