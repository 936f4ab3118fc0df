"""What has been computed of a data set so far, kept on disk so that an interrupted evaluation goes on.

Every rank writes a part about once a minute: the numbers of the systems it is done with, and what it found for them.
The same request reads them and computes the rest, on any number of ranks; the parts go when the result is written.
Work that ends before the first minute leaves nothing.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.folder import only_writer
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.open_model import Model, fingerprint
from ocpgem.files import write_text, written_whole
from ocpgem.parallel import group
from ocpgem.zip_errors import ZIP_ERRORS

Array = NDArray[Any]
SAVE_SECONDS = 60.0
_PLAN = "plan.json"


class Parts:
    """The parts of one result, in a folder beside it.

    target: the file that will hold the result; plan: what the parts depend on; every: seconds between parts.
    """

    def __init__(self, target: Path, plan: dict[str, Any], every: float = SAVE_SECONDS) -> None:
        self.folder = target.with_name(f".{target.name}.parts")
        self._plan, self._every = plan, every
        self._last = time.monotonic()
        self.begun = False
        """Whether this rank has kept a part."""

    @contextmanager
    def claimed(self) -> Iterator[Array]:
        """Yield the numbers of the systems that are done; every rank enters. Only one request may hold the folder.

        Raises RequestError where the folder holds parts of something else or another process works on it.
        """
        done: Array | None = None
        error: OcpgemError | None = None
        lock = only_writer(self.folder)
        locked = False
        if group.is_main():
            try:
                lock.__enter__()
                locked = True
                done = self._agree()
            except OcpgemError as caught:
                error = caught
        try:
            group.raise_together(error)
            done = group.broadcast_object(done)
            assert done is not None, "rank 0 has read the parts"
            self._last = time.monotonic()
            yield done
        finally:
            if locked:
                lock.__exit__(None, None, None)
                if self.folder.is_dir() and not any(self.folder.iterdir()):
                    self.folder.rmdir()

    def due(self) -> bool:
        """Whether it is time to keep what has been found."""
        return time.monotonic() - self._last >= self._every

    def keep(self, indices: Array, columns: dict[str, Array]) -> None:
        """Write one part: the systems `indices` [n] and arrays of any shape that belong to them."""
        name = hashlib.sha256(np.sort(indices).tobytes()).hexdigest()[:16]
        try:
            if not (self.folder / _PLAN).exists():
                self._write_plan()
            with written_whole(self.folder / f"{name}.npz") as file:
                np.savez(file, allow_pickle=False, indices=indices, **columns)
        except OSError as error:
            raise OcpgemError(f"{self.folder} cannot be written: {error.strerror}") from error
        self._last, self.begun = time.monotonic(), True

    def _write_plan(self) -> None:
        """Under a name of this rank first: others may be writing theirs, which is the same."""
        mine = self.folder / f".{_PLAN}.{group.rank()}.partial"
        write_text(mine, json.dumps(self._plan, indent=1) + "\n")
        mine.replace(self.folder / _PLAN)

    def read(self) -> Iterator[dict[str, Array]]:
        """Every part: `indices` and the arrays given to `keep`. Raises DataError for a damaged one."""
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    yield dict(file)
            except ZIP_ERRORS as error:
                raise DataError(
                    f"{path} is damaged ({error}); remove it, and it is computed again"
                ) from error

    def remove(self) -> None:
        """Remove all parts: the result is written."""
        for path in [*self.folder.glob("*.npz"), self.folder / _PLAN]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _agree(self) -> Array:
        """Check that the parts here, if any, are of this request; returns the systems that they hold."""
        plan = self.folder / _PLAN
        if not plan.exists():
            return np.zeros(0, dtype=np.int64)
        if json.loads(plan.read_text()) != self._plan:
            raise RequestError(
                f"{self.folder} holds the unfinished work of another request (another model, data set or task); "
                "remove it, or name another file to write"
            )
        for leftover in self.folder.glob(".*.partial"):
            leftover.unlink()
        return np.concatenate([np.zeros(0, dtype=np.int64), *(part["indices"] for part in self.read())])


def plan_of(model: Model, dataset: Dataset, task: str) -> dict[str, Any]:
    """What predictions depend on: the weights and settings of the model, the data set, and the task."""
    return {
        "model": fingerprint(model),
        "data": str(dataset.path.resolve()),
        "systems": fingerprint_of_data(dataset),
        "n": len(dataset),
        "task": task,
    }


def fingerprint_of_data(dataset: Dataset) -> str:
    """SHA-256 of the numbers and sizes of all systems, which is what the ids of predictions are made of."""
    digest = hashlib.sha256()
    for name in ("sid", "fid", "n_atoms", "n_free"):
        digest.update(np.ascontiguousarray(dataset.column(name)).tobytes())
    return digest.hexdigest()
