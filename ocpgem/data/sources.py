"""What users bring: which files to read, and the frames in each of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem.data.ase_files import read_atoms
from ocpgem.data.ase_lmdb import SUFFIX, count_ase_lmdb, read_ase_lmdb
from ocpgem.data.lmdb_store import METADATA_FILE
from ocpgem.data.molecules import read_molecules
from ocpgem.data.raw_oc20 import Chunk, chunk_of, read_chunk
from ocpgem.data.released_lmdb import (
    PICKLED_LISTS,
    count_released,
    is_released,
    read_pickled_list,
    read_released,
    system_of,
)
from ocpgem.data.system import System, system_from_atoms
from ocpgem.data.units import EnergyUnit, unit_of_total_energies
from ocpgem.errors import DataError, RequestError

FRAMES_PER_PIECE = 50_000
MARGIN = 6.0
"""A on every side of the atoms in the box that a molecule without a cell gets."""

RAW_OC20 = "raw OC20: labels are energies minus the references in the txt file, which also numbers the frames"
SPECIAL_CONSTRAINT = "lost constraints other than FixAtoms"
BOXED = f"got a cell of the atoms' extent and {MARGIN:g} A a side along axes that do not repeat and had none"

_PACKED = r"(?:\.(?:gz|bz2|xz))?"
_KINDS = {
    "extxyz": re.compile(rf".+\.(?:ext)?xyz{_PACKED}"),
    "traj": re.compile(r".+\.traj"),
    "db": re.compile(r".+\.db"),
    "npz": re.compile(r"(?!metadata\.npz$).+\.npz"),  # metadata.npz lies beside released LMDBs
    "LMDB": re.compile(r".+\.lmdb"),
    "ase-lmdb": re.compile(r".+\.aselmdb"),
    "VASP": re.compile(rf"(?:.*OUTCAR.*|vasprun.*\.xml{_PACKED})"),
}
_SAMPLE = 20
_UNFIT = "fields that are missing, or of another kind or shape than atoms need"


@dataclass(frozen=True)
class Frame:
    """One record of a file.

    Attributes:
        record: number of the record in its file.
        system: energies in eV.
        sid, fid: the numbers that the file gives it, if it does.
        remarks: what was changed about it.
    """

    record: int
    system: System
    sid: int | None = None
    fid: int | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unfit:
    """A record that no `System` can hold, and why."""

    record: int
    reason: str


@dataclass(frozen=True)
class Unreadable:
    """A record that is damaged or refused, while those after it can be read; `error` names it."""

    record: int
    error: str


@dataclass(frozen=True)
class Piece:
    """A file to read, or the records `first` to `last - 1` of an archive."""

    file: int
    path: Path
    unit_in_ev: float
    first: int = 0
    last: int | None = None


def find_files(sources: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The files to read, in order, and remarks on those that were passed over.

    A folder stands for the files of one kind below it (one of `_KINDS`), in natural order of
    their names. Raises RequestError for what does not exist, holds no such files, or several kinds.
    """
    files: list[Path] = []
    remarks: list[str] = []
    for source in sources:
        if not source.exists():
            raise RequestError(f"{source} does not exist")
        if source.is_dir():
            found, passed_over = _files_below(source)
            files += found
            remarks += passed_over
        else:
            files.append(source)
    twice = [path for path, count in Counter(path.resolve() for path in files).items() if count > 1]
    if twice:
        raise RequestError(f"{twice[0]} is named twice")
    for path in files:
        if path.suffix == ".lmdb" and not is_released(path):
            raise RequestError(f"{path} is ocpgem's own already; data merge writes it in other shards")
    return files, remarks


def is_raw_oc20(folder: Path) -> bool:
    """Whether a folder is laid out as a raw OC20 archive: N.extxyz.xz, or N.extxyz with N.txt beside it."""
    if not folder.is_dir():
        return False
    for path in folder.rglob("*.extxyz*"):
        name, _, end = path.name.partition(".extxyz")
        if (name.isdecimal() and end == ".xz") or chunk_of(path) is not None:
            return True
    return False


