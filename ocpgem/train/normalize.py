"""Fitting the normalisation of the targets to a data set."""

import numpy as np

from ocpgem.data.dataset import Dataset
from ocpgem.errors import DataError
from ocpgem.models.potential import Normalization

MAX_RECORDS = 5000


def fit_normalization(dataset: Dataset, forces: bool) -> Normalization:
    """Mean and standard deviation of the energy, and root mean square of the force components of free atoms.

    Reads at most 5,000 records, evenly spaced. Raises DataError naming a record that lacks the labels or is unusable.
    """
    energies, squares, count = [], 0.0, 0
    for index in _sample(dataset):
        system = dataset[index]
        if system.energy is None or (forces and system.forces is None):
            raise DataError(
                f"{system.where} has no {'energy' if system.energy is None else 'forces'} to train on"
            )
        system.validate()
        energies.append(system.energy)
        if system.forces is not None:
            free = system.forces[~system.fixed]
            squares += float(np.square(free, dtype=np.float64).sum())
            count += free.size
    std = float(np.std(energies))
    rms = float(np.sqrt(squares / count)) if count else 0.0
    return Normalization(energy_mean=float(np.mean(energies)), energy_std=std or 1.0, forces_std=rms or 1.0)


def elements_of(dataset: Dataset) -> list[int]:
    """The atomic numbers that occur in at most 5,000 records, evenly spaced."""
    found: set[int] = set()
    for index in _sample(dataset):
        found.update(np.unique(dataset[index].atomic_numbers).tolist())
    return sorted(found)


def _sample(dataset: Dataset) -> list[int]:
    indices = np.linspace(0, len(dataset) - 1, min(len(dataset), MAX_RECORDS)).astype(int)
    return [int(index) for index in indices]
