"""Neighbours of a moving system: one search with a margin serves until an atom has moved half of it."""

import threading

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocpgem.errors import RequestError
from ocpgem.graph.neighbors import MIN_DISTANCE, NeighborList, neighbor_search

Floats = NDArray[np.float64]
DEFAULT_SKIN = 0.6  # A; of 0.3 to 1.5 none is faster in relaxations (benchmarks/results/relaxation_table.md)
_ROUNDING = 1e-9  # A, by which a displacement may be underestimated


class SkinList:
    """Gives what `neighbor_search` would give at every position of one moving system, mostly without a search.

    All pairs within `cutoff + skin` are remembered; as long as no atom is farther than skin / 2 from where it was
    then, no other pair can have come within the cutoff. Distances and the choice by the cutoff are computed anew at
    every call with the search's own arithmetic, and the order of pairs is that of the search, so that a nearest-K
    rule or a tie sees nothing else. A change of the cell, of pbc or of the number of atoms leads to a new search.
    (Atoms that coincide, closer than 0.01 A, count as one until the next search.)
    """

    def __init__(self, cutoff: float, skin: float = DEFAULT_SKIN) -> None:
        """cutoff, skin: A; a skin of 0 means a search at every call."""
        if not 0 <= skin < float("inf"):
            raise RequestError(f"the skin of the neighbour list is {skin} A; it must be 0 or more")
        self.cutoff, self.skin = cutoff, skin
        self.n_searches = 0
        self._pos: Floats | None = None
        self._cell: Floats
        self._pbc: NDArray[np.bool_]
        self._candidates: NeighborList
        self._shift: Floats

    def covers(self, pos: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> bool:
        """Whether the remembered pairs suffice for these positions."""
        if self._pos is None or self._pos.shape != pos.shape:
            return False
        if not (np.array_equal(self._cell, cell) and np.array_equal(self._pbc, pbc)):
            return False
        moved = pos - self._pos
        farthest = float(np.einsum("ij,ij->i", moved, moved).max())
        return bool(np.sqrt(farthest) <= self.skin / 2 - _ROUNDING)

    def neighbors(self, pos: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
        """As `neighbor_search(pos, cell, pbc, cutoff)`."""
        pos = np.ascontiguousarray(pos, dtype=np.float64)
        cell = np.array(cell, dtype=np.float64)
        pbc = np.array(np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)))
        if not self.covers(pos, cell, pbc):
            self.n_searches += 1
            found = neighbor_search(pos, cell, pbc, self.cutoff + self.skin)
            if self.skin == 0:
                return found
            self._remember(found, pos, cell, pbc)
        return self._within(pos)

    def _remember(self, found: NeighborList, pos: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> None:
        self._pos, self._cell, self._pbc = pos.copy(), cell, pbc
        self._candidates = found
        n = found.offset.astype(np.float64)
        # Elementwise, as in the search: negating an edge negates every intermediate exactly. Axes that do not
        # repeat have no offsets, whatever stands in their row.
        rows = np.where(pbc[:, None], cell, 0.0)
        self._shift = n[:, :1] * rows[0] + n[:, 1:2] * rows[1] + n[:, 2:] * rows[2]

    def _within(self, pos: Floats) -> NeighborList:
        found = self._candidates
        vector = (pos.take(found.target, axis=0) - pos.take(found.source, axis=0)) - self._shift
        distance = np.sqrt((vector * vector).sum(axis=1))
        kept = np.flatnonzero((distance <= self.cutoff) & (distance > MIN_DISTANCE))
        return NeighborList(
            found.source.take(kept),
            found.target.take(kept),
            found.offset.take(kept, axis=0),
            distance.take(kept),
        )


class SkinLists:
    """Several `SkinList`s for callers that come back to a few structures in turn, such as the images of a band.

    May be used by several threads.
    """

    def __init__(self, cutoff: float, skin: float = DEFAULT_SKIN, most: int = 16) -> None:
        """cutoff, skin: A; most: structures remembered, of which the longest unused is dropped first."""
        self._cutoff, self._skin, self._most = cutoff, skin, most
        self._lists: list[SkinList] = []  # the one used last stands last
        self._lock = threading.Lock()
        self.n_searches = 0
        SkinList(cutoff, skin)  # refuses a wrong skin at once

    def neighbors(self, pos: ArrayLike, cell: ArrayLike, pbc: ArrayLike) -> NeighborList:
        """As `neighbor_search(pos, cell, pbc, cutoff)`."""
        pos = np.ascontiguousarray(pos, dtype=np.float64)
        cell = np.array(cell, dtype=np.float64)
        pbc = np.array(np.broadcast_to(np.asarray(pbc, dtype=bool), (3,)))
        with self._lock:
            fitting = [each for each in self._lists if each.covers(pos, cell, pbc)]
            chosen = fitting[-1] if fitting else SkinList(self._cutoff, self._skin)
            if fitting:
                self._lists.remove(chosen)
            before = chosen.n_searches
            found = chosen.neighbors(pos, cell, pbc)
            self.n_searches += chosen.n_searches - before
            self._lists = [*self._lists, chosen][-self._most :]
        return found
