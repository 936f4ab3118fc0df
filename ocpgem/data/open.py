"""One door to every kind of data set: ocpgem's LMDBs, and whatever ASE reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ocpgem.data.dataset import Dataset, InMemoryDataset, Subset
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import DataError, RequestError


def open_dataset(path: str | Path, limit: int | None = None) -> Dataset:
    """The data set at `path`, its first `limit` systems if given.

    Folders and `.lmdb` files are read lazily; any other file is read into memory with ASE.
    Raises RequestError for a missing path or a limit below 1, DataError for content that cannot be used.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise RequestError(f"limit is {limit}; it must be at least 1")
    if not path.exists():
        raise RequestError(f"{path} does not exist")
    if not path.is_dir() and not path.name.endswith(".lmdb"):
        return InMemoryDataset(_read_with_ase(path, limit), path)
    dataset = LmdbDataset(path)
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, np.arange(limit))


def _read_with_ase(path: Path, limit: int | None) -> list[System]:
    from ase.io import iread
    from ase.io.formats import UnknownFileTypeError

    systems: list[System] = []
    try:
        for number, atoms in enumerate(iread(path, index=slice(0, limit))):
            systems.append(system_from_atoms(atoms, sid=number, source=f"{path}, record {number}"))
    except UnknownFileTypeError:
        raise DataError(f"{path} is of a kind that neither ocpgem nor ASE reads") from None
    except DataError:
        raise
    except Exception as error:  # ASE's readers raise whatever the damaged content leads to
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}, record {len(systems)}: ASE cannot read it ({reason})") from None
    return systems
