"""The binary record of one system: a fixed header, packed arrays, a checksum. Nothing in it is ever executed.

Layout, little-endian, no padding (docs/file-formats.md):

    bytes 0-3    b"OGEM"
    4-5          version of the layout (uint16)
    6-7          flags (uint16): which optional fields follow, and the periodic axes
    8-11         n, number of atoms (uint32)
    12-15        zero
    16-31        sid, fid (int64)
    32-47        energy, energy_relaxed in eV (float64; zero where the flag is off)
    then float32 cell [9], pos [3n], forces [3n] if flagged, pos_relaxed [3n] if flagged
    then uint8   atomic_numbers [n], tags [n], fixed [n] (0 or 1)
    last 4       CRC-32 of everything before it (uint32)
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from ocpgem.data.system import System
from ocpgem.errors import DataError

MAGIC = b"OGEM"
VERSION = 1

HAS_ENERGY, HAS_FORCES, HAS_ENERGY_RELAXED, HAS_POS_RELAXED = 1, 2, 4, 8
PBC_SHIFT = 4
KNOWN_FLAGS = 0x7F

_HEADER = struct.Struct("<4sHHI4xqqdd")
_CHECKSUM = struct.Struct("<I")
_F4 = np.dtype("<f4")
_U1 = np.dtype(np.uint8)
_BOOL = np.dtype(np.bool_)


def encode(system: System) -> bytes:
    """The record of a system; positions, forces and cell are stored as float32, energies as float64."""
    system.check_shapes()
    flags = _flags(system)
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        flags,
        system.n_atoms,
        system.sid,
        system.fid,
        0.0 if system.energy is None else system.energy,
        0.0 if system.energy_relaxed is None else system.energy_relaxed,
    )
    floats = [system.cell, system.pos, system.forces, system.pos_relaxed]
    parts = [header, *(np.ascontiguousarray(x, _F4).tobytes() for x in floats if x is not None)]
    parts += [np.ascontiguousarray(x, _U1).tobytes() for x in (system.atomic_numbers, system.tags)]
    parts.append(np.ascontiguousarray(system.fixed, _BOOL).tobytes())
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def decode(buffer: bytes, where: str = "") -> System:
    """The system of a record; its arrays are read-only views of `buffer`.

    Raises DataError naming `where` for a damaged record, another format or a newer version.
    """
    size = len(buffer)
    if size < _HEADER.size + _CHECKSUM.size:
        raise DataError(f"{where}: {size} bytes are too few for a record; the file is damaged")
    magic, version, flags, n, sid, fid, energy, energy_relaxed = _HEADER.unpack_from(buffer)
    if magic != MAGIC or version != VERSION or flags & ~KNOWN_FLAGS:
        raise DataError(f"{where}: {_unreadable(magic, version, flags)}")
    vectors = 12 * n
    tail = _HEADER.size + 36 + vectors * (1 + bool(flags & HAS_FORCES) + bool(flags & HAS_POS_RELAXED))
    end = tail + 3 * n
    if size != end + 4 or zlib.crc32(memoryview(buffer)[:end]) != _CHECKSUM.unpack_from(buffer, end)[0]:
        raise DataError(f"{where}: the checksum does not match; the record is damaged, make the file anew")
    start = _HEADER.size + 36
    array = np.ndarray
    shape = (n, 3)
    return System(
        array(shape, _F4, buffer, start),
        array((3, 3), _F4, buffer, _HEADER.size),
        _PBC[flags >> PBC_SHIFT],
        array(n, _U1, buffer, tail),
        array(n, _U1, buffer, tail + n),
        array(n, _BOOL, buffer, tail + 2 * n),
        energy if flags & HAS_ENERGY else None,
        array(shape, _F4, buffer, start + vectors) if flags & HAS_FORCES else None,
        sid,
        fid,
        energy_relaxed if flags & HAS_ENERGY_RELAXED else None,
        array(shape, _F4, buffer, tail - vectors) if flags & HAS_POS_RELAXED else None,
        where,
    )


def _flags(system: System) -> int:
    flags = HAS_ENERGY * (system.energy is not None)
    flags |= HAS_FORCES * (system.forces is not None)
    flags |= HAS_ENERGY_RELAXED * (system.energy_relaxed is not None)
    flags |= HAS_POS_RELAXED * (system.pos_relaxed is not None)
    for axis in range(3):
        flags |= int(bool(system.pbc[axis])) << (PBC_SHIFT + axis)
    return flags


def _unreadable(magic: bytes, version: int, flags: int) -> str:
    if magic != MAGIC:
        return "this is not an ocpgem record; convert the file first"
    if version != VERSION:
        return f"the record has version {version}; this program reads version {VERSION}"
    return f"the record has unknown flags {flags & ~KNOWN_FLAGS:#x}; a newer program wrote it"


def _periodic_axes() -> tuple[np.ndarray, ...]:
    """The eight possible `pbc` arrays, read-only, so that decoding makes none."""
    arrays = tuple(np.array([bool(code & 1), bool(code & 2), bool(code & 4)]) for code in range(8))
    for array in arrays:
        array.setflags(write=False)
    return arrays


_PBC = _periodic_axes()
