"""One door to every kind of data set: ocpgem's LMDBs, released LMDBs and pickles, ase-lmdb, and whatever ASE reads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from ocpgem.data.ase_files import UnknownKindError, read_atoms
from ocpgem.data.ase_lmdb import SUFFIX, AseLmdb, ase_lmdb_files
from ocpgem.data.dataset import Dataset, InMemoryDataset, Subset
from ocpgem.data.lmdb_store import METADATA_FILE, LmdbDataset
from ocpgem.data.raw_oc20 import chunk_of, read_chunk
from ocpgem.data.released_lmdb import PICKLED_LISTS, ReleasedLmdb, is_released, read_pickled_list, system_of
from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import RequestError


def open_dataset(path: str | Path, limit: int | None = None) -> Dataset:
    """The data set at `path`, its first `limit` systems if given.

    Folders, `.lmdb` and `.aselmdb` files are read lazily; pickled lists of PyG objects (.pkl, .pt) and whatever ASE
    reads are read into memory, a chunk of a raw OC20 archive with its txt file. Nothing in a file is ever run.
    Raises RequestError for a path where no data set is, a file of a kind that is not read, or a limit below 1,
    DataError for content that cannot be used.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise RequestError(f"limit is {limit}; it must be at least 1")
    if not path.exists():
        raise RequestError(f"{path} does not exist")
    if not path.is_dir() and path.suffix not in (".lmdb", SUFFIX):
        if path.suffix == ".npz":
            raise RequestError(f"{path} is an archive; convert it first: data convert {path} --out FOLDER")
        read = _read_pickles if path.suffix in PICKLED_LISTS else _read_structures
        try:
            return InMemoryDataset(read(path, limit), path)
        except UnknownKindError as error:
            raise RequestError(str(error)) from None
    dataset = _open_lmdbs(path)
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, np.arange(limit))


def _open_lmdbs(path: Path) -> Dataset:
    if not (path / METADATA_FILE).exists() and ase_lmdb_files(path):
        return AseLmdb(path)
    return ReleasedLmdb(path) if is_released(path) else LmdbDataset(path)


def _read_pickles(path: Path, limit: int | None) -> list[System]:
    records = read_pickled_list(path)[:limit]
    return [system_of(fields, where, default_sid=number) for number, (fields, where) in enumerate(records)]


def _read_structures(path: Path, limit: int | None) -> list[System]:
    chunk = chunk_of(path)
    if chunk is not None:
        return list(islice(read_chunk(chunk), limit))
    return [
        system_from_atoms(atoms, sid=number, source=f"{path}, record {number}")
        for number, atoms in enumerate(read_atoms(path, limit))
    ]
