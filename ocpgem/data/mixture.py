"""Several data sets as one: their systems numbered through, one set after the other, and drawn by weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.draws import Draws
from ocpgem.data.sizes import SIZES, SizeTable
from ocpgem.data.system import System


class Mixture(Dataset):
    """The systems of several data sets, those of the first set first.

    weights: how often each set is drawn relative to its size (ocpgem.data.draws); they concern training only.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float] | None = None) -> None:
        self.datasets = tuple(datasets)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.datasets)
        self.path = self.datasets[0].path
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> System:
        number, place = self.locate(index)
        return self.datasets[number][place]

    @property
    def sizes(self) -> SizeTable:
        """The side tables of all sets, joined."""
        return np.concatenate([dataset.sizes for dataset in self.datasets])

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some systems."""
        found = np.empty(len(indices), dtype=SIZES)
        sets = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(sets).tolist():
            mine = sets == number
            first = self._ends[number] - len(self.datasets[number])
            found[mine] = self.datasets[number].rows(indices[mine] - first)
        return found

    def column(self, name: str) -> NDArray[Any]:
        """One column of the joined side table, without the others."""
        return np.concatenate([dataset.column(name) for dataset in self.datasets])

    def draws(self, seed: int) -> Draws:
        """How the sets are drawn in training."""
        return Draws(tuple(len(dataset) for dataset in self.datasets), self.weights, seed)

    def locate(self, index: int) -> tuple[int, int]:
        """Which set holds a system, and where in it."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} systems; there is no system {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (int(self._ends[number - 1]) if number else 0)

    def origin(self, index: int) -> str:
        """The data set that holds a system, and its number there."""
        number, place = self.locate(index)
        return self.datasets[number].origin(place)
