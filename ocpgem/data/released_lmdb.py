"""LMDBs as OC20, OC22 and their tools release them: pickled PyG objects under the keys 0, 1, 2, ...

S2EF folders of shards, single IS2RE files, and files that others wrote in the same layout, with and without a `length`
key. Records are read with ocpgem.data.pickled_arrays: nothing in them is run, and neither PyG nor torch is needed.
Stored edges are ignored; distances are computed from positions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.lmdb_file import LmdbFile, open_lmdb
from ocpgem.data.lmdb_store import HEADER_KEY, METADATA_FILE
from ocpgem.data.pickled_arrays import PlainObject, load_plain
from ocpgem.data.safe_pickle import shown
from ocpgem.data.sharded import ShardedDataset, existing
from ocpgem.data.sizes import NO_SIZE, SizeTable, size_row, size_table
from ocpgem.data.system import System, to_uint8, whole_number
from ocpgem.data.workers import Counter, run_jobs
from ocpgem.errors import DataError, RequestError

PICKLED_LISTS = (".pkl", ".pt")
"""Endings of files that hold a list of PyG objects."""

LENGTH_KEY = b"length"
MOST_STEPS = 100_000
"""Instructions a record may take; a released one takes about 1,000."""
BYTES_PER_STEP = 2
"""Least length of a pickled list per instruction; lists of the smallest molecules have 3."""
SIZED_SILENTLY = 200
"""Records whose edges are counted without a word; that takes a second."""
BYTES_PER_ATOM = 12

_PICKLE_START = b"\x80"
_DATA = "torch_geometric.data.data.Data"
_ENERGIES = ("energy", "y", "y_init")
_FORCES = ("forces", "force")

Fields = dict[str, Any]

_log = logging.getLogger(__name__)


class ReleasedLmdb(ShardedDataset["_Shard"]):
    """The systems of a released LMDB or a folder of them, in order; safe in forked and in spawned workers.

    `energy` is that of the structure (energy, y or y_init), `energy_relaxed` is y_relaxed; of OC22 both are total
    energies. Atoms without tags get 0, systems without a number their place. Everything is periodic unless a record
    says otherwise. The side table is computed when first asked for, which reads every record: convert what is large.

    Raises RequestError for a path without LMDBs and DataError, naming file or record, for what cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        path = existing(path)
        files = shard_files(path)
        if not files:
            raise RequestError(f"{path} holds no .lmdb file")
        counts = [len(_Shard(file)) for file in files]
        if not any(counts):
            raise DataError(f"{path} holds no records")
        super().__init__(path, files, counts)

    def _open(self, file: Path) -> _Shard:
        return _Shard(file)

    def _read(self, shard: _Shard, place: int, index: int) -> System:
        return system_of(shard.fields(place), shard.where(place), default_sid=index)

    def _load_sizes(self) -> SizeTable:
        return sizes_by_reading(self)


def sizes_by_reading(dataset: Dataset) -> SizeTable:
    """The side table of a data set that stores none: reads every record, and says so unless they are few."""
    if len(dataset) <= SIZED_SILENTLY:
        return size_table([_size_row(dataset, index) for index in range(len(dataset))])
    _log.warning(
        "%s has not been converted, so the edges of all its %d records are counted now, and again by every "
        "command; data convert stores them once",
        dataset.path,
        len(dataset),
    )
    return run_jobs(_sizes_of, [dataset], 1, len(dataset), f"counting edges of {dataset.path.name}")[0]


def _sizes_of(dataset: Dataset, done: Counter) -> SizeTable:
    rows = []
    for index in range(len(dataset)):
        rows.append(_size_row(dataset, index))
        done.add(1)
    return size_table(rows)


def _size_row(dataset: Dataset, index: int) -> tuple[int, int, int, int, int]:
    if dataset.is_left_out(index):
        return NO_SIZE
    system = dataset[index]
    system.validate()
    try:
        return size_row(system)
    except DataError as error:
        raise DataError(f"{system.where}: {error}") from None


def shard_files(path: Path) -> list[Path]:
    """The LMDBs of a folder in natural order of their names, or the file itself."""
    if not path.is_dir():
        return [path]
    return sorted(
        path.glob("*.lmdb"), key=lambda file: ([*map(int, re.findall(r"\d+", file.name))], file.name)
    )


