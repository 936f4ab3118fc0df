"""One atomic system as plain arrays: what a record stores and what a batch is made of.

This module needs numpy only, so that converting workers start in a fraction of a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

    from ocpgem.data.edge_store import StoredEdges

Float32 = NDArray[np.float32]

MAX_ATOMIC_NUMBER = 100
"""The heaviest element a record may hold; a model's own table may end earlier."""

_NUMBERED = re.compile(r"(-?\d{1,18})|[A-Za-z]+(\d{1,18})", re.ASCII)

MIN_CELL_VOLUME = 1e-6
"""Volume in A^3 (area, length along fewer periodic axes) below which a periodic cell counts as degenerate."""


@dataclass(slots=True, eq=False)
class System:
    """Atoms, cell and whatever labels are known; absent labels are None.

    Attributes:
        pos: positions [n, 3] in A.
        cell: cell vectors as rows [3, 3] in A.
        pbc: which cell vectors repeat [3].
        atomic_numbers: species [n], uint8.
        tags: 0 below the surface, 1 surface, 2 adsorbate [n], uint8.
        fixed: atoms that do not move and are left out of force errors [n].
        energy: eV.
        forces: [n, 3] in eV/A.
        sid, fid: number of the system and of the frame in its trajectory.
        energy_relaxed: energy in eV of the relaxed structure (IS2RE).
        pos_relaxed: relaxed positions [n, 3] in A (IS2RS).
        source: the file and record it came from, for messages.
        edges: edges that are stored with it, where the data set was asked for them (ocpgem.data.edge_store).
    """

    pos: Float32
    cell: Float32
    pbc: NDArray[np.bool_]
    atomic_numbers: NDArray[np.uint8]
    tags: NDArray[np.uint8]
    fixed: NDArray[np.bool_]
    energy: float | None = None
    forces: Float32 | None = None
    sid: int = 0
    fid: int = 0
    energy_relaxed: float | None = None
    pos_relaxed: Float32 | None = None
    source: str = ""
    edges: StoredEdges | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.atomic_numbers)

    @property
    def name(self) -> str:
        """How messages call it, such as `sid 12, frame 3`."""
        return f"sid {self.sid}, frame {self.fid}"

    @property
    def where(self) -> str:
        """Name and origin, such as `sid 12, frame 3 (train/data.0000.lmdb, record 7)`."""
        return f"{self.name} ({self.source})" if self.source else self.name

    def validate(self, max_atomic_number: int = MAX_ATOMIC_NUMBER) -> None:
        """Raise DataError, naming this system, unless every field can be used."""
        self.check_shapes()
        for key in ("pos", "cell", "energy", "forces", "energy_relaxed", "pos_relaxed"):
            value = getattr(self, key)
            if value is not None and not np.isfinite(value).all():
                raise DataError(f"{self.where}: {key} holds a value that is not finite (NaN or infinity)")
        heaviest, lightest = int(self.atomic_numbers.max()), int(self.atomic_numbers.min())
        if lightest < 1 or heaviest > max_atomic_number:
            bad = lightest if lightest < 1 else heaviest
            raise DataError(f"{self.where}: atomic number {bad} is outside 1 to {max_atomic_number}")
        if degenerate_cells(self.cell[None], self.pbc[None])[0]:
            raise DataError(f"{self.where}: the cell has no volume along its periodic axes")

    def check_shapes(self) -> None:
        """Raise DataError, naming this system, unless all arrays belong to the same number of atoms."""
        n = len(self.atomic_numbers)
        if n == 0:
            raise DataError(f"{self.where}: the system has no atoms")
        vectors, scalars = (n, 3), (n,)
        expected = (
            ("pos", self.pos, vectors),
            ("cell", self.cell, (3, 3)),
            ("pbc", self.pbc, (3,)),
            ("tags", self.tags, scalars),
            ("fixed", self.fixed, scalars),
            ("forces", self.forces, vectors),
            ("pos_relaxed", self.pos_relaxed, vectors),
        )
        for key, value, shape in expected:
            if value is not None and value.shape != shape:
                raise DataError(f"{self.where}: {key} has shape {value.shape}; {n} atoms need {shape}")

    def to_atoms(self) -> Atoms:
        """The system as `ase.Atoms`: fixed atoms as a constraint, labels in a single-point calculator."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.constraints import FixAtoms

        atoms = Atoms(
            numbers=self.atomic_numbers.astype(int),
            positions=self.pos.astype(float),
            cell=self.cell.astype(float),
            pbc=self.pbc,
            tags=self.tags.astype(int),
        )
        if self.fixed.any():
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        results: dict[str, Any] = {}
        if self.energy is not None:
            results["energy"] = self.energy
        if self.forces is not None:
            results["forces"] = self.forces.astype(float)
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info.update(sid=self.sid, fid=self.fid)
        if self.energy_relaxed is not None:
            atoms.info["energy_relaxed"] = self.energy_relaxed
        if self.pos_relaxed is not None:
            atoms.arrays["pos_relaxed"] = self.pos_relaxed.astype(float)
        return atoms


def system_from_atoms(atoms: Atoms, sid: int = 0, fid: int = 0, source: str = "") -> System:
    """Read an `ase.Atoms`: labels from its calculator (unconstrained) or its info and arrays.

    Tags come from `tags`, fixed atoms from `FixAtoms` constraints or `move_mask` (True: free to move).
    `sid` and `fid` in `atoms.info` win over the arguments. Raises DataError for a tag or species over 255 and for
    numbers or labels that are none.
    """
    info, arrays = atoms.info, atoms.arrays
    relaxed_pos, relaxed_energy = arrays.get("pos_relaxed"), info.get("energy_relaxed")
    try:
        energy, forces = _labels(atoms)
        fixed = _fixed(atoms)
        sid, fid = whole_number(info.get("sid", sid)), whole_number(info.get("fid", fid))
        relaxed_energy = None if relaxed_energy is None else float(relaxed_energy)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: its sid, fid, labels or fixed atoms cannot be read ({error})") from None
    where = f"sid {sid}, frame {fid} ({source})"
    return System(
        pos=np.asarray(atoms.positions, dtype=np.float32),
        cell=np.asarray(atoms.cell.array, dtype=np.float32),
        pbc=np.asarray(atoms.pbc, dtype=bool),
        atomic_numbers=to_uint8(atoms.numbers, "atomic number", where),
        tags=to_uint8(atoms.get_tags(), "tag", where),
        fixed=fixed,
        energy=energy,
        forces=forces,
        sid=sid,
        fid=fid,
        energy_relaxed=relaxed_energy,
        pos_relaxed=None if relaxed_pos is None else np.asarray(relaxed_pos, dtype=np.float32),
        source=source,
    )


def whole_number(value: Any) -> int:
    """The number of a system or frame: a number, text such as `12` or `random12`, or a list or array of one of these.

    Raises ValueError for anything else, and for what is not whole or beyond 64 bits.
    """
    number = value[0] if type(value) in (list, tuple) and len(value) == 1 else value
    if isinstance(number, np.ndarray | np.generic) and number.size == 1:
        number = number.reshape(()).item()
    if isinstance(number, str) and (match := _NUMBERED.fullmatch(number)):
        number = int(match[1] or match[2])
    if type(number) not in (int, float) or not abs(number) < 2**63 or number != int(number):
        plain = type(number) in (
            int,
            float,
            bool,
            str,
        )  # the text of an array or object would run code of its kind
        raise ValueError(f"{repr(number)[:40] if plain else type(number).__name__} is not a whole number")
    return int(number)


def to_uint8(values: NDArray[Any], what: str, where: str) -> NDArray[np.uint8]:
    """Integers as uint8; raises DataError naming the first that is not a whole number from 0 to 255."""
    narrow = np.asarray(values).astype(np.uint8)
    wrong = np.flatnonzero(narrow != values)
    if len(wrong):
        raise DataError(f"{where}: {what} {np.asarray(values)[wrong[0]]} is not a whole number from 0 to 255")
    return narrow


def degenerate_cells(cell: Float32, pbc: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells [B, 3, 3] span no volume along their periodic axes [B, 3]."""
    rows = cell.astype(np.float64)
    gram = rows @ rows.transpose(0, 2, 1)
    both = pbc[:, :, None] & pbc[:, None, :]
    gram = np.where(both, gram, np.eye(3))
    return np.asarray(np.linalg.det(gram) < MIN_CELL_VOLUME**2)


def _labels(atoms: Atoms) -> tuple[float | None, Float32 | None]:
    results = atoms.calc.results if atoms.calc is not None else {}
    energy = results.get("energy", atoms.info.get("energy"))
    forces = results.get("forces", atoms.arrays.get("forces"))
    return (
        None if energy is None else float(energy),
        None if forces is None else np.asarray(forces, dtype=np.float32),
    )


def _fixed(atoms: Atoms) -> NDArray[np.bool_]:
    from ase.constraints import FixAtoms

    fixed = np.zeros(len(atoms), dtype=bool)
    if "fixed" in atoms.arrays:
        fixed |= atoms.arrays["fixed"].astype(bool)
    if "move_mask" in atoms.arrays:
        fixed |= ~atoms.arrays["move_mask"].astype(bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return fixed
