import struct
import zlib

import numpy as np
import pytest

from ocpgem.data.record import VERSION, decode, encode
from ocpgem.errors import DataError


def resealed(record: bytes, position: int, value: int) -> bytes:
    """The record with one byte replaced and a checksum that agrees."""
    body = bytearray(record[:-4])
    body[position] = value
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def test_decoded_arrays_cannot_be_written(make_system):
    system = decode(encode(make_system()))
    with pytest.raises(ValueError, match="read-only"):
        system.pos[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        system.pbc[0] = False


def test_the_layout_is_as_documented(make_system):
    system = make_system(2, pbc=np.array([True, False, True]), sid=-5, fid=9)
    record = encode(system)
    assert len(record) == 48 + 4 * (9 + 6 + 6) + 3 * 2 + 4
    magic, version, flags, n_atoms = struct.unpack_from("<4sHHI", record)
    assert (magic, version, flags, n_atoms) == (b"OGEM", 1, 1 + 2 + 16 + 64, 2)
    assert struct.unpack_from("<qqd", record, 16) == (-5, 9, system.energy)
    assert np.array_equal(np.frombuffer(record, "<f4", 9, 48).reshape(3, 3), system.cell)


def test_every_flipped_bit_is_noticed(make_system):
    record = encode(make_system(3))
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(DataError, match=r"^train, record 3: "):
            decode(bytes(damaged), "train, record 3")


def test_every_truncation_is_noticed(make_system):
    record = encode(make_system(3))
    for length in range(len(record)):
        with pytest.raises(DataError, match=r"too few|checksum"):
            decode(record[:length], "x")


def test_a_pickle_is_refused_and_not_loaded():
    with pytest.raises(DataError, match="not an ocpgem record"):
        decode(b"\x80\x04\x95cos\nsystem\n" + b"." * 100, "x")


def test_another_version_is_named(make_system):
    record = resealed(encode(make_system()), 4, VERSION + 1)
    with pytest.raises(DataError, match=f"version {VERSION + 1}; this program reads version {VERSION}"):
        decode(record, "x")


def test_an_unknown_flag_is_refused(make_system):
    record = resealed(encode(make_system()), 7, 0x80)
    with pytest.raises(DataError, match="unknown flags 0x8000"):
        decode(record, "x")


def test_a_system_with_mismatched_arrays_is_not_encoded(make_system):
    with pytest.raises(DataError, match="tags has shape"):
        encode(make_system(tags=np.zeros(5, np.uint8)))
