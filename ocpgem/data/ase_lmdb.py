"""ase-lmdb files (.aselmdb), the databases of ASE that fairchem trains on: rows of JSON, zlib-compressed, in an LMDB.

Keys 1, 2, ... hold the rows, `nextid` the number after the last and `deleted_ids` those that were removed. Read here
with lmdb alone: ASE needs the package ase-db-backends for them, which brings database clients along, opens files for
writing and holds a handle of its own. Nothing in a row is run.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.lmdb_file import open_lmdb
from ocpgem.data.released_lmdb import Fields, sizes_by_reading, system_of
from ocpgem.data.sharded import ShardedDataset, existing
from ocpgem.data.sizes import SizeTable
from ocpgem.data.system import System, whole_number
from ocpgem.errors import DataError, RequestError, one_line

SUFFIX = ".aselmdb"
LARGEST_ROW = 1 << 28
"""Bytes of JSON; a row of 10,000 atoms has about 2 MB."""

_NEXT_ID, _DELETED = b"nextid", b"deleted_ids"
_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
_COPIED = {"numbers": "atomic_numbers", "positions": "pos"}
_OTHERS = ("cell", "pbc", "tags", "energy", "forces")


class AseLmdb(ShardedDataset["_Shard"]):
    """The systems of an ase-lmdb file or a folder of them, in order; safe in forked and in spawned workers.

    Raises RequestError for a path without such files and DataError, naming file or row, for what cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        path = existing(path)
        files = ase_lmdb_files(path)
        if not files:
            raise RequestError(f"{path} holds no {SUFFIX} file")
        counts = [len(_Shard(file)) for file in files]
        if not any(counts):
            raise DataError(f"{path} holds no rows")
        super().__init__(path, files, counts)

    def _open(self, file: Path) -> _Shard:
        return _Shard(file)

    def _read(self, shard: _Shard, place: int, index: int) -> System:
        return system_of(shard.fields(place), shard.where(place), default_sid=index)

    def _load_sizes(self) -> SizeTable:
        return sizes_by_reading(self)


def ase_lmdb_files(path: Path) -> list[Path]:
    """The ase-lmdb files of a folder in natural order of their names, or the file itself."""
    if not path.is_dir():
        return [path] if path.suffix == SUFFIX else []
    return sorted(
        path.glob(f"*{SUFFIX}"), key=lambda file: ([*map(int, re.findall(r"\d+", file.name))], file.name)
    )


def count_ase_lmdb(path: Path) -> int:
    """The number of rows in an ase-lmdb file."""
    return len(_Shard(path))


def read_ase_lmdb(path: Path, first: int, last: int | None) -> Iterator[tuple[Fields | DataError, str]]:
    """Fields, in the terms of released LMDBs, and name of the rows `first` to `last - 1`; of a damaged one the error.

    `special_constraints` is among the fields where a row has others than FixAtoms.
    """
    shard = _Shard(path)
    for place in range(first, len(shard) if last is None else last):
        try:
            fields: Fields | DataError = shard.fields(place)
        except DataError as error:
            fields = error
        yield fields, shard.where(place)