def energy_unit(path: Path) -> EnergyUnit:
    """The unit of a file's energies; raises RequestError where it cannot be told.

    ASE's readers return eV, except that extxyz holds whatever was written; there it is checked that the numbers are
    not those of total energies in another unit.
    """
    if path.suffix == ".npz":
        return read_molecules(path).energy_unit()
    if path.suffix in (".lmdb", *PICKLED_LISTS):
        return EnergyUnit("eV", "released LMDBs and pickles are so by convention", is_guess=True)
    if not _KINDS["extxyz"].fullmatch(path.name):
        return EnergyUnit("eV", "ASE's readers return it")
    if chunk_of(path) is not None:
        return EnergyUnit("eV", RAW_OC20)
    found = _unit_of_first_frames(path)
    if found is not None and found.name != "eV":
        raise RequestError(
            f"{path} should be in eV, but its energies look like {found.name} ({found.reason}); say with --units "
            "which it is"
        )
    return EnergyUnit("eV", "extxyz is in eV by convention", is_guess=True)


def pieces_of(file: int, path: Path, unit_in_ev: float) -> list[Piece]:
    """The parts in which a file is read; large archives and LMDBs have several."""
    if path.suffix == ".npz":
        n_frames = read_molecules(path).n_frames
    elif path.suffix == ".lmdb":
        n_frames = count_released(path)
    elif path.suffix == SUFFIX:
        n_frames = count_ase_lmdb(path)
    else:
        return [Piece(file, path, unit_in_ev)]
    starts = range(0, max(n_frames, 1), FRAMES_PER_PIECE)
    return [Piece(file, path, unit_in_ev, a, min(a + FRAMES_PER_PIECE, n_frames)) for a in starts]


def read_frames(piece: Piece) -> Iterator[Frame | Unfit | Unreadable]:
    """The frames of a piece; raises DataError, naming the file, where it cannot be read on."""
    if piece.path.suffix == ".npz":
        return _molecule_frames(piece)
    if piece.path.suffix in (".lmdb", *PICKLED_LISTS):
        return _released_frames(piece)
    if piece.path.suffix == SUFFIX:
        return _ase_lmdb_frames(piece)
    chunk = chunk_of(piece.path)
    return _ase_frames(piece) if chunk is None else _chunk_frames(piece, chunk)


def give_missing_vectors(system: System) -> bool:
    """Give `system` the cell vectors it lacks along axes that do not repeat; whether it lacked any.

    They span the atoms and 6 A on either side, at right angles to the others. Nothing is moved.
    """
    from ase.geometry import complete_cell

    cell = system.cell.astype(np.float64)
    missing = ~system.pbc & (np.linalg.norm(cell, axis=1) == 0)
    if (
        len(system.pos) == 0
        or not missing.any()
        or not np.isfinite(system.pos).all()
        or not np.isfinite(cell).all()
    ):
        return False
    directions = complete_cell(cell)[missing]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    extent = np.ptp(system.pos.astype(np.float64) @ directions.T, axis=0)
    cell[missing] = directions * (extent + 2 * MARGIN)[:, None]
    system.cell = cell.astype(np.float32)
    return True


def _molecule_frames(piece: Piece) -> Iterator[Frame | Unfit]:
    archive = read_molecules(piece.path)
    numbers = archive.numbers()
    for record in range(piece.first, archive.n_frames if piece.last is None else piece.last):
        sid, fid = (None, None) if numbers is None else (int(numbers[0][record]), int(numbers[1][record]))
        try:
            system = archive.system(record, piece.unit_in_ev)
        except DataError:
            yield Unfit(record, "an atomic number outside 0 to 255")
            continue
        yield Frame(record, system, sid, fid, _boxed(system))


def _ase_frames(piece: Piece) -> Iterator[Frame | Unfit]:
    from ase.constraints import FixAtoms

    for record, atoms in enumerate(read_atoms(piece.path)):
        try:
            system = system_from_atoms(atoms, source=f"{piece.path}, record {record}")
        except DataError:
            yield Unfit(record, "tags, elements, labels or numbers that cannot be read")
            continue
        if piece.unit_in_ev != 1.0:
            _scale(system, piece.unit_in_ev)
        special = any(not isinstance(constraint, FixAtoms) for constraint in atoms.constraints)
        sid = system.sid if "sid" in atoms.info else None
        fid = system.fid if "fid" in atoms.info else None
        remarks = (SPECIAL_CONSTRAINT,) if special else ()
        yield Frame(record, system, sid, fid, remarks + _boxed(system))


def _chunk_frames(piece: Piece, chunk: Chunk) -> Iterator[Frame]:
    for record, system in enumerate(read_chunk(chunk)):
        yield Frame(record, system, system.sid, system.fid, _boxed(system))


