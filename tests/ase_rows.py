"""Structures as they stand in ase-lmdb files, and a writer of that layout for content that no other writer makes.

`tests/fixtures/ase_db_backends_0.11.aselmdb` was written by the package ase-db-backends 0.11.0 (with lmdb 3.0.0 and
ASE 3.29.0), which is not installed here: `LMDBDatabase(path)`, `write(atoms, data={"sid": f"random{100 + i}",
"fid": i})` for each of `structures()`, `delete([2])`.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane

FIXTURE = Path(__file__).parent / "fixtures/ase_db_backends_0.11.aselmdb"


def structures() -> list[Atoms]:
    """A slab with fixed atoms and tags, one that is deleted, a molecule in no cell, and one without labels."""
    slab = Atoms("Cu2O", [[0, 0, 1], [1.8, 1.8, 2.5], [0, 0.2, 4.3]], cell=[3.6, 3.6, 15], pbc=True)
    slab.set_tags([0, 1, 2])
    slab.set_constraint(FixAtoms([0]))
    deleted = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])
    water = Atoms("OH2", [[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]])
    water.set_constraint(FixedPlane(0, (1, 0, 0)))
    bare = Atoms(
        "Pt2", [[0, 0, 0], [0, 0, 2.5]], cell=[[4, 0, 0], [1, 4, 0], [0, 1, 9]], pbc=[True, True, False]
    )
    for number, atoms in enumerate((slab, deleted, water)):
        forces = np.arange(3.0 * len(atoms)).reshape(-1, 3) / 8 - number
        atoms.calc = SinglePointCalculator(atoms, energy=-1234.5678901 - number, forces=forces)
    return [slab, deleted, water, bare]


def row_of(atoms: Atoms, **others: Any) -> dict[str, Any]:
    """The least that a row holds."""
    row = {key: stored(getattr(atoms, key)) for key in ("numbers", "positions", "pbc")}
    row["cell"] = stored(atoms.cell.array)
    if atoms.calc is not None:
        row |= {"energy": atoms.calc.results["energy"], "forces": stored(atoms.calc.results["forces"])}
    return row | others


def stored(array: np.ndarray) -> dict[str, Any]:
    """An array as ASE writes it."""
    return {"__ndarray__": [list(array.shape), str(array.dtype), array.ravel().tolist()]}


def write_rows(path: Path, rows: list[Any], **others: Any) -> Path:
    """An ase-lmdb file; rows and other values are packed JSON unless they are bytes."""
    entries = {str(number): row for number, row in enumerate(rows, 1)} | {"nextid": len(rows) + 1} | others
    packed = {
        key.encode(): value if isinstance(value, bytes) else zlib.compress(json.dumps(value).encode())
        for key, value in entries.items()
        if value is not None
    }
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as env, env.begin(write=True) as txn:
        for key, value in packed.items():
            txn.put(key, value)
    return path
