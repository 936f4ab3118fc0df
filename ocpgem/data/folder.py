"""Making the folder of a data set: one writer at a time, continued after a kill, summed up at the end."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem.data.lmdb_store import METADATA_FILE, PLAN_FILE, LmdbDataset, write_atomically
from ocpgem.errors import DataError, RequestError

LOCK_FILE = ".lock"
_HALF_WRITTEN = ".*.partial"


@dataclass(frozen=True)
class Summary:
    """What was made."""

    out: Path
    n_frames: int
    n_systems: int
    n_atoms: int
    n_edges: int
    n_shards: int
    n_reused_shards: int
    seconds: float

    def __str__(self) -> str:
        kept = f" ({self.n_reused_shards} kept from before)" if self.n_reused_shards else ""
        atoms, edges = self.n_atoms / self.n_frames, self.n_edges / self.n_frames
        return (
            f"{self.out}: {self.n_frames} frames of {self.n_systems} systems in {self.n_shards} shards{kept}"
            f"; {atoms:.1f} atoms and {edges:.0f} edges a frame, {self.seconds:.1f} s"
        )


def summary_of(out: Path, n_reused_shards: int, seconds: float) -> Summary:
    """The summary of a finished data set."""
    dataset = LmdbDataset(out)
    return Summary(
        out=out,
        n_frames=len(dataset),
        n_systems=len(np.unique(dataset.sids)),
        n_atoms=int(dataset.n_atoms.sum()),
        n_edges=int(dataset.n_edges.sum()),
        n_shards=len(dataset.metadata["shards"]),
        n_reused_shards=n_reused_shards,
        seconds=seconds,
    )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system drops it with the process, however that ends.

    A folder that was made for this and is left empty is removed. Raises RequestError for a file in its place.
    """
    _refuse_file(out)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"{out}: another process is writing into this folder") from None
        try:
            yield
        finally:
            (out / LOCK_FILE).unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it is not empty: something was made, or another process has begun
                    out.rmdir()


def is_complete(out: Path, plan: dict[str, Any]) -> bool:
    """Whether `out` is what the plan makes, finished; raises RequestError where it is something else.

    The provenance of a data set may say more than its plan.
    """
    if not (out / METADATA_FILE).exists():
        return False
    provenance = LmdbDataset(out).metadata["provenance"]
    if {key: provenance.get(key) for key in plan} != plan:
        raise RequestError(f"{out} already holds another data set; remove it or choose another folder")
    return True


def check_folder(out: Path, plan: dict[str, Any], of_other: str = "of something else") -> None:
    """Raise RequestError unless `out` is free or holds what was begun with this plan; nothing is changed.

    of_other: what another conversion that was begun here would be one of, for its message.
    """
    _refuse_file(out)
    file = out / PLAN_FILE
    if file.exists():
        if json.loads(file.read_text()) != plan:
            raise RequestError(f"{out} holds an unfinished conversion {of_other}; remove it to start anew")
        return
    held = sorted(each.name for each in out.iterdir()) if out.is_dir() else []
    others = [name for name in held if name != LOCK_FILE and not fnmatch(name, _HALF_WRITTEN)]
    if others:
        raise RequestError(f"{out} is not empty ({others[0]} is there); choose another folder")


def _refuse_file(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; choose another folder")


def agree_on_plan(out: Path, plan: dict[str, Any], of_other: str = "of something else") -> None:
    """`check_folder`, then write down what is being made, and clear half-written files."""
    check_folder(out, plan, of_other)
    if not (out / PLAN_FILE).exists():
        write_atomically(out / PLAN_FILE, plan)
    for leftover in out.glob(_HALF_WRITTEN):
        leftover.unlink()


def is_written(shard: Path, provenance: dict[str, Any]) -> bool:
    """Whether a shard with this provenance is in place and whole."""
    if not shard.exists():
        return False
    try:
        return bool(LmdbDataset(shard).metadata["provenance"] == provenance)
    except DataError:
        return False