def _released_frames(piece: Piece) -> Iterator[Frame | Unfit | Unreadable]:
    """Records without a frame number, as those of IS2RE are, are frame 0 of their system."""
    records: Iterable[tuple[dict[str, Any] | DataError, str]]
    if piece.path.suffix == ".lmdb":
        records = read_released(piece.path, piece.first, piece.last)
    else:
        records = read_pickled_list(piece.path)
    for record, (fields, where) in enumerate(records, piece.first):
        if isinstance(fields, DataError):
            yield Unreadable(record, str(fields))
            continue
        try:
            system = system_of(fields, where)
        except DataError:
            yield Unfit(record, _UNFIT)
            continue
        if piece.unit_in_ev != 1.0:
            _scale(system, piece.unit_in_ev)
        yield Frame(record, system, system.sid if "sid" in fields else None, system.fid, _boxed(system))


def _ase_lmdb_frames(piece: Piece) -> Iterator[Frame | Unfit | Unreadable]:
    rows = read_ase_lmdb(piece.path, piece.first, piece.last)
    for record, (fields, where) in enumerate(rows, piece.first):
        if isinstance(fields, DataError):
            yield Unreadable(record, str(fields))
            continue
        try:
            system = system_of(fields, where)
        except DataError:
            yield Unfit(record, _UNFIT)
            continue
        if piece.unit_in_ev != 1.0:
            _scale(system, piece.unit_in_ev)
        remarks = (SPECIAL_CONSTRAINT,) if "special_constraints" in fields else ()
        sid, fid = (getattr(system, key) if key in fields else None for key in ("sid", "fid"))
        yield Frame(record, system, sid, fid, remarks + _boxed(system))


def _boxed(system: System) -> tuple[str, ...]:
    return (BOXED,) if give_missing_vectors(system) else ()


def _scale(system: System, factor: float) -> None:
    if system.energy is not None:
        system.energy *= factor
    if system.energy_relaxed is not None:
        system.energy_relaxed *= factor
    if system.forces is not None:
        system.forces = (system.forces.astype(np.float64) * factor).astype(np.float32)


def _unit_of_first_frames(path: Path) -> EnergyUnit | None:
    try:
        known = [
            (atoms.numbers, energy)
            for atoms in islice(read_atoms(path, _SAMPLE), _SAMPLE)
            if (energy := system_from_atoms(atoms).energy) is not None and np.isfinite(energy)
        ]
    except DataError:
        return None  # the conversion itself says what is wrong, and with which record
    return unit_of_total_energies([species for species, _ in known], [energy for _, energy in known])


def _files_below(folder: Path) -> tuple[list[Path], list[str]]:
    if (folder / METADATA_FILE).exists():
        raise RequestError(f"{folder} is a data set of ocpgem already; data merge writes it in other shards")
    everything = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: _natural(folder, p))
    by_kind: dict[str, list[Path]] = {}
    for path in everything:
        for kind, pattern in _KINDS.items():
            if pattern.fullmatch(path.name):
                by_kind.setdefault(kind, []).append(path)
                break
    if not by_kind:
        raise RequestError(
            f"{folder} holds no file of a kind that convert looks for ({', '.join(_KINDS)}); name others one by one"
        )
    if len(by_kind) > 1:
        kinds = ", ".join(f"{kind} ({len(paths)} files)" for kind, paths in by_kind.items())
        raise RequestError(f"{folder} holds several kinds of files, {kinds}; name those that should be read")
    ((kind, files),) = by_kind.items()
    remarks: list[str] = []
    if kind == "VASP":
        files, remarks = _one_output_per_run(files)
    labels = {chunk.labels for path in files if (chunk := chunk_of(path)) is not None}
    ignored = [path for path in everything if not _KINDS[kind].fullmatch(path.name) and path not in labels]
    if ignored:
        remarks.append(
            f"passed over in {folder}: {len(ignored)} other files, the first is {ignored[0].relative_to(folder)}"
        )
    return files, remarks


def _one_output_per_run(files: list[Path]) -> tuple[list[Path], list[str]]:
    """A run's vasprun.xml where it has one, else its OUTCAR: both hold the same frames."""
    with_xml = {path.parent for path in files if path.name.startswith("vasprun")}
    kept = [path for path in files if path.name.startswith("vasprun") or path.parent not in with_xml]
    left = len(files) - len(kept)
    return kept, [f"passed over: {left} OUTCAR files beside a vasprun.xml, which is read"] if left else []


def _natural(folder: Path, path: Path) -> list[list[tuple[bool, int, str]]]:
    """A key that sorts run2 before run10."""
    return [
        [
            (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
            for part in re.split(r"(\d+)", name)
        ]
        for name in path.relative_to(folder).parts
    ]
