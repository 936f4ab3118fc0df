"""Units of energy, and how to tell which one a file of molecules uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocpgem.errors import RequestError

UNITS = ("eV", "kcal/mol", "kJ/mol", "hartree")

_SPELLINGS = {
    "ev": "eV",
    "kcal/mol": "kcal/mol",
    "kcalmol-1": "kcal/mol",
    "kj/mol": "kJ/mol",
    "kjmol-1": "kJ/mol",
    "hartree": "hartree",
    "ha": "hartree",
    "eh": "hartree",
    "au": "hartree",
    "a.u.": "hartree",
}

# Non-relativistic energies of the free atoms H to Ar in hartree (Chakravorty et al., Phys. Rev. A 47, 3649,
# 1993), negated. Relativity changes the heaviest of them by 0.2 %.
_FREE_ATOMS = np.array(
    [
        [0.500, 2.904, 7.478, 14.667, 24.654, 37.845, 54.589, 75.067, 99.734],
        [128.938, 162.255, 200.053, 242.346, 289.359, 341.259, 398.110, 460.148, 527.540],
    ]
).ravel()
_BOUND = (0.97, 1.2)
"""Range of the total energy of a molecule over that of its free atoms; H2 has the largest, 1.17."""


@dataclass(frozen=True)
class EnergyUnit:
    """A unit of energy; forces are in the same unit per A.

    Attributes:
        name: one of UNITS.
        reason: how it is known, as a phrase for people.
        is_guess: whether it was concluded from the numbers or the kind of file.
    """

    name: str
    reason: str
    is_guess: bool = False

    @property
    def in_ev(self) -> float:
        """Its size in eV."""
        return unit_in_ev(self.name)


def unit_in_ev(name: str) -> float:
    """The size in eV of one of UNITS."""
    from ase import units

    sizes = {
        "eV": 1.0,
        "kcal/mol": units.kcal / units.mol,
        "kJ/mol": units.kJ / units.mol,
        "hartree": units.Hartree,
    }
    return float(sizes[name])


def parse_unit(text: str, where: str) -> str:
    """One of UNITS from its usual spellings; raises RequestError naming `where` for any other."""
    name = _SPELLINGS.get("".join(text.split()).lower())
    if name is None:
        raise RequestError(f"{where}: {text!r} is no unit of energy known here; known are {', '.join(UNITS)}")
    return name


def unit_of_total_energies(species: Sequence[NDArray[np.integer]], energies: ArrayLike) -> EnergyUnit | None:
    """The unit in which energies of whole molecules, all electrons included, have the size they must have.

    species: atomic numbers of each molecule; energies: one for each. Such an energy is that of the free atoms plus
    a binding energy of a few per cent, and the units differ by factors of 4 and more. None where the numbers fit no
    unit, which is so for energies above a reference and with pseudopotentials, or where an element is beyond Ar.
    """
    if not species or any(len(z) == 0 or z.min() < 1 or z.max() > len(_FREE_ATOMS) for z in species):
        return None
    atoms = np.array([_FREE_ATOMS[z - 1].sum() for z in species]) * unit_in_ev("hartree")
    ratio = -np.asarray(energies, dtype=np.float64) / atoms
    for name in UNITS:
        bound = ratio * unit_in_ev(name)
        if ((bound > _BOUND[0]) & (bound < _BOUND[1])).all():
            return EnergyUnit(
                name,
                f"in it they are {np.median(bound):.3f} times the energies of the free atoms",
                is_guess=True,
            )
    return None
