"""Every checksum of a data set, and whether its side table belongs to its records."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ocpgem.data.lmdb_store import SIZES_FILE, LmdbDataset
from ocpgem.data.selection import open_own
from ocpgem.data.sizes import SizeTable
from ocpgem.data.workers import Counter, available_cores, check_workers, run_jobs
from ocpgem.errors import DataError


@dataclass(frozen=True)
class _Job:
    """A shard, the number of records that the description gives it, and its rows of the side table."""

    path: Path
    count: int
    rows: SizeTable


def verify(path: str | Path, workers: int | None = None) -> str:
    """Read every record of a data set of ocpgem, or of one shard, and check all that is checksummed.

    Returns a sentence for people. Raises DataError with the number of faults and the first of them.
    """
    cores = available_cores() if workers is None else workers
    check_workers(cores)
    dataset = open_own(Path(path))
    jobs = _jobs(dataset)
    faults = [fault for found in run_jobs(_faults, jobs, cores, len(dataset), "checking") for fault in found]
    if faults:
        raise DataError(f"{path} has {len(faults)} faults, the first: {faults[0]}")
    return f"{len(dataset)} records in {len(jobs)} shards: every checksum is right"


def _jobs(dataset: LmdbDataset) -> list[_Job]:
    shards = dataset.metadata.get("shards")
    if shards is None:
        return [_Job(dataset.path, len(dataset), dataset.sizes)]
    ends = np.cumsum([0, *(shard["count"] for shard in shards)]).tolist()
    rows = np.asarray(dataset.sizes)
    return [
        _Job(dataset.path / shard["file"], shard["count"], np.array(rows[first:last]))
        for shard, (first, last) in zip(shards, pairwise(ends), strict=True)
    ]


def _faults(job: _Job, done: Counter) -> list[str]:
    """A sentence for everything that is wrong with a shard."""
    try:
        shard = LmdbDataset(job.path)
        own_rows = shard.sizes
    except DataError as error:
        return [str(error)]
    faults = []
    if len(shard) != job.count:
        return [f"{job.path} has {len(shard)} records; the description says {job.count}"]
    if not np.array_equal(own_rows, job.rows):
        faults.append(f"{job.path}: its rows of {SIZES_FILE} are not those of the shard")
    for record in range(job.count):
        done.add(1)
        try:
            system = shard[record]
        except DataError as error:
            faults.append(str(error))
            continue
        row = own_rows[record]
        n_free = system.n_atoms - int(np.count_nonzero(system.fixed))
        if (system.n_atoms, n_free, system.sid, system.fid) != tuple(
            row[["n_atoms", "n_free", "sid", "fid"]].tolist()
        ):
            faults.append(f"{job.path}, record {record}: its row in the table of sizes is of another record")
    return faults
