"""Records as the released tools pickle them, made with the installed torch and PyG; and LMDBs of them."""

import copyreg
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from torch_geometric.data import Data

from ocpgem.data.system import System

GENERATIONS = ("pyg1", "pyg2")


def s2ef_fields(system: System) -> dict[str, Any]:
    """What the released converter stores of a labelled frame."""
    n = system.n_atoms
    return {
        "pos": torch.tensor(system.pos),
        "cell": torch.tensor(system.cell)[None],
        "atomic_numbers": torch.tensor(system.atomic_numbers).float(),
        "natoms": n,
        "tags": torch.tensor(system.tags).long(),
        "fixed": torch.tensor(system.fixed).float(),
        "y": np.float64(system.energy),
        "force": torch.tensor(system.forces),
        "sid": system.sid,
        "fid": system.fid,
        "edge_index": torch.randint(0, n, (2, 5)),
        "cell_offsets": torch.zeros(5, 3, dtype=torch.long),
        "distances": torch.rand(5),
    }


def is2re_fields(system: System) -> dict[str, Any]:
    """What the released converter stores of a relaxation: its first structure and the relaxed one."""
    fields = s2ef_fields(system)
    for key in ("y", "force", "fid"):
        del fields[key]
    return fields | {
        "y_init": system.energy,
        "y_relaxed": np.float64(system.energy - 1.5),
        "pos_relaxed": torch.tensor(system.pos + np.float32(0.1)),
    }


def record_of(fields: dict[str, Any], generation: str = "pyg2", protocol: int = -1) -> bytes:
    """A pickled PyG object with these fields, of either generation."""
    if generation == "pyg2":
        return pickle.dumps(Data(**fields), protocol=protocol)
    file = io.BytesIO()
    old = object.__new__(Data)
    unused = dict.fromkeys(("x", "edge_attr", "normal", "face"))
    object.__getattribute__(old, "__dict__").update(unused | fields)
    _OldPickler(file, protocol).dump(old)
    return file.getvalue()


class _OldPickler(pickle.Pickler):
    """Pickles `Data` as PyG 1.x did: the state is the object's own dictionary."""

    def reducer_override(self, item: Any) -> Any:
        if type(item) is Data:
            return copyreg.__newobj__, (Data,), vars(item)
        return NotImplemented


def write_lmdb(path: Path, records: Sequence[bytes], length: int | None = None, **others: bytes) -> Path:
    """An LMDB of records under the keys 0, 1, ...; a key `length` only if given, and other keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(map(len, records)) * 4 + 2**20
    entries = {b"%d" % number: record for number, record in enumerate(records)}
    entries |= {key.encode(): value for key, value in others.items()}
    if length is not None:
        entries[b"length"] = pickle.dumps(length, protocol=-1)
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=size) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in entries.items():
            transaction.put(key, value)
    return path


def write_shards(folder: Path, systems: Sequence[System], generation: str) -> Path:
    """Two LMDBs of labelled frames, the first four systems in one and the others in the other."""
    records = [record_of(s2ef_fields(system), generation) for system in systems]
    write_lmdb(folder / "data.0000.lmdb", records[:4], 4)
    write_lmdb(folder / "data.0001.lmdb", records[4:], len(records) - 4)
    return folder


def assert_same(found: System, expected: System) -> None:
    """Positions, labels and numbers, in value and type."""
    for key in ("pos", "cell", "pbc", "atomic_numbers", "tags", "fixed", "forces"):
        array, wanted = getattr(found, key), getattr(expected, key)
        assert array.dtype == wanted.dtype, key
        assert np.array_equal(array, wanted), key
    assert (found.energy, found.sid, found.fid) == (expected.energy, expected.sid, expected.fid)


def sids(dataset: Any) -> list[int]:
    """Of all systems of a data set, in order."""
    return [dataset[index].sid for index in range(len(dataset))]
