"""Which records of foreign files are kept, and which tags their atoms get."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ocpgem.data.sizes import CUTOFF, count_edges
from ocpgem.data.system import MAX_ATOMIC_NUMBER, System, degenerate_cells
from ocpgem.errors import DataError, RequestError

ADSORBATES = ("C", "H", "N", "O")
MISSING_ENERGY, MISSING_FORCES = "no energy", "no forces"


@dataclass(frozen=True)
class Limits:
    """What a record must have to be kept.

    Attributes:
        require: forces (and the energy), only the energy, or nothing.
        max_force: largest norm of the force on a free atom in eV/A.
        max_energy_per_atom: largest absolute energy per atom in eV.
    """

    require: Literal["forces", "energy", "nothing"] = "forces"
    max_force: float | None = None
    max_energy_per_atom: float | None = None

    def check(self) -> None:
        """Raise RequestError unless the limits are above zero."""
        for option, limit in (
            ("max-force", self.max_force),
            ("max-energy-per-atom", self.max_energy_per_atom),
        ):
            if limit is not None and not limit > 0:
                raise RequestError(f"--{option} is {limit}; it must be above 0")

    def fault(self, system: System) -> str | None:
        """Why a system is left out; None where it can be kept."""
        return _missing_label(system, self.require) or _unusable(system) or self._beyond(system)

    def _beyond(self, system: System) -> str | None:
        energy_limit = self.max_energy_per_atom
        if energy_limit is not None and abs(system.energy or 0.0) / system.n_atoms > energy_limit:
            return f"an energy above {energy_limit:g} eV per atom"
        if self.max_force is not None and system.forces is not None:
            norms = np.linalg.norm(system.forces[~system.fixed].astype(np.float64), axis=1)
            if (norms > self.max_force).any():
                return f"a force above {self.max_force:g} eV/A on a free atom"
        return None


def edges_or_fault(system: System) -> tuple[int, str | None]:
    """The number of edges of the side table, and why the system cannot be used if it cannot."""
    try:
        n_edges = count_edges(system)
    except DataError:
        return 0, "positions or a cell in which no neighbours can be searched"
    return n_edges, None if n_edges else f"no two atoms within {CUTOFF:g} A"


@dataclass(frozen=True)
class TagRule:
    """How atoms get their tags (0 below the surface, 1 surface, 2 adsorbate).

    Attributes:
        name: `keep` those of the file, `all` atoms the same one, or `slab`: fixed atoms 0, free atoms of the
            adsorbate's elements 2, all others 1.
        tag: the one for `all`.
        adsorbate: atomic numbers for `slab`.
    """

    name: Literal["keep", "all", "slab"]
    tag: int = 0
    adsorbate: tuple[int, ...] = ()

    @staticmethod
    def parse(text: str) -> TagRule:
        """A rule from `keep`, `0`, `1`, `2`, `slab` or `slab:C,H`; raises RequestError for anything else."""
        from ase.data import atomic_numbers

        if text == "keep":
            return TagRule("keep")
        if text in ("0", "1", "2"):
            return TagRule("all", tag=int(text))
        match = re.fullmatch(r"slab(?::(.+))?", text)
        if match is None:
            raise RequestError(
                f"--tags {text} is no rule; write keep, 0, 1, 2, slab or slab:C,H with the adsorbate's elements"
            )
        symbols = [symbol.strip() for symbol in match[1].split(",")] if match[1] else list(ADSORBATES)
        unknown = [symbol for symbol in symbols if not atomic_numbers.get(symbol)]
        if unknown:
            raise RequestError(f"--tags {text}: {unknown[0]!r} is not the symbol of an element")
        return TagRule("slab", adsorbate=tuple(atomic_numbers[symbol] for symbol in symbols))

    def apply(self, system: System) -> None:
        """Set the tags of a system."""
        if self.name == "all":
            system.tags = np.full(system.n_atoms, self.tag, dtype=np.uint8)
        elif self.name == "slab":
            free_adsorbate = np.isin(system.atomic_numbers, self.adsorbate) & ~system.fixed
            system.tags = np.where(system.fixed, 0, np.where(free_adsorbate, 2, 1)).astype(np.uint8)


@dataclass
class Tally:
    """How many records something concerns, by what it is, and the first of them."""

    entries: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Count records; `where` names the first."""
        before, first = self.entries.get(what, (0, where))
        self.entries[what] = (before + count, first)

    def merge(self, entries: dict[str, Any]) -> None:
        """Add the entries of a later tally."""
        for what, (count, first) in entries.items():
            self.add(what, first, count)

    @property
    def total(self) -> int:
        """All that was counted."""
        return sum(count for count, _ in self.entries.values())

    def lines(self) -> list[str]:
        """One line for each, such as `3: no forces (first: a.traj, record 2)`."""
        return [f"  {count}: {what} (first: {first})" for what, (count, first) in self.entries.items()]


def _missing_label(system: System, require: str) -> str | None:
    if require != "nothing" and system.energy is None:
        return MISSING_ENERGY
    if require == "forces" and system.forces is None:
        return MISSING_FORCES
    return None


def _unusable(system: System) -> str | None:
    if system.n_atoms == 0:
        return "no atoms"
    try:
        system.check_shapes()
    except DataError:
        return "arrays whose shapes do not fit the number of atoms"
    for key in ("energy", "forces", "pos", "cell", "energy_relaxed", "pos_relaxed"):
        value = getattr(system, key)
        if value is not None and not np.isfinite(value).all():
            return f"{key} that is not finite (NaN or infinity)"
    if system.atomic_numbers.min() < 1 or system.atomic_numbers.max() > MAX_ATOMIC_NUMBER:
        return f"an element outside 1 to {MAX_ATOMIC_NUMBER}"
    if degenerate_cells(system.cell[None], system.pbc[None])[0]:
        return "a periodic axis without a cell vector of its own"
    return None
