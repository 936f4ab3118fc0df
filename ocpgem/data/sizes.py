"""The side table of a data set: how large each system is, to plan batches without reading records."""

from __future__ import annotations

import zlib

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
