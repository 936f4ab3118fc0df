"""Edges of one system as bytes, for `ocpgem.data.edge_store`. Nothing in them is ever executed.

Layout, little-endian (docs/file-formats.md):

    bytes 0-3    b"OGED"
    4-7          CRC-32 of what the edges follow from: positions, cell, periodic axes and tags of the record (uint32)
    8-11         n, number of atoms (uint32)
    12           which graphs follow (uint8): bit 0 main, 1 atom_edge, 2 quadruplet, 3 atom_atom
    13-15        zero
    then, for each graph, arrays: edges per target [n], source [E], offset [E, 3], and for the main graph reverse [E]
    last 4       CRC-32 of everything before it (uint32)

An array is a byte with the width of its numbers (1, 2, 4 or 8: as few as they need), their count (uint32) and the
numbers; offsets are signed, all others are not.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.system import System
from ocpgem.errors import DataError
from ocpgem.graph.edges import Edges, SymmetricEdges
from ocpgem.graph.system_edges import SystemEdges

MAGIC = b"OGED"
_HEADER = struct.Struct("<4sIIB3x")
_ARRAY = struct.Struct("<BI")
_CHECKSUM = struct.Struct("<I")
_GRAPHS = ("main", "atom_edge", "quadruplet", "atom_atom")
_WIDTHS = (1, 2, 4, 8)

Ints = NDArray[np.int64]


def fingerprint(system: System) -> int:
    """CRC-32 of everything in a record that its edges follow from."""
    parts: tuple[NDArray[Any], ...] = (system.pos, system.cell, system.pbc, system.tags)
    found = 0
    for part in parts:
        found = zlib.crc32(np.ascontiguousarray(part).tobytes(), found)
    return found


def encode_edges(edges: SystemEdges, system: System) -> bytes:
    """The edges of a system."""
    there = [name for name in _GRAPHS if getattr(edges, name) is not None]
    flags = sum(1 << _GRAPHS.index(name) for name in there)
    parts = [_HEADER.pack(MAGIC, fingerprint(system), edges.n_atoms, flags)]
    for name in there:
        graph: Edges = getattr(edges, name)
        parts.append(_packed(np.bincount(graph.target, minlength=edges.n_atoms), signed=False))
        parts.append(_packed(graph.source, signed=False))
        parts.append(_packed(graph.offset.ravel(), signed=True))
        if isinstance(graph, SymmetricEdges):
            parts.append(_packed(graph.reverse, signed=False))
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode_edges(buffer: bytes, system: System, where: str) -> SystemEdges:
    """The inverse of `encode_edges`.

    Raises DataError naming `where` for damaged bytes, and for edges of other positions than those of the system.
    """
    end = len(buffer) - _CHECKSUM.size
    intact = (
        end >= _HEADER.size and zlib.crc32(memoryview(buffer)[:end]) == _CHECKSUM.unpack_from(buffer, end)[0]
    )
    magic, of_system, n_atoms, flags = _HEADER.unpack_from(buffer) if intact else (b"", 0, 0, 0)
    if not intact or magic != MAGIC:
        raise DataError(f"{where}: the stored edges are damaged; make them anew with data edges --anew")
    if of_system != fingerprint(system):
        raise DataError(
            f"{where}: the stored edges are of other positions than the record has; make them anew with data edges "
            "--anew"
        )
    place = _HEADER.size
    graphs: dict[str, Any] = {}
    for number, name in enumerate(_GRAPHS):
        if not flags >> number & 1:
            continue
        counts, place = _unpacked(buffer, place, signed=False)
        source, place = _unpacked(buffer, place, signed=False)
        offset, place = _unpacked(buffer, place, signed=True)
        target = np.repeat(np.arange(n_atoms), counts)
        if name == "main":
            reverse, place = _unpacked(buffer, place, signed=False)
            graphs[name] = SymmetricEdges(source, target, offset.reshape(-1, 3), reverse)
        else:
            graphs[name] = Edges(source, target, offset.reshape(-1, 3))
    return SystemEdges(n_atoms, **graphs)


def _packed(values: Ints, signed: bool) -> bytes:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    kind = "i" if signed else "u"
    width = next(
        w for w in _WIDTHS if np.iinfo(f"{kind}{w}").min <= low and high <= np.iinfo(f"{kind}{w}").max
    )
    return _ARRAY.pack(width, len(values)) + values.astype(f"<{kind}{width}").tobytes()


def _unpacked(buffer: bytes, place: int, signed: bool) -> tuple[Ints, int]:
    """An array and where the next one begins."""
    width, count = _ARRAY.unpack_from(buffer, place)
    start = place + _ARRAY.size
    values = np.frombuffer(buffer, f"<{'i' if signed else 'u'}{width}", count, start)
    return values.astype(np.int64), start + width * count
