"""ocpgem's own data sets: a folder of LMDB shards, a side table of sizes, and a description.

    train/
      data.0000.lmdb ...   a header, sizes, and records (ocpgem.data.record) under 4-byte big-endian keys
      sizes.npy            one row per record (ocpgem.data.sizes), memory-mapped by every process
      metadata.json        format, shards and counts, provenance; written last, so its presence means complete

A shard can also be opened alone. Shards never change once they are in place, so readers take no locks.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from ocpgem.data.edge_store import EdgeStore
from ocpgem.data.lmdb_file import open_lmdb
from ocpgem.data.record import decode, encode
from ocpgem.data.sharded import ShardedDataset, existing
from ocpgem.data.sizes import (
    CUTOFF,
    MAX_NEIGHBORS,
    SizesFile,
    SizeTable,
    mapped_sizes,
    pack_sizes,
    size_row,
    size_table,
    unpack_sizes,
)
from ocpgem.data.system import System
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.graph.spec import GraphSpec

SHARD_FORMAT, DATASET_FORMAT, VERSION = "ocpgem-shard", "ocpgem-dataset", 1
HEADER_KEY, SIZES_KEY = b"ocpgem", b"sizes"
METADATA_FILE, SIZES_FILE = "metadata.json", "sizes.npy"
PLAN_FILE = "conversion.json"
"""Lies in a folder as long as a conversion into it is not done."""
RECORDS_PER_TRANSACTION = 1000

_KEY = struct.Struct(">I")
_PAGE = 4096


class ShardWriter:
    """Writes one shard under a temporary name and moves it into place when the `with` block ends well.

    Raises DataError for a system that could not be used later (not finite, unknown element, no cell).
    """

    def __init__(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._provenance = provenance or {}
        self._pending: list[bytes] = []
        self._rows: list[tuple[int, int, int, int, int]] = []

    def __enter__(self) -> ShardWriter:
        self._partial.unlink(missing_ok=True)
        self._map_size = 1 << 20
        self._env = lmdb.open(
            str(self._partial), map_size=self._map_size, subdir=False, lock=False, sync=False, metasync=False
        )
        return self

    def add(self, system: System, n_edges: int | None = None) -> None:
        """Append a system; `n_edges` (6 A, nearest 50) is counted unless given."""
        system.validate()
        self._rows.append(size_row(system, n_edges))
        self._pending.append(encode(system))
        if len(self._pending) >= RECORDS_PER_TRANSACTION:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._env.close()
            self._partial.unlink(missing_ok=True)
            return
        self._flush()
        count = len(self._rows)
        header = {"format": SHARD_FORMAT, "version": VERSION, "count": count, "provenance": self._provenance}
        self._put({HEADER_KEY: json.dumps(header).encode(), SIZES_KEY: pack_sizes(size_table(self._rows))})
        pages = self._env.info()["last_pgno"] + 1
        size = pages * self._env.stat()["psize"]
        self._env.sync(True)
        self._env.close()
        if self._partial.stat().st_size < size:  # pages that were freed at the end are never written
            os.truncate(self._partial, size)
        self._partial.replace(self.path)

    def _flush(self) -> None:
        first = len(self._rows) - len(self._pending)
        self._put({_KEY.pack(first + i): record for i, record in enumerate(self._pending)})
        self._pending = []

    def _put(self, items: dict[bytes, bytes]) -> None:
        """Write one transaction, growing the map first (readers map as much as the file says)."""
        used = (self._env.info()["last_pgno"] + 1) * _PAGE
        need = sum((len(value) // _PAGE + 2) * _PAGE for value in items.values())
        while self._map_size < used + need + 64 * _PAGE:
            self._map_size *= 2
            self._env.set_mapsize(self._map_size)
        with self._env.begin(write=True) as transaction:
            for key, value in items.items():
                transaction.put(key, value)


def write_dataset(
    folder: str | Path,
    systems: Iterable[System],
    provenance: dict[str, Any] | None = None,
    systems_per_shard: int = 50_000,
) -> None:
    """Write systems into a new data set; raises RequestError where one exists already."""
    folder = Path(folder)
    if (folder / METADATA_FILE).exists():
        raise RequestError(f"{folder} already holds a data set; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    iterator = iter(systems)
    try:
        while batch := list(islice(iterator, systems_per_shard)):
            paths.append(folder / shard_name(len(paths)))
            with ShardWriter(paths[-1]) as writer:
                for system in batch:
                    writer.add(system)
        finish_dataset(folder, paths, provenance)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def shard_name(number: int) -> str:
    """File name of the shard with this number."""
    return f"data.{number:04d}.lmdb"


def finish_dataset(folder: Path, paths: list[Path], provenance: dict[str, Any] | None = None) -> None:
    """Write the side table and, last, the description of a folder whose shards are all in place."""
    if not paths:
        raise RequestError(f"{folder}: there are no systems to write")
    shards = [_Shard(path) for path in paths]
    write_atomically(folder / SIZES_FILE, np.concatenate([shard.sizes() for shard in shards]))
    metadata = {
        "format": DATASET_FORMAT,
        "version": VERSION,
        "count": sum(shard.count for shard in shards),
        "edges": {"cutoff": CUTOFF, "max_neighbors": MAX_NEIGHBORS},
        "shards": [
            {"file": path.name, "count": shard.count, "bytes": path.stat().st_size}
            for path, shard in zip(paths, shards, strict=True)
        ],
        "provenance": provenance or {},
    }
    write_atomically(folder / METADATA_FILE, metadata)


class LmdbDataset(ShardedDataset["_Shard"]):
    """The systems of a folder or of one shard, in order; safe in forked and in spawned workers.

    Raises RequestError for a path where nothing is or a folder without a data set, and DataError, naming the file, for
    one that cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        path = existing(path)
        if path.is_dir():
            self.metadata = _read_metadata(path)
            files = [path / shard["file"] for shard in self.metadata["shards"]]
            counts = [shard["count"] for shard in self.metadata["shards"]]
            for file, shard in zip(files, self.metadata["shards"], strict=True):
                _check_size(file, shard["bytes"])
        else:
            shard_file = _Shard(path)
            self.metadata = shard_file.header
            files, counts = [path], [shard_file.count]
        super().__init__(path, files, counts)
        self._sizes_file: SizesFile | None = None
        self._edges: EdgeStore | None = None

    def use_stored_edges(self, graph: GraphSpec) -> None:
        """Hand out systems with their edges of this graph; the side table then counts these.

        Raises RequestError where there are none and DataError where they are of another data set.
        """
        if not self.path.is_dir():
            super().use_stored_edges(graph)
        self._edges = EdgeStore(self.path, self.metadata, graph)
        self._sizes_file = self._table = None

    def __getitem__(self, index: int) -> System:
        system = super().__getitem__(index)
        if self._edges is not None:
            system.edges = self._edges.get(*self._locate(index % len(self)))
        return system

    @property
    def stores_sizes(self) -> bool:
        """The side table is a file."""
        return True

    def _open(self, file: Path) -> _Shard:
        return _Shard(file)

    def _read(self, shard: _Shard, place: int, index: int) -> System:
        return shard.read(place)

    def _load_sizes(self) -> SizeTable:
        if not self.path.is_dir():
            return self._shard(0).sizes()
        return np.asarray(mapped_sizes(self._side_table, len(self)))

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some records, without mapping the others."""
        if not self.path.is_dir():
            return super().rows(indices)
        if self._sizes_file is None:
            self._sizes_file = SizesFile(self._side_table, len(self))
        return self._sizes_file.rows(indices)

    @property
    def _side_table(self) -> Path:
        return self.path / SIZES_FILE if self._edges is None else self._edges.sizes_file

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sizes_file": None}


class _Shard:
    """One shard: its header and its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_lmdb(path)
        self.header = self._read_header()
        self.count: int = self.header["count"]
        self._prefix = f"{path}, record "

    def read(self, index: int) -> System:
        where = self._prefix + str(index)
        record = self._file.get(_KEY.pack(index), where)
        if record is None:
            raise DataError(f"{where} is missing; the file is damaged, make it anew")
        return decode(record, where)

    def sizes(self) -> SizeTable:
        return unpack_sizes(self._file.get(SIZES_KEY) or b"", self.count, str(self.path))

    def _read_header(self) -> dict[str, Any]:
        raw = self._file.get(HEADER_KEY)
        if raw is None:
            raise DataError(f"{self.path} is an LMDB of another kind than ocpgem's own; convert it first")
        header: dict[str, Any] = json.loads(raw)
        if header.get("format") != SHARD_FORMAT or header.get("version") != VERSION:
            raise DataError(
                f"{self.path} has version {header.get('version')}; this program reads version {VERSION}"
            )
        return header


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / METADATA_FILE
    if not file.exists():
        raise _no_metadata(folder)
    try:
        metadata: dict[str, Any] = json.loads(file.read_text())
        known = metadata["format"] == DATASET_FORMAT
        version = metadata["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error})") from None
    if not known or version != VERSION:
        raise DataError(f"{file} has version {version}; this program reads version {VERSION}")
    return metadata


def _no_metadata(folder: Path) -> OcpgemError:
    if (folder / PLAN_FILE).exists():
        return DataError(
            f"{folder}: its conversion was interrupted or still runs: give the same command again, and it goes on"
        )
    shards = sorted(folder.glob("*.lmdb"))
    if not shards:
        return RequestError(
            f"{folder} holds no data set: there is neither {METADATA_FILE} nor a .lmdb or .aselmdb file"
        )
    _Shard(shards[0])  # says so if it is of another kind
    return DataError(
        f"{folder / METADATA_FILE} is missing: writing this data set was not finished; build it again"
    )


def _check_size(file: Path, expected: int) -> None:
    if not file.is_file():
        raise DataError(f"{file} is missing; the data set is incomplete")
    size = file.stat().st_size
    if size != expected:
        raise DataError(f"{file} has {size} bytes where {expected} were written; copy or make it anew")


def write_atomically(path: Path, content: Any) -> None:
    """Write an array as .npy, anything else as JSON, under a temporary name that is then replaced."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        if isinstance(content, np.ndarray):
            np.save(file, content, allow_pickle=False)
        else:
            file.write((json.dumps(content, indent=2) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