class _Shard:
    """One ase-lmdb file and the numbers of its rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_lmdb(path)
        following = self._stored(_NEXT_ID, 1)
        deleted = self._stored(_DELETED, [])
        if type(following) is not int or type(deleted) is not list or not 1 <= following < 2**31:
            raise DataError(f"{path} is no ase-lmdb file: it does not say how many rows it has")
        gone = {number for number in deleted if type(number) is int}
        rows = range(1, following)
        self._rows = [number for number in rows if number not in gone] if gone else rows
        if len(self._rows) and self._file.get(b"%d" % self._rows[-1]) is None:
            raise DataError(
                f"{path} says that it has {len(self._rows)} rows, but row {self._rows[-1]} is missing; copy or make "
                "it anew"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, place: int) -> str:
        """How messages call a row."""
        return f"{self.path}, row {self._rows[place]}"

    def fields(self, place: int) -> Fields:
        """The fields of a row; raises DataError where it is missing or damaged."""
        where = self.where(place)
        content = self._file.get(b"%d" % self._rows[place], where)
        if content is None:
            raise DataError(f"{where} is missing although the file counts {len(self)}; copy or make it anew")
        row = _decoded(content, where)
        if type(row) is not dict:
            raise DataError(f"{where} is not a row of an ASE database")
        return fields_of_row(row, where)

    def _stored(self, key: bytes, default: Any) -> Any:
        content = self._file.get(key)
        return default if content is None else _decoded(content, f"{self.path}, key {key.decode()}")


def fields_of_row(row: dict[str, Any], where: str) -> Fields:
    """What a row holds, in the terms of released LMDBs."""
    fields = {ours: _value(row[theirs], where) for theirs, ours in _COPIED.items() if theirs in row}
    fields |= {key: _value(row[key], where) for key in _OTHERS if row.get(key) is not None}
    for place in (row.get("key_value_pairs"), row.get("data")):
        if type(place) is dict:
            fields |= {key: n for key in ("sid", "fid") if (n := _number(place.get(key))) is not None}
    fixed, special = _constraints(row.get("constraints"), fields.get("atomic_numbers"), where)
    if fixed is not None:
        fields["fixed"] = fixed
    if special:
        fields["special_constraints"] = True
    return fields


def _decoded(content: bytes, where: str) -> Any:
    """The JSON of a value; raises DataError for a damaged one, or one that unpacks to more than a row can be."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(content, LARGEST_ROW)
        if not unpacking.eof:
            too_large = len(text) >= LARGEST_ROW
            raise ValueError(f"it unpacks to more than {LARGEST_ROW} bytes" if too_large else "it is cut off")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"{where} cannot be read ({one_line(error)}); the file is damaged") from None


def _value(value: Any, where: str) -> Any:
    """A number or an array; ASE writes arrays as their shape, type and numbers in a row."""
    if type(value) is dict and type(stored := value.get("__ndarray__")) is list and len(stored) == 3:
        shape, dtype, numbers = stored
        if type(dtype) is str and _DTYPE.fullmatch(dtype) and _fits(shape, numbers):
            return _array(numbers, where).astype(dtype).reshape(shape)
    if type(value) is list:
        return _array(value, where)
    if type(value) in (int, float, bool):
        return value
    raise DataError(f"{where} holds something else than numbers where numbers should be")


def _fits(shape: Any, numbers: Any) -> bool:
    return (
        type(shape) is list
        and type(numbers) is list
        and all(type(n) is int and n >= 0 for n in shape)
        and math.prod(shape) == len(numbers)
    )


def _array(numbers: list[Any], where: str) -> NDArray[Any]:
    try:
        array = np.array(numbers)
    except (ValueError, OverflowError):
        array = np.array([None])
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} holds something else than numbers where numbers should be")
    return array


def _number(value: Any) -> int | None:
    """The number of a system or frame in any form that `whole_number` reads; None where it is none."""
    try:
        return whole_number(value)
    except ValueError:
        return None


def _constraints(stored: Any, species: Any, where: str) -> tuple[NDArray[np.bool_] | None, bool]:
    """Which atoms FixAtoms fixes, None without it, and whether there are constraints of other kinds."""
    if type(stored) is not list or not isinstance(species, np.ndarray):
        return None, False
    fixed, special = np.zeros(species.size, dtype=bool), False
    for constraint in stored:
        if type(constraint) is not dict or constraint.get("name") != "FixAtoms":
            special = True
            continue
        kwargs = constraint.get("kwargs")
        indices = _value(kwargs.get("indices"), where) if type(kwargs) is dict else None
        if not isinstance(indices, np.ndarray) or (indices.size and indices.dtype.kind not in "iu"):
            raise DataError(f"{where}: the atoms that FixAtoms fixes cannot be read")
        if indices.size and not (-fixed.size <= indices.min() and indices.max() < fixed.size):
            raise DataError(f"{where}: FixAtoms names an atom beyond the {fixed.size} of the row")
        fixed[indices.astype(np.int64)] = True
    return fixed, special
