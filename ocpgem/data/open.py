"""One door to every kind of data set: ocpgem's LMDBs, and whatever ASE reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.sizes import SizeTable, size_row, size_table
from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import DataError, RequestError


class Dataset(Protocol):
    """Systems by index, and how large each is."""

    path: Path

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> System: ...
    @property
    def n_atoms(self) -> NDArray[np.int32]: ...
    @property
    def n_edges(self) -> NDArray[np.int32]: ...
    @property
    def n_free(self) -> NDArray[np.int32]: ...
    @property
    def sids(self) -> NDArray[np.int64]: ...
    @property
    def fids(self) -> NDArray[np.int64]: ...


class _Sized:
    """The columns of a side table as properties."""

    @property
    def sizes(self) -> SizeTable:
        raise NotImplementedError

    @property
    def n_atoms(self) -> NDArray[np.int32]:
        return self.sizes["n_atoms"]

    @property
    def n_edges(self) -> NDArray[np.int32]:
        return self.sizes["n_edges"]

    @property
    def n_free(self) -> NDArray[np.int32]:
        return self.sizes["n_free"]

    @property
    def sids(self) -> NDArray[np.int64]:
        return self.sizes["sid"]

    @property
    def fids(self) -> NDArray[np.int64]:
        return self.sizes["fid"]


class InMemoryDataset(_Sized):
    """Systems in a list; edges are counted when the sizes are first asked for."""

    def __init__(self, systems: list[System], path: str | Path = "memory") -> None:
        if not systems:
            raise DataError(f"{path} holds no systems")
        self.path = Path(path)
        self._systems = systems
        self._table: SizeTable | None = None

    def __len__(self) -> int:
        return len(self._systems)

    def __getitem__(self, index: int) -> System:
        return self._systems[index]

    @property
    def sizes(self) -> SizeTable:
        if self._table is None:
            self._table = size_table([size_row(system) for system in self._systems])
        return self._table


class Subset(_Sized):
    """Some records of another data set, in the order given."""

    def __init__(self, dataset: Any, indices: NDArray[np.int64]) -> None:
        self.path: Path = dataset.path
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> System:
        system: System = self._dataset[int(self._indices[index])]
        return system

    @property
    def sizes(self) -> SizeTable:
        table: SizeTable = self._dataset.sizes[self._indices]
        return table


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
