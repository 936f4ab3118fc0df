"""Edges beside a data set, so that a loader reads them instead of searching neighbours.

    train/edges/<graph>/        <graph>: 16 hexadecimal digits that stand for cutoffs, limits and rules of a GraphSpec
      edges.0000.lmdb ...       one for each shard of the data set: ocpgem.data.edge_record under the keys of the shard
      sizes.npy                 the side table of the data set with the exact number of edges of the main graph
      edges.json                the graph and the data set they are of; written last, so its presence means complete

They never go stale unnoticed: another graph has another folder, a data set that was made anew has other shards than
`edges.json` names, and every record's edges carry a checksum of the positions they were found for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from ocpgem.data.edge_record import decode_edges, encode_edges
from ocpgem.data.lmdb_file import LmdbFile, open_lmdb
from ocpgem.data.sizes import SizeTable
from ocpgem.data.system import System
from ocpgem.data.workers import Counter, available_cores, check_workers, run_jobs
from ocpgem.errors import DataError, RequestError
from ocpgem.files import write_text
from ocpgem.graph.spec import GraphSpec
from ocpgem.graph.system_edges import SystemEdges, system_edges

FOLDER, DESCRIPTION, SIZES_FILE = "edges", "edges.json", "sizes.npy"
FORMAT, VERSION = "ocpgem-edges", 1
_KEY = struct.Struct(">I")
_AT_ONCE = 500
"""Records in one transaction."""


@dataclass(frozen=True, slots=True)
class StoredEdges:
    """The edges of a record as they lie in a file, and which graph they are of."""

    graph: str
    content: bytes


def graph_name(graph: GraphSpec) -> str:
    """The digits that stand for a graph; any difference of its fields changes them."""
    fields = json.dumps({"version": VERSION, **dataclasses.asdict(graph)}, sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:16]


def edges_of(system: System, graph: GraphSpec) -> SystemEdges:
    """The edges of a system: those stored with it if they are of this graph, else searched.

    Raises DataError as `system_edges` does, and for stored edges that are damaged or of other positions.
    """
    stored = system.edges
    if stored is not None and stored.graph == graph_name(graph):
        return decode_edges(stored.content, system, "its edges")
    return system_edges(system.pos, system.cell, system.pbc, graph, system.tags)


class EdgeStore:
    """The stored edges of a data set for one graph.

    Raises RequestError where there are none and DataError where they are of another data set.
    """

    def __init__(self, dataset: Path, metadata: dict[str, Any], graph: GraphSpec) -> None:
        self.graph = graph_name(graph)
        self.folder = dataset / FOLDER / self.graph
        found = read_description(self.folder)
        if found is None:
            raise RequestError(
                f"{dataset} has no stored edges for the model's graph (cutoff {graph.cutoff:g} A, "
                f"{graph.max_neighbors} neighbours); make them: python main.py data edges {dataset} --config CONFIG"
            )
        if found["shards"] != _shards(metadata):
            raise DataError(
                f"{self.folder} was made for another data set than {dataset} holds now; make the edges anew with data "
                "edges --anew"
            )
        self._files: dict[int, LmdbFile] = {}
        self._pid = os.getpid()

    @property
    def sizes_file(self) -> Path:
        """The side table with the exact number of edges."""
        return self.folder / SIZES_FILE

    def get(self, shard: int, place: int) -> StoredEdges | None:
        """The edges of record `place` of a shard; None where it has none that a model could use."""
        if self._pid != os.getpid():
            self._files, self._pid = {}, os.getpid()
        file = self._files.get(shard)
        if file is None:
            file = self._files[shard] = open_lmdb(self.folder / _file_name(shard))
        where = f"{file.path}, record {place}"
        content = file.get(_KEY.pack(place), where)
        if content is None:
            raise DataError(f"{where} is missing; make the edges anew with data edges --anew")
        return StoredEdges(self.graph, content) if content else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


@dataclass(frozen=True)
class _Job:
    path: Path
    number: int
    graph: GraphSpec
    folder: Path


def store_edges(path: Path, graph: GraphSpec, workers: int | None = None, anew: bool = False) -> str:
    """Search the edges of every record of a data set and keep them beside it; returns a summary.

    Shards that an interrupted call has finished are kept. Raises RequestError for what is no data set of ocpgem in a
    folder, and DataError as reading does.
    """
    from ocpgem.data.lmdb_store import LmdbDataset

    cores = available_cores() if workers is None else workers
    check_workers(cores)
    if not path.is_dir():
        raise RequestError(f"{path} is not the folder of a data set of ocpgem; data convert makes one")
    dataset = LmdbDataset(path)
    folder = path / FOLDER / graph_name(graph)
    facts = {"format": FORMAT, "version": VERSION, "graph": dataclasses.asdict(graph)}
    facts |= {"shards": _shards(dataset.metadata)}
    found = read_description(folder)
    if found is not None and not anew and found["shards"] == facts["shards"]:
        return f"{folder} holds the edges already; --anew makes them again"
    if anew or (found is not None):
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shards = dataset.metadata["shards"]
    jobs = [_Job(path / shard["file"], number, graph, folder) for number, shard in enumerate(shards)]
    parts = run_jobs(_store_shard, jobs, cores, len(dataset), "storing edges")
    rows = np.array(dataset.sizes)
    rows["n_edges"] = np.concatenate(parts)
    _write_sizes(folder / SIZES_FILE, rows)
    write_text(folder / DESCRIPTION, json.dumps(facts, indent=2) + "\n")
    n_bytes = sum(file.stat().st_size for file in folder.iterdir())
    without = int((rows["n_edges"] == 0).sum())
    return (
        f"edges of {len(rows):,} records in {folder}: {int(rows['n_edges'].sum()):,} of the main graph, "
        f"{n_bytes / 1e9:.3g} GB"
        + (f"; {without:,} records have none that a model could use" if without else "")
    )


def read_description(folder: Path) -> dict[str, Any] | None:
    """What `edges.json` says; None where it is not there. Raises DataError where it cannot be used."""
    file = folder / DESCRIPTION
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        usable = (
            found["format"] == FORMAT and found["version"] == VERSION and isinstance(found["shards"], list)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error}); remove {folder}") from None
    if not usable:
        raise DataError(
            f"{file} is of another version; remove {folder} and make the edges anew with data edges"
        )
    return found


def _store_shard(job: _Job, done: Counter) -> np.ndarray:
    """Write the edges of a shard; returns the number of the main graph's of every record."""
    from ocpgem.data.lmdb_store import LmdbDataset

    shard = LmdbDataset(job.path)
    target, partial = (job.folder / f"{prefix}{_file_name(job.number)}" for prefix in ("", ".partial."))
    counts = job.folder / f"{_file_name(job.number)}.counts.npy"
    if target.is_file() and counts.is_file():
        done.add(len(shard))
        return np.asarray(np.load(counts, allow_pickle=False))
    partial.unlink(missing_ok=True)
    found = np.zeros(len(shard), dtype=np.int32)
    environment = lmdb.open(
        str(partial), subdir=False, lock=False, map_size=1 << 24, sync=False, metasync=False
    )
    for first in range(0, len(shard), _AT_ONCE):
        values = {}
        for place in range(first, min(first + _AT_ONCE, len(shard))):
            values[_KEY.pack(place)], found[place] = _edges_as_bytes(shard[place], job.graph)
            done.add(1)
        _put(environment, values)
    environment.sync(True)
    environment.close()
    with counts.open("wb") as file:
        np.save(file, found, allow_pickle=False)
    partial.replace(target)
    return found


def _edges_as_bytes(system: System, graph: GraphSpec) -> tuple[bytes, int]:
    """The edges and how many the main graph has; nothing for a system that no model of this graph can use."""
    try:
        edges = system_edges(system.pos, system.cell, system.pbc, graph, system.tags)
    except DataError:
        return b"", 0
    return encode_edges(edges, system), len(edges.main)


def _put(environment: lmdb.Environment, values: dict[bytes, bytes]) -> None:
    """Write one transaction, growing the map first."""
    used = (environment.info()["last_pgno"] + 1) * 4096
    need = used + sum((len(value) // 4096 + 2) * 4096 for value in values.values()) + (1 << 20)
    if environment.info()["map_size"] < need:
        environment.set_mapsize(2 * need)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)


def _write_sizes(path: Path, rows: SizeTable) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    partial.replace(path)


def _shards(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: shard[key] for key in ("file", "count", "bytes")} for shard in metadata["shards"]]


def _file_name(shard: int) -> str:
    return f"edges.{shard:04d}.lmdb"
