"""The normalisation of targets, and the one place where it is undone: model values become eV and eV/A here.

Labels are never changed; the loss (ocpgem.train.loss) compares in eV and eV/A and divides by the standard deviations.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ocpgem.config import Section

MAX_ATOMIC_NUMBER = 118


class Normalization(Section):
    """Physical value = model value * std + mean, once per system for the energy, + the energies of its elements."""

    energy_mean: float = Field(0.0, description="eV")
    energy_std: float = Field(1.0, gt=0, description="eV")
    forces_std: float = Field(1.0, gt=0, description="eV/A")
    element_energies: dict[Annotated[int, Field(ge=1, le=MAX_ATOMIC_NUMBER)], float] = Field(
        default={},
        description="eV by atomic number, added once per atom; if any is given, data with other elements are refused",
    )

    @property
    def elements(self) -> tuple[int, ...] | None:
        """The elements that have an energy, ascending; None if the model uses no energies of elements."""
        return tuple(sorted(self.element_energies)) or None


class PhysicalUnits:
    """Turns what a model computes into eV and eV/A, energies in float64: total energies are thousands of eV, their
    differences meV.
    """

    def __init__(self, normalization: Normalization) -> None:
        self.normalization = normalization
        self._tables: dict[torch.device, Tensor] = {}

    def energy(self, values: Tensor, atomic_numbers: Tensor, system_of_atom: Tensor) -> Tensor:
        """Energies [n_systems] in eV, of model values [n_systems]."""
        energy = values.double() * self.normalization.energy_std + self.normalization.energy_mean
        if not self.normalization.element_energies:
            return energy
        return energy.index_add(0, system_of_atom, self._of_elements(atomic_numbers))

    def atom_energies(self, values: Tensor, atomic_numbers: Tensor, system_of_atom: Tensor) -> Tensor:
        """Energies [n_atoms] in eV of the atoms' terms [n_atoms]; their sums are `energy`, the mean shared equally."""
        ones = torch.ones_like(
            values, dtype=torch.float64
        )  # at most as many systems as atoms; bincount would wait
        n_atoms = torch.zeros_like(ones).index_add(0, system_of_atom, ones)[system_of_atom]
        energies = values.double() * self.normalization.energy_std + self.normalization.energy_mean / n_atoms
        return (
            energies + self._of_elements(atomic_numbers) if self.normalization.element_energies else energies
        )

    def forces(self, values: Tensor, are_gradients: bool) -> Tensor:
        """Forces [n_atoms, 3] in eV/A; those that are gradients of the energy scale as it does."""
        return values * (self.normalization.energy_std if are_gradients else self.normalization.forces_std)

    def _of_elements(self, atomic_numbers: Tensor) -> Tensor:
        device = atomic_numbers.device
        if device not in self._tables:
            self._tables[device] = table_of(self.normalization.element_energies).to(device)
        return self._tables[device][atomic_numbers]


def table_of(element_energies: Mapping[int, float]) -> Tensor:
    """Energies [MAX_ATOMIC_NUMBER + 1] in eV by atomic number, float64, 0 for an element that has none."""
    table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    for number, energy in element_energies.items():
        table[number] = energy
    return table
