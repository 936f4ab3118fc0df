"""What loader workers are reading, noted where the main process can still see it once a worker was killed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from multiprocessing import active_children

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ocpgem.data.dataset import Dataset
from ocpgem.errors import DataError

NOTHING = -1
SECONDS_TO_DIE = 2.0


@dataclass(frozen=True)
class ReadingNotes:
    """One row per worker in memory that all processes share: its process number, and the record it works on.

    slots: [n_workers, 2] int64; -1 where there is none.
    """

    slots: Tensor

    def note(self, index: int) -> None:
        """Called in a worker before it touches a record; outside workers nothing happens."""
        worker = get_worker_info()
        if worker is not None:
            self.slots[worker.id, 0] = os.getpid()
            self.slots[worker.id, 1] = index

    def death(self, dataset: Dataset) -> DataError | None:
        """The error to raise if a worker is no more, None if all live. Called by the process that started them."""
        deadline = time.monotonic() + SECONDS_TO_DIE  # what a worker leaves may be seen before its end is
        while not (dead := self._dead()):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        records = [index for worker, index in enumerate(self.slots[:, 1].tolist()) if worker in dead]
        names = " and ".join(dataset.origin(index) for index in records if index != NOTHING)
        return worker_killed(f" while it worked on {names}" if names else "")

    def _dead(self) -> set[int]:
        alive = {child.pid for child in active_children()}
        pids = self.slots[:, 0].tolist()
        return {worker for worker, pid in enumerate(pids) if pid != NOTHING and pid not in alive}


def worker_killed(when: str = "") -> DataError:
    """The error that says that a worker is no more."""
    return DataError(
        f"a data worker was killed{when}, most often because memory (or /dev/shm) ran out; use fewer workers or "
        "smaller batches"
    )


def reading_notes(n_workers: int) -> ReadingNotes:
    """Empty notes for so many workers."""
    return ReadingNotes(torch.full((n_workers, 2), NOTHING, dtype=torch.int64).share_memory_())
