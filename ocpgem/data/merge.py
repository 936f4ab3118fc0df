"""Data sets joined into one, in the order given, or one data set in another number of shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.folder import Summary, agree_on_plan, is_complete, only_writer, summary_of
from ocpgem.data.lmdb_store import PLAN_FILE, LmdbDataset
from ocpgem.data.numbering import duplicate
from ocpgem.data.selection import Selection, check_shards, identity, open_own, write_selection
from ocpgem.data.workers import available_cores, check_workers
from ocpgem.errors import RequestError


@dataclass(frozen=True)
class Merge:
    """What a merge made.

    Attributes:
        summary: of the new data set.
        counts: records of each source, by path.
        n_common: numbers of systems (sid) that occur in several sources.
    """

    summary: Summary
    counts: dict[str, int]
    n_common: int

    def __str__(self) -> str:
        parts = " + ".join(f"{count} ({path})" for path, count in self.counts.items())
        lines = [str(self.summary), f"records: {parts} = {sum(self.counts.values())}"]
        if self.n_common:
            lines.append(
                f"sids that occur in several of the sources, as one system each: {self.n_common}; where they are "
                "different systems, merge with --renumber"
            )
        return "\n".join(lines)


def merge_datasets(
    sources: Sequence[str | Path],
    out: str | Path,
    n_shards: int | None = None,
    renumber: bool = False,
    workers: int | None = None,
) -> Merge:
    """Write the records of all sources, one after another, to a data set in `out`; what was killed is continued.

    renumber: raise the sids of each source above those of the sources before it. Raises RequestError where records of
    two sources have the same sid and fid, or `out` holds something else.
    """
    started = time.monotonic()
    paths, out = [Path(source) for source in sources], Path(out)
    cores = available_cores() if workers is None else workers
    check_workers(cores)
    datasets = [open_own(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise RequestError("a data set is named twice")
    sids = _sids(datasets, renumber)
    fids = np.concatenate([dataset.fids for dataset in datasets]).astype(np.int64)
    _check_unique(datasets, np.concatenate(sids), fids)
    check_shards(n_shards, len(fids))
    plan = {
        "kind": "merge",
        "of": [identity(dataset) for dataset in datasets],
        "n_shards": n_shards,
        "renumber": renumber,
    }
    reused = 0
    with only_writer(out):
        if not is_complete(out, plan):
            agree_on_plan(out, plan, "of other data sets or in other shards")
            selection = Selection(tuple(paths), np.arange(len(fids)), np.concatenate(sids), fids)
            reused = write_selection(out, selection, plan, cores, n_shards)
            (out / PLAN_FILE).unlink()
    occurrences = np.unique(np.concatenate([np.unique(x) for x in sids]), return_counts=True)[1]
    return Merge(
        summary=summary_of(out, reused, time.monotonic() - started),
        counts={str(path): len(dataset) for path, dataset in zip(paths, datasets, strict=True)},
        n_common=int((occurrences > 1).sum()),
    )


def _sids(datasets: list[LmdbDataset], renumber: bool) -> list[NDArray[np.int64]]:
    sids = [np.asarray(dataset.sids, dtype=np.int64) for dataset in datasets]
    if renumber:
        for i in range(1, len(sids)):
            sids[i] = sids[i] - sids[i].min() + sids[i - 1].max() + 1
    return sids


def _check_unique(datasets: list[LmdbDataset], sids: NDArray[np.int64], fids: NDArray[np.int64]) -> None:
    owners = np.repeat(np.arange(len(datasets)), [len(dataset) for dataset in datasets])
    pair = duplicate(sids, fids, owners)
    if pair is not None:
        first, second = (datasets[owners[record]].path for record in pair)
        raise RequestError(
            f"{first} and {second} both hold sid {sids[pair[0]]}, frame {fids[pair[0]]}; where these are different "
            "systems, --renumber keeps them apart"
        )
