"""What every data set offers: systems by index, and a side table of how large each is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.draws import Draws
from ocpgem.data.sizes import NO_SIZE, SizeTable, size_row, size_table
from ocpgem.data.system import System
from ocpgem.errors import RequestError
from ocpgem.graph.spec import GraphSpec


class Dataset(ABC):
    """Systems by index; the columns of the side table have one entry per system."""

    path: Path

    @property
    def stores_sizes(self) -> bool:
        """Whether the side table is known without reading records."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """How many systems there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> System:
        """One system; raises DataError naming its record where it cannot be read."""

    @property
    @abstractmethod
    def sizes(self) -> SizeTable:
        """The side table (ocpgem.data.sizes), one row per system."""

    def column(self, name: str) -> NDArray[Any]:
        """One column of the side table."""
        return self.sizes[name]

    def draws(self, seed: int) -> Draws | None:
        """How often training draws each system; None where each is drawn once in every epoch."""
        return None

    def use_stored_edges(self, graph: GraphSpec) -> None:
        """Hand out systems with their edges of this graph, as `data edges` has stored them.

        Raises RequestError where there are none.
        """
        raise RequestError(
            f"{self.path} cannot have stored edges, only the folder of a data set of ocpgem can; convert it first "
            "(data convert), or set data.stored_edges: false"
        )

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """These systems will not be asked for, and must not be in the way of the side table if they are unusable."""
        return

    def is_left_out(self, index: int) -> bool:
        """Whether `leave_out` has named this system."""
        return False

    def origin(self, index: int) -> str:
        """The file or folder that holds a system, and its number there, for messages."""
        return f"{self.path}, record {index}"

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some systems."""
        return self.sizes[indices]

    def rows_in_order(self, at_once: int = 1 << 18) -> Iterator[tuple[int, SizeTable]]:
        """The whole side table, some rows at a time, each time with the number of the first of them."""
        for first in range(0, len(self), at_once):
            yield first, self.rows(np.arange(first, min(first + at_once, len(self))))

    @property
    def n_atoms(self) -> NDArray[np.int32]:
        """Atoms of each system."""
        return self.column("n_atoms")

    @property
    def n_edges(self) -> NDArray[np.int32]:
        """Directed edges of each system within 6 A, nearest 50 per atom."""
        return self.column("n_edges")

    @property
    def n_free(self) -> NDArray[np.int32]:
        """Atoms of each system that are not fixed."""
        return self.column("n_free")

    @property
    def sids(self) -> NDArray[np.int64]:
        """Number of each system."""
        return self.column("sid")

    @property
    def fids(self) -> NDArray[np.int64]:
        """Number of each frame within its system."""
        return self.column("fid")


class InMemoryDataset(Dataset):
    """Systems in a list; edges are counted when the sizes are first asked for."""

    def __init__(self, systems: list[System], path: str | Path = "memory") -> None:
        if not systems:
            raise RequestError(f"{path} holds no systems")
        self.path = Path(path)
        self._systems = systems
        self._table: SizeTable | None = None
        self._left_out: set[int] = set()

    def __len__(self) -> int:
        return len(self._systems)

    def __getitem__(self, index: int) -> System:
        return self._systems[index]

    @property
    def sizes(self) -> SizeTable:
        """The side table, made when first asked for."""
        if self._table is None:
            rows = [
                NO_SIZE if index in self._left_out else size_row(system)
                for index, system in enumerate(self._systems)
            ]
            self._table = size_table(rows)
        return self._table

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """Their rows of the side table are zeros."""
        self._left_out.update(indices.tolist())


class Subset(Dataset):
    """Some systems of another data set, in the order given."""

    def __init__(self, dataset: Dataset, indices: NDArray[np.int64]) -> None:
        self.path = dataset.path
        self._dataset = dataset
        self._indices = indices

    @property
    def stores_sizes(self) -> bool:
        """Whether the side table is known without reading records."""
        return self._dataset.stores_sizes

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> System:
        return self._dataset[int(self._indices[index])]

    @property
    def sizes(self) -> SizeTable:
        """The rows of the whole data set's side table that belong here."""
        return self._dataset.sizes[self._indices]

    def column(self, name: str) -> NDArray[Any]:
        """The entries of one column that belong here."""
        return self._dataset.column(name)[self._indices]

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """These systems will not be asked for."""
        self._dataset.leave_out(self._indices[indices])

    def origin(self, index: int) -> str:
        """The file or folder that holds a system, and its number in the whole data set."""
        return self._dataset.origin(int(self._indices[index]))

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some systems."""
        return self._dataset.rows(self._indices[indices])
