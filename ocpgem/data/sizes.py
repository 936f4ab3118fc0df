"""The side table of a data set: how large each system is, to plan batches without reading records."""

from __future__ import annotations

import os
import weakref
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.system import System
from ocpgem.errors import DataError
from ocpgem.graph.neighbors import neighbor_search

CUTOFF = 6.0
MAX_NEIGHBORS = 50

SIZES = np.dtype([("n_atoms", "<i4"), ("n_edges", "<i4"), ("n_free", "<i4"), ("sid", "<i8"), ("fid", "<i8")])
"""One row per record: atoms, directed edges within 6 A (nearest 50 per atom), free atoms, identifiers."""

NO_SIZE = (0, 0, 0, 0, 0)
"""The row of a record that is left out."""

SizeTable = NDArray[np.void]


def size_row(system: System, n_edges: int | None = None) -> tuple[int, int, int, int, int]:
    """The side-table row of a system; its edges are counted unless given."""
    if n_edges is None:
        n_edges = count_edges(system)
    n_free = system.n_atoms - int(np.count_nonzero(system.fixed))
    return system.n_atoms, n_edges, n_free, system.sid, system.fid


def size_table(rows: list[tuple[int, int, int, int, int]]) -> SizeTable:
    """The side table of rows made by `size_row`."""
    return np.array(rows, dtype=SIZES)


def count_edges(system: System, cutoff: float = CUTOFF, max_neighbors: int = MAX_NEIGHBORS) -> int:
    """Directed edges within `cutoff` (A) when every atom keeps at most its `max_neighbors` nearest."""
    found = neighbor_search(system.pos, system.cell, system.pbc, cutoff)
    degree = np.bincount(found.target, minlength=system.n_atoms)
    return int(np.minimum(degree, max_neighbors).sum())


class SizesFile:
    """The side table in a .npy file, of which rows are read where they are asked for.

    Nothing is mapped or kept: of a mapped table, each row that is looked up would add pages to the memory of the
    process, in the end all 4 GB for 134 million records. One handle serves forked processes too.
    Raises DataError unless the file holds `count` rows.
    """

    def __init__(self, file: Path, count: int) -> None:
        table = mapped_sizes(file, count)
        assert isinstance(table, np.memmap)
        self._first_byte = table.offset
        self._handle = os.open(file, os.O_RDONLY)
        self.file = file
        weakref.finalize(self, os.close, self._handle)

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """Some rows, each in [0, count); one read for consecutive ones."""
        count = len(indices)
        if count > 1 and (np.diff(indices) == 1).all():
            return self._read(int(indices[0]), count)
        parts = [self._read(index, 1) for index in indices.tolist()]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=SIZES)

    def _read(self, first: int, count: int) -> SizeTable:
        n_bytes = count * SIZES.itemsize
        content = os.pread(self._handle, n_bytes, self._first_byte + first * SIZES.itemsize)
        if len(content) != n_bytes:
            raise DataError(f"{self.file} ends before row {first + count}; it was changed while it was read")
        return np.frombuffer(content, dtype=SIZES)


def mapped_sizes(file: Path, count: int) -> SizeTable:
    """The side table in a .npy file, memory-mapped; raises DataError unless it holds `count` rows."""
    try:
        table = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: the table of sizes cannot be read ({error})") from None
    if table.dtype != SIZES or table.shape != (count,):
        raise DataError(f"{file}: the table of sizes does not belong to the {count} records beside it")
    return table


def pack_sizes(table: SizeTable) -> bytes:
    """The table as bytes with a CRC-32 at the end."""
    body = table.tobytes()
    return body + zlib.crc32(body).to_bytes(4, "little")


def unpack_sizes(buffer: bytes, count: int, where: str) -> SizeTable:
    """The inverse of `pack_sizes`; raises DataError unless it is intact and has `count` rows."""
    body = memoryview(buffer)[:-4]
    intact = len(body) == count * SIZES.itemsize and zlib.crc32(body).to_bytes(4, "little") == buffer[-4:]
    if not intact:
        raise DataError(f"{where}: the table of sizes is damaged; make the file anew")
    return np.frombuffer(body, dtype=SIZES)
