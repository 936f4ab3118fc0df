"""Frames of extended XYZ text in the fixed layout of the raw OC20 archives."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ocpgem.data.system import System
from ocpgem.errors import DataError

KNOWN_COLUMNS = {"species": 1, "pos": 3, "move_mask": 1, "tags": 1, "forces": 3}

_FIELD = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
_TRUTH = {"T": True, "F": False}


@dataclass(frozen=True)
class Columns:
    """Where each property stands in an atom's line, and how many words the line has."""

    start: dict[str, int]
    width: int


def read_frames(lines: Iterable[str], where: str) -> Iterator[System]:
    """Every frame of a file; the energy is the one in the header, `sid` and `fid` are left 0.

    Atoms whose move_mask is F are fixed. Raises DataError naming `where` and the frame for anything that does
    not fit the layout.
    """
    stream = iter(lines)
    number = 0
    for line in stream:
        if not line.strip():
            continue
        place = f"{where}, frame {number} of the file"
        try:
            n_atoms = int(line)
            header = next(stream)
            atoms = [next(stream) for _ in range(n_atoms)]
        except ValueError:
            raise DataError(
                f"{place} should start with its number of atoms, not {line.strip()[:40]!r}"
            ) from None
        except StopIteration:
            raise DataError(f"{place} is cut off; download or copy the file again") from None
        try:
            yield parse_frame(header, atoms)
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(f"{place} cannot be read ({type(error).__name__}: {error})") from None
        number += 1


def parse_frame(header: str, atom_lines: list[str]) -> System:
    """One frame; raises ValueError or KeyError where it does not fit."""
    fields = {key: quoted or plain for key, quoted, plain in _FIELD.findall(header)}
    columns = parse_columns(fields["Properties"])
    words = "".join(atom_lines).split()
    n_atoms, width = len(atom_lines), columns.width
    if len(words) != n_atoms * width:
        raise ValueError(
            f"{len(words)} words where {n_atoms} atoms of {width} columns need {n_atoms * width}"
        )
    numbers = _atomic_numbers()
    species = words[columns.start["species"] :: width]
    return System(
        pos=_vectors(words, columns, "pos"),
        cell=np.array(fields["Lattice"].split(), dtype=np.float64).astype(np.float32).reshape(3, 3),
        pbc=np.array([_TRUTH[word] for word in fields.get("pbc", "T T T").split()]),
        atomic_numbers=np.array([numbers[symbol] for symbol in species], dtype=np.uint8),
        tags=np.array([int(word) for word in _words(words, columns, "tags", "0")], dtype=np.uint8),
        fixed=np.array([not _TRUTH[word] for word in _words(words, columns, "move_mask", "T")]),
        energy=float(fields["energy"]) if "energy" in fields else None,
        forces=_vectors(words, columns, "forces") if "forces" in columns.start else None,
    )


@functools.cache
def parse_columns(properties: str) -> Columns:
    """The columns named by a `Properties=` field such as `species:S:1:pos:R:3`."""
    words = properties.split(":")
    start: dict[str, int] = {}
    width = 0
    for name, count in zip(words[::3], words[2::3], strict=True):
        if name in KNOWN_COLUMNS and int(count) != KNOWN_COLUMNS[name]:
            raise ValueError(f"column {name} has {count} words, expected {KNOWN_COLUMNS[name]}")
        start[name] = width
        width += int(count)
    return Columns(start, width)


@functools.cache
def _atomic_numbers() -> dict[str, int]:
    from ase.data import atomic_numbers

    return dict(atomic_numbers)


def _vectors(words: list[str], columns: Columns, name: str) -> np.ndarray:
    first = columns.start[name]
    xyz = [list(map(float, words[first + axis :: columns.width])) for axis in range(3)]
    return np.ascontiguousarray(np.array(xyz, dtype=np.float32).T)


def _words(words: list[str], columns: Columns, name: str, default: str) -> list[str]:
    first = columns.start.get(name)
    return [default] * (len(words) // columns.width) if first is None else words[first :: columns.width]