def is_released(path: Path) -> bool:
    """Whether a file or folder holds LMDBs, and these are not ocpgem's own; opens the first of them."""
    if (path / METADATA_FILE).exists():
        return False
    files = shard_files(path)
    return bool(files) and open_lmdb(files[0]).get(HEADER_KEY) is None


def count_released(path: Path) -> int:
    """The number of records in a released LMDB."""
    return len(_Shard(path))


def read_released(path: Path, first: int, last: int | None) -> Iterator[tuple[Fields | DataError, str]]:
    """Fields and name of the records `first` to `last - 1`; of a refused or damaged one, the error instead."""
    shard = _Shard(path)
    for place in range(first, len(shard) if last is None else last):
        try:
            fields: Fields | DataError = shard.fields(place)
        except DataError as error:
            fields = error
        yield fields, shard.where(place)


def read_pickled_list(path: Path) -> list[tuple[Fields, str]]:
    """Fields and name of the records in a .pkl or .pt file: a list of PyG objects, or a single one.

    Raises DataError for anything else in it.
    """
    content = path.read_bytes()
    value = load_plain(content, str(path), len(content) // BYTES_PER_STEP)
    items = value if type(value) is list else [value]
    records = [
        (fields_of(item, f"{path}, record {i}"), f"{path}, record {i}") for i, item in enumerate(items)
    ]
    positions = [fields["pos"] for fields, _ in records if _is_array(fields.get("pos"))]
    n_atoms = sum(pos.size // 3 for pos in positions)
    if n_atoms * BYTES_PER_ATOM > len(content):
        raise DataError(f"{path} is refused: it claims {n_atoms} atoms in {len(content)} bytes")
    return records


class _Shard:
    """One released LMDB and the keys of its records; there may be none, as in some shards of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_lmdb(path)
        length = self._file.get(LENGTH_KEY)
        self._keys = _keys_by_count(self._file) if length is None else range(self._length(length))
        if not len(self._keys):
            if length is None and next(self._file.iter_keys(), None) is not None:
                raise DataError(f"{path} holds no records but other keys; it is an LMDB of another kind")
            return  # a converter's process that had nothing to do
        first = self._file.get(b"%d" % self._keys[0])
        if first is None or not first.startswith(_PICKLE_START):
            fault = "is missing" if first is None else "is not a pickle of protocol 2 or later"
            raise DataError(f"{path} is an LMDB of another kind: its record {self._keys[0]} {fault}")

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, place: int) -> str:
        """How messages call a record."""
        return f"{self.path}, record {self._keys[place]}"

    def fields(self, place: int) -> Fields:
        """The fields of a record; raises DataError where it is missing or refused."""
        where = self.where(place)
        content = self._file.get(b"%d" % self._keys[place], where)
        if content is None:
            raise DataError(f"{where} is missing although the file counts {len(self)}; copy or make it anew")
        return read_fields(content, where)

    def _length(self, content: bytes) -> int:
        length = load_plain(content, f"{self.path}, key length", MOST_STEPS)
        if type(length) is not int or not 0 <= length < 2**31:
            raise DataError(f"{self.path}: its key length does not hold a number of records")
        if self._file.get(b"%d" % length) is not None:
            raise DataError(
                f"{self.path} says that it has {length} records but also holds record {length}; writing it was not "
                "finished, or it was extended, so make it anew"
            )
        return length


def _keys_by_count(file: LmdbFile) -> range | list[int]:
    """The numbers that are keys; without gaps, and so without a list, in every file but damaged ones."""
    numbers = sorted(int(key) for key in file.iter_keys() if key.isdigit() and key == b"%d" % int(key))
    return range(len(numbers)) if not numbers or numbers[-1] == len(numbers) - 1 else numbers


def read_fields(content: bytes, where: str) -> Fields:
    """The fields of one pickled record; raises DataError naming `where` for one that is refused or damaged."""
    return fields_of(load_plain(content, where, MOST_STEPS), where)


def fields_of(value: Any, where: str) -> Fields:
    """The fields of an object of PyG: its attributes (1.x) or those of its storage (2.x), None left out."""
    fields = value.fields if isinstance(value, PlainObject) and value.kind == _DATA else None
    if fields is not None and isinstance(fields.get("_store"), PlainObject):
        fields = fields["_store"].fields.get("_mapping")
    if type(fields) is not dict:
        raise DataError(f"{where} is not an object of PyG (torch_geometric.data.Data)")
    return {key: item for key, item in fields.items() if item is not None}


def system_of(fields: Fields, where: str, default_sid: int = 0) -> System:
    """The system that the fields of a record describe; its arrays are copies.

    Raises DataError, naming `where` and the field, for one that is missing or of another kind or shape.
    """
    record = _Record(fields, where)
    with np.errstate(all="ignore"):  # numbers too large for float32 become infinite, which validation refuses
        species = to_uint8(record.array("atomic_numbers", (-1,)), "atomic number", where)
        n = len(species)
        if n == 0:
            raise DataError(f"{where} has no atoms")
        natoms = record.number("natoms")
        if natoms is not None and natoms != n:
            raise DataError(f"{where}: natoms is {natoms:g} but there are {n} atomic numbers")
        return System(
            pos=record.vectors("pos", n),
            cell=record.array("cell", (3, 3)).astype(np.float32),
            pbc=record.array("pbc", (3,)).astype(bool) if "pbc" in fields else np.ones(3, dtype=bool),
            atomic_numbers=species,
            tags=to_uint8(record.per_atom("tags", n), "tag", where),
            fixed=record.per_atom("fixed", n).astype(bool),
            energy=record.first_number(_ENERGIES),
            forces=next((record.vectors(key, n) for key in _FORCES if key in fields), None),
            sid=record.whole("sid", default_sid),
            fid=record.whole("fid", 0),
            energy_relaxed=record.number("y_relaxed"),
            pos_relaxed=record.vectors("pos_relaxed", n) if "pos_relaxed" in fields else None,
            source=where,
        )


class _Record:
    """The fields of a record, checked as they are asked for."""

    def __init__(self, fields: Fields, where: str) -> None:
        self._fields, self._where = fields, where

    def array(self, key: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Numbers in this shape, with or without a leading dimension of 1; -1 stands for any length."""
        if key not in self._fields:
            names = ", ".join(sorted(map(shown, self._fields))[:30])
            raise DataError(f"{self._where} has no field {key}; it has {names or 'none'}")
        value = self._fields[key]
        if type(value) in (list, tuple) and all(type(item) in (int, float, bool) for item in value):
            value = np.array(value, dtype=np.float64)
        if not _is_array(value):
            raise DataError(f"{self._where}: {key} is of type {type(value).__name__}; it should be numbers")
        found = value.shape
        inner = found[1:] if len(found) == len(shape) + 1 and found[0] == 1 else found
        if len(inner) != len(shape) or any(n not in (-1, m) for n, m in zip(shape, inner, strict=True)):
            wanted = ["atoms" if n == -1 else n for n in shape]
            raise DataError(f"{self._where}: {key} has shape {list(found)}; it should be {wanted}")
        array: NDArray[Any] = value.reshape(inner)
        return array

    def vectors(self, key: str, n: int) -> NDArray[np.float32]:
        """A vector per atom."""
        return self.array(key, (n, 3)).astype(np.float32)

    def per_atom(self, key: str, n: int) -> NDArray[Any]:
        """A number per atom; 0 where the record has none."""
        return self.array(key, (n,)) if key in self._fields else np.zeros(n, dtype=np.uint8)

    def number(self, key: str) -> float | None:
        """A single number, None where the record has none."""
        value = self._fields.get(key)
        if value is None:
            return None
        if _is_array(value) and value.size == 1:
            value = value.reshape(()).item()
        if type(value) not in (int, float, bool):
            raise DataError(f"{self._where}: {key} should be a single number")
        return float(value)

    def first_number(self, keys: tuple[str, ...]) -> float | None:
        """The first of several fields that the record has."""
        return next((self.number(key) for key in keys if key in self._fields), None)

    def whole(self, key: str, default: int) -> int:
        """A whole number in any form that `whole_number` reads."""
        try:
            return whole_number(self._fields.get(key, default))
        except ValueError:
            raise DataError(f"{self._where}: {key} should be a whole number") from None


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
