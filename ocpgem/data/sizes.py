"""The side table of a data set: how large each system is, so that batches are planned without reading records."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.system import System
from ocpgem.errors import DataError

CUTOFF = 6.0
MAX_NEIGHBORS = 50

SIZES = np.dtype([("n_atoms", "<i4"), ("n_edges", "<i4"), ("n_free", "<i4"), ("sid", "<i8"), ("fid", "<i8")])
"""One row per record: atoms, directed edges within 6 A (nearest 50 per atom), atoms that may move, identifiers."""

SizeTable = NDArray[np.void]


def size_row(system: System, n_edges: int | None = None) -> tuple[int, int, int, int, int]:
    """The side-table row of a system; its edges are counted unless given."""
    if n_edges is None:
        n_edges = count_edges(system)
    n_free = system.n_atoms - int(np.count_nonzero(system.fixed))
    return system.n_atoms, n_edges, n_free, system.sid, system.fid


def size_table(rows: list[tuple[int, int, int, int, int]]) -> SizeTable:
    return np.array(rows, dtype=SIZES)


def count_edges(system: System, cutoff: float = CUTOFF, max_neighbors: int = MAX_NEIGHBORS) -> int:
    """Directed edges within `cutoff` (A) when every atom keeps at most its `max_neighbors` nearest."""
    from vesin import NeighborList

    search = NeighborList(cutoff=cutoff, full_list=True)
    cell = system.cell.astype(np.float64)
    (target,) = search.compute(
        points=system.pos.astype(np.float64), box=cell, periodic=system.pbc.tolist(), quantities="i"
    )
    degree = np.bincount(target.astype(np.int64), minlength=system.n_atoms)
    return int(np.minimum(degree, max_neighbors).sum())


def pack_sizes(table: SizeTable) -> bytes:
    """The table as bytes with a CRC-32 at the end."""
    body = table.tobytes()
    return body + zlib.crc32(body).to_bytes(4, "little")


def unpack_sizes(buffer: bytes, count: int, where: str) -> SizeTable:
    """The inverse of `pack_sizes`; raises DataError naming `where` unless it is intact and has `count` rows."""
    body = memoryview(buffer)[:-4]
    intact = len(body) == count * SIZES.itemsize and zlib.crc32(body).to_bytes(4, "little") == buffer[-4:]
    if not intact:
        raise DataError(f"{where}: the table of sizes is damaged; make the file anew")
    return np.frombuffer(body, dtype=SIZES)


def table_columns(table: Any) -> dict[str, NDArray[np.int64]]:
    """The columns of a table as contiguous int64 arrays."""
    return {key: np.ascontiguousarray(table[key], dtype=np.int64) for key in SIZES.names or ()}
