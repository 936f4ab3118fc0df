"""Archives of molecules as the field publishes them: npz files of COLL, and of MD17, rMD17, MD22 and sGDML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.system import System, to_uint8
from ocpgem.data.units import EnergyUnit, parse_unit, unit_of_total_energies
from ocpgem.errors import DataError, RequestError
from ocpgem.zip_errors import ZIP_ERRORS

SAMPLE = 200
_MANY_MOLECULES, _ONE_MOLECULE = "COLL", "MD17"
_NAMES = {
    "z": ("z", "nuclear_charges"),
    "R": ("R", "coords"),
    "E": ("E", "energies"),
    "F": ("F", "forces"),
}
_ANGSTROM = {"a", "å", "ang", "angstrom", "angstroms", "ångström"}
_ATOMIZATION_EV = (-10.0, -1.0)  # per atom; in another unit such energies lie beyond


@dataclass(frozen=True)
class MoleculeArchive:
    """The arrays of one archive, in its own unit of energy; atoms of all frames one after another.

    Attributes:
        path: the file.
        layout: "COLL" (N, Z, R, E, F, id) or "MD17" (z, R, E, F or nuclear_charges, coords, energies, forces).
        ends: [n + 1] where each frame's atoms begin, and the end.
        z: atomic numbers, of all atoms (COLL) or of the one molecule (MD17).
        pos, forces: [atoms of all frames, 3]; forces may be absent.
        energies: [n], may be absent.
        ids: [n] numbers of the systems, COLL only.
        e_unit, r_unit: what the file says its units are.
    """

    path: Path
    layout: str
    ends: NDArray[np.int64]
    z: NDArray[np.int64]
    pos: NDArray[np.float64]
    energies: NDArray[np.float64] | None
    forces: NDArray[np.float64] | None
    ids: NDArray[np.int64] | None
    e_unit: str | None
    r_unit: str | None

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.ends) - 1

    def species(self, frame: int) -> NDArray[np.int64]:
        """Atomic numbers of a frame."""
        return self.z if self.layout == _ONE_MOLECULE else self.z[self.ends[frame] : self.ends[frame + 1]]

    def system(self, frame: int, unit_in_ev: float) -> System:
        """One frame, without a cell; `sid` and `fid` are 0. Energy (float64) and forces times `unit_in_ev`.

        Raises DataError for an atomic number outside 0 to 255.
        """
        atoms = slice(self.ends[frame], self.ends[frame + 1])
        n_atoms = int(self.ends[frame + 1] - self.ends[frame])
        where = f"{self.path}, record {frame}"
        return System(
            pos=self.pos[atoms].astype(np.float32),
            cell=np.zeros((3, 3), dtype=np.float32),
            pbc=np.zeros(3, dtype=bool),
            atomic_numbers=to_uint8(self.species(frame), "atomic number", where),
            tags=np.zeros(n_atoms, dtype=np.uint8),
            fixed=np.zeros(n_atoms, dtype=bool),
            energy=None if self.energies is None else float(self.energies[frame] * unit_in_ev),
            forces=None if self.forces is None else (self.forces[atoms] * unit_in_ev).astype(np.float32),
            source=where,
        )

    def numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Number of the system and of the frame within it, from `id` where the file has it."""
        if self.ids is None:
            return None
        order = np.argsort(self.ids, kind="stable")
        ordered = self.ids[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        occurrence = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        fids = np.empty_like(occurrence)
        fids[order] = occurrence
        return self.ids, fids

    def energy_unit(self) -> EnergyUnit:
        """The unit of the energies: as the file says, or guessed; raises RequestError where nothing tells."""
        if self.e_unit is not None:
            return EnergyUnit(parse_unit(self.e_unit, f"{self.path}, e_unit"), "the file says so (e_unit)")
        found = self._guessed_unit()
        if found is None:
            raise RequestError(
                f"{self.path} does not say the unit of its energies and their size fits none; "
                "give it with --units, such as --units kcal/mol"
            )
        return found

    def _guessed_unit(self) -> EnergyUnit | None:
        if self.energies is None or self.n_frames == 0:
            return EnergyUnit("eV", "there are no energies")
        frames = np.unique(np.linspace(0, self.n_frames - 1, min(SAMPLE, self.n_frames)).astype(int))
        finite = [int(frame) for frame in frames if np.isfinite(self.energies[frame])]
        total = unit_of_total_energies([self.species(i) for i in finite], self.energies[finite])
        if total is not None or self.layout != _MANY_MOLECULES or not finite:
            return total
        per_atom = float(np.mean(self.energies[finite] / np.diff(self.ends)[finite]))
        if _ATOMIZATION_EV[0] < per_atom < _ATOMIZATION_EV[1]:
            reason = f"COLL is published in eV, and {per_atom:.2f} eV an atom is an energy of atomization"
            return EnergyUnit("eV", reason, is_guess=True)
        return None


def read_molecules(path: Path) -> MoleculeArchive:
    """Read an npz archive of molecules; raises DataError, naming the file, for anything else in it."""
    arrays = _load(path)
    r_unit = _text(arrays.get("r_unit"))
    if r_unit is not None and r_unit.lower() not in _ANGSTROM:
        raise DataError(f"{path} gives positions in {r_unit!r} (r_unit); only A can be read, so rescale it")
    if {"N", "Z", "R"} <= arrays.keys():
        archive = _many_molecules(path, arrays, r_unit)
    else:
        archive = _one_molecule(path, arrays, r_unit)
    return archive


def _many_molecules(path: Path, arrays: dict[str, NDArray[Any]], r_unit: str | None) -> MoleculeArchive:
    counts = arrays["N"]
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
        raise DataError(f"{path}: N should be the number of atoms of each molecule, one whole number each")
    n, total = len(counts), int(counts.sum())
    return MoleculeArchive(
        path=path,
        layout=_MANY_MOLECULES,
        ends=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        z=_whole(path, "Z", _shaped(path, arrays, "Z", (total,))),
        pos=_numbers(path, arrays, "R", (total, 3)),
        energies=_numbers(path, arrays, "E", (n,)) if "E" in arrays else None,
        forces=_numbers(path, arrays, "F", (total, 3)) if "F" in arrays else None,
        ids=_whole(path, "id", _shaped(path, arrays, "id", (n,))) if "id" in arrays else None,
        e_unit=_text(arrays.get("e_unit")),
        r_unit=r_unit,
    )


def _one_molecule(path: Path, arrays: dict[str, NDArray[Any]], r_unit: str | None) -> MoleculeArchive:
    found = {short: next((name for name in names if name in arrays), None) for short, names in _NAMES.items()}
    species, positions = found["z"], found["R"]
    if species is None or positions is None:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; an archive of molecules holds N, Z, R, E, F or "
            "z, R, E, F or nuclear_charges, coords, energies, forces"
        )
    z, pos = arrays[species], arrays[positions]
    if z.ndim != 1 or pos.ndim != 3 or pos.shape[1:] != (len(z), 3):
        raise DataError(
            f"{path}: {species} has shape {z.shape} and {positions} has shape {pos.shape}; they should be "
            "[atoms] and [frames, atoms, 3]"
        )
    n, atoms = pos.shape[:2]
    energies, forces = found["E"], found["F"]
    return MoleculeArchive(
        path=path,
        layout=_ONE_MOLECULE,
        ends=np.arange(n + 1, dtype=np.int64) * atoms,
        z=_whole(path, species, z),
        pos=_numbers(path, arrays, positions, (n, atoms, 3)).reshape(-1, 3),
        energies=None if energies is None else _numbers(path, arrays, energies, (n,)),
        forces=None if forces is None else _numbers(path, arrays, forces, (n, atoms, 3)).reshape(-1, 3),
        ids=None,
        e_unit=_text(arrays.get("e_unit")),
        r_unit=r_unit,
    )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    wanted = {"N", "Z", "id", "e_unit", "r_unit", *(name for names in _NAMES.values() for name in names)}
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path} holds a single array; an archive of molecules is an npz file of several")
        with loaded:
            return {key: loaded[key] for key in loaded.files if key in wanted}
    except ZIP_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as an npz archive ({type(error).__name__}: {error})"
        ) from None


def _shaped(path: Path, arrays: dict[str, NDArray[Any]], key: str, shape: tuple[int, ...]) -> NDArray[Any]:
    array = arrays[key]
    if len(shape) == 1 and array.shape == (*shape, 1):
        array = array[:, 0]
    if array.shape != shape:
        raise DataError(f"{path}: {key} has shape {array.shape} where the other arrays need {shape}")
    return array


def _numbers(
    path: Path, arrays: dict[str, NDArray[Any]], key: str, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    array = _shaped(path, arrays, key, shape)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise DataError(f"{path}: {key} holds {array.dtype} values; they should be numbers")
    return array.astype(np.float64)


def _whole(path: Path, key: str, array: NDArray[Any]) -> NDArray[np.int64]:
    if not np.issubdtype(array.dtype, np.number) or (array.astype(np.int64) != array).any():
        raise DataError(f"{path}: {key} should be whole numbers")
    return array.astype(np.int64)


def _text(array: NDArray[Any] | None) -> str | None:
    """The text of a scalar array of strings or bytes."""
    if array is None or array.size != 1:
        return None
    value = array.reshape(()).item()
    return value.decode(errors="replace").strip() if isinstance(value, bytes) else str(value).strip()
