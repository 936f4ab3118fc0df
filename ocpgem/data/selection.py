"""Write chosen records of data sets, in a chosen order and with chosen numbers, into a new one."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.folder import is_written
from ocpgem.data.lmdb_store import LmdbDataset, ShardWriter, finish_dataset, shard_name
from ocpgem.data.workers import Counter, run_jobs
from ocpgem.errors import DataError, RequestError

RECORDS_PER_SHARD = 50_000
MOST_SHARDS = 9999

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Records of data sets, counted through one set after another, and the numbers they get.

    Attributes:
        paths: data sets of ocpgem, or single shards.
        indices, sids, fids: [n] record, and its system and frame number in the new data set.
    """

    paths: tuple[Path, ...]
    indices: Ints
    sids: Ints
    fids: Ints


@dataclass(frozen=True)
class _Job:
    shard: Path
    selection: Selection
    provenance: dict[str, Any]


def open_own(path: Path) -> LmdbDataset:
    """A data set of ocpgem, or one of its shards; raises RequestError for any other kind of file."""
    if path.is_file() and path.suffix != ".lmdb":
        raise RequestError(
            f"{path} is not a data set of ocpgem; convert it first: data convert {path} --out FOLDER"
        )
    return LmdbDataset(path)


def identity(dataset: LmdbDataset) -> dict[str, Any]:
    """What tells a data set from another that may later stand at its path."""
    shards = dataset.metadata.get("shards") or [{"count": len(dataset), "bytes": dataset.path.stat().st_size}]
    return {"path": str(dataset.path), "shards": shards}


def check_shards(n_shards: int | None, n_records: int) -> None:
    """Raise RequestError unless so many shards can each hold a record; None leaves the number open."""
    if n_shards is not None and not 1 <= n_shards <= min(n_records, MOST_SHARDS):
        raise RequestError(
            f"{n_shards} shards cannot be made of {n_records} records; at least 1 is needed, at most "
            f"{min(n_records, MOST_SHARDS)}"
        )


def write_selection(
    out: Path,
    selection: Selection,
    provenance: dict[str, Any],
    workers: int,
    n_shards: int | None = None,
    label: str = "writing records",
) -> int:
    """Write a selection to `out` as a finished data set; returns how many shards were there from before.

    Shards hold equally many records, at most 50,000 unless `n_shards` says otherwise. The caller holds the folder's
    lock and has agreed on the plan. Raises DataError where a record is damaged or the count comes out wrong.
    """
    n_records = len(selection.indices)
    check_shards(n_shards, n_records)
    n_shards = n_shards or -(-n_records // RECORDS_PER_SHARD)
    jobs = _divide(out, selection, n_shards)
    missing = [job for job in jobs if not is_written(job.shard, job.provenance)]
    total = sum(len(job.selection.indices) for job in missing)
    run_jobs(_write_shard, missing, workers, total, label)
    finish_dataset(out, [job.shard for job in jobs], provenance)
    if len(LmdbDataset(out)) != n_records:
        raise DataError(f"{out} has {len(LmdbDataset(out))} records where {n_records} were chosen")
    return len(jobs) - len(missing)


def _divide(out: Path, selection: Selection, n_shards: int) -> list[_Job]:
    bounds = np.linspace(0, len(selection.indices), n_shards + 1).astype(int).tolist()
    jobs = []
    for number, (first, last) in enumerate(pairwise(bounds)):
        part = slice(first, last)
        chosen = Selection(
            selection.paths, selection.indices[part], selection.sids[part], selection.fids[part]
        )
        provenance = {"records": [first, last], "of": len(selection.indices), "selection": _digest(chosen)}
        jobs.append(_Job(out / shard_name(number), chosen, provenance))
    return jobs


def _digest(selection: Selection) -> int:
    """A checksum of what is chosen; the plan of the folder says from where."""
    digest = 0
    for array in (selection.indices, selection.sids, selection.fids):
        digest = zlib.crc32(np.ascontiguousarray(array).tobytes(), digest)
    return digest


def _write_shard(job: _Job, done: Counter) -> None:
    chosen = job.selection
    datasets = [LmdbDataset(path) for path in chosen.paths]
    starts = np.cumsum([0, *(len(dataset) for dataset in datasets)])
    owners = np.searchsorted(starts, chosen.indices, side="right") - 1
    records = chosen.indices - starts[owners]
    edges = [dataset.n_edges for dataset in datasets]
    numbers = zip(chosen.sids.tolist(), chosen.fids.tolist(), strict=True)
    with ShardWriter(job.shard, job.provenance) as writer:
        for owner, record, (sid, fid) in zip(owners.tolist(), records.tolist(), numbers, strict=True):
            system = datasets[owner][record]
            system.sid, system.fid = sid, fid
            writer.add(system, int(edges[owner][record]))
            done.add(1)
