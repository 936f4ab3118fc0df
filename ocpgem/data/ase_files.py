"""Structures from any file that ASE reads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ocpgem.errors import DataError, one_line

if TYPE_CHECKING:
    from ase import Atoms

COMPRESSED = {".gz", ".bz2", ".xz"}


class UnknownKindError(DataError):
    """A file that neither its name nor its content says how to read."""


def read_atoms(path: Path, limit: int | None = None) -> Iterator[Atoms]:
    """The structures of a file, in order.

    Raises DataError, naming file and record, where ASE cannot go on, and UnknownKindError where it cannot begin.
    """
    from ase.io import iread
    from ase.io.formats import UnknownFileTypeError, filetype

    count = 0
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)")
    try:
        kind = filetype(str(path))
        unpack = path.suffix in COMPRESSED and kind in ("xyz", "extxyz")
        with _unpacked(path) if unpack else nullcontext(path) as source:
            for atoms in iread(source, index=slice(0, limit), format=kind):
                yield atoms
                count += 1
    except UnknownFileTypeError:
        raise UnknownKindError(f"{path} is of a kind that neither ocpgem nor ASE reads") from None
    except Exception as error:  # ASE's readers raise whatever the damaged content leads to
        raise DataError(f"{path}, record {count}: ASE cannot read it ({one_line(error)})") from None


@contextmanager
def _unpacked(path: Path) -> Iterator[TextIO]:
    """The text of a compressed file in a temporary one.

    ASE looks for the beginnings of all frames first and then goes back to each, for which a compressed file is
    unpacked from its start every time.
    """
    from ase.io.formats import open_with_compression

    with tempfile.TemporaryFile() as unpacked:
        with open_with_compression(str(path), "rb") as packed:
            shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        with TextIOWrapper(unpacked) as text:
            yield text
