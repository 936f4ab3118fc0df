"""A data set without some of its records."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.sizes import SizeTable
from ocpgem.data.system import System

Indices = NDArray[np.int64]


class Without(Dataset):
    """The systems of another data set but those left out, in their order; needs no memory for those that stay.

    left_out: their numbers, ascending.
    """

    def __init__(self, dataset: Dataset, left_out: Indices) -> None:
        self.path = dataset.path
        dataset.leave_out(left_out)
        self._dataset, self._left_out = dataset, left_out
        # How many systems stay before each one left out.
        self._before = left_out - np.arange(len(left_out))

    @property
    def stores_sizes(self) -> bool:
        """Whether the side table is known without reading records."""
        return self._dataset.stores_sizes

    def __len__(self) -> int:
        return len(self._dataset) - len(self._left_out)

    def __getitem__(self, index: int) -> System:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} usable records; there is no record {index}")
        return self._dataset[int(self._places(np.array([index]))[0])]

    @property
    def sizes(self) -> SizeTable:
        """The rows of the side table that stay."""
        return np.delete(self._dataset.sizes, self._left_out)

    def column(self, name: str) -> NDArray[Any]:
        """The entries of one column that stay."""
        return np.delete(self._dataset.column(name), self._left_out)

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some systems."""
        return self._dataset.rows(self._places(indices))

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """Neither these systems will be asked for."""
        self._dataset.leave_out(self._places(indices))

    def origin(self, index: int) -> str:
        """The file or folder that holds a system, and its number in the whole data set."""
        return self._dataset.origin(int(self._places(np.array([index]))[0]))

    def _places(self, indices: NDArray[np.integer]) -> NDArray[np.integer]:
        """Where systems are in the whole data set."""
        return indices + np.searchsorted(self._before, indices, side="right")
