"""Damaged archives are told in a sentence, whatever byte is wrong."""

import io
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocpgem.data.molecules import read_molecules
from ocpgem.errors import DataError
from ocpgem.evaluate.leaderboard.check import read_submission
from ocpgem.evaluate.parts import Parts
from ocpgem.evaluate.prediction_set import read_provenance, read_raw
from ocpgem.evaluate.relax.store import PARTS, open_folder
from ocpgem.models.target_files import read_element_energies
from ocpgem.zip_errors import ZIP_ERRORS

KEYS = (
    "coeff",
    "R",
    "N",
    "Z",
    "ids",
    "sid",
    "fid",
    "natoms",
    "energy",
    "fixed",
    "atomic_numbers",
    "provenance",
)
"""That the readers ask for."""


def archive(save: Callable[..., None]) -> bytes:
    """Of two arrays, one of them text."""
    file = io.BytesIO()
    save(file, a=np.arange(6.0).reshape(2, 3), s=np.array(["x1", "y"]))
    return file.getvalue()


def read(content: bytes) -> None:
    """All arrays of an npz file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        dict(file)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damaged_byte_and_no_cut_raises_anything_else(save: Callable[..., None]) -> None:
    good = archive(save)
    wrong = 0
    for place in range(len(good)):
        damaged = [
            bytes([*good[:place], good[place] ^ bit, *good[place + 1 :]]) for bit in (1, 8, 0x80, 0xFF)
        ]
        for content in (*damaged, good[:place]):
            try:
                read(content)
            except ZIP_ERRORS:
                wrong += 1
    assert wrong > len(good)


def read_part(path: Path) -> Any:
    """A part of a prediction, with the others of its folder."""
    parts = Parts(path.parent / "target.npz", {})
    parts.folder = path.parent
    return list(parts.read())


def read_relaxed(path: Path) -> Any:
    """A part of a relaxation."""
    folder = path.parent / "relaxation"
    open_folder(folder, {})
    shutil.copy(path, folder / PARTS)
    return open_folder(folder, {})


def encrypted(content: bytearray, entry: zipfile.ZipInfo) -> None:
    """Call an entry encrypted: the lowest bit of the flags in the list at the end, which names it last."""
    content[content.rfind(entry.filename.encode()) - 46 + 8] |= 1


def not_compressed(content: bytearray, entry: zipfile.ZipInfo) -> None:
    """Begin what is compressed with a kind of block that there is none of."""
    header = content[entry.header_offset : entry.header_offset + 30]
    content[entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))] |= 0b110


@pytest.mark.parametrize(
    "reader",
    [
        read_molecules,
        read_raw,
        read_provenance,
        read_submission,
        read_element_energies,
        read_part,
        read_relaxed,
    ],
)
@pytest.mark.parametrize("damage", [encrypted, not_compressed])
def test_every_reader_names_the_file(
    reader: Callable[[Path], Any], damage: Callable[[bytearray, zipfile.ZipInfo], None], tmp_path: Path
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, **{key: np.ones(50) for key in KEYS})
    content = bytearray(path.read_bytes())
    for entry in zipfile.ZipFile(path).infolist():
        damage(content, entry)
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"x\.npz (cannot be read|is damaged)"):
        reader(path)
