"""What is kept of a relaxation of a data set while it runs, so that nothing finished is done twice.

The folder holds `request.json` (what was asked), `parts/` (finished systems, one file for every few seconds of work and
rank, each whole or absent), `trajectories/`, and at the end `relaxed.npz` and `systems.csv`.
"""

import csv
import io
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.folder import LOCK_FILE
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.prediction_set import PredictionSet
from ocpgem.evaluate.relax.loop import Relaxed
from ocpgem.files import write_text, written_whole
from ocpgem.zip_errors import ZIP_ERRORS

RELAXED_FILE, REQUEST_FILE, TABLE_FILE = "relaxed.npz", "request.json", "systems.csv"
PARTS, TRAJECTORIES = "parts", "trajectories"
_FLUSH_SHARE, _FLUSH_SOONEST, _FLUSH_LATEST = 0.02, 1.0, 60.0  # of the time so far; s

Array = NDArray[Any]


@dataclass(frozen=True)
class Finished:
    """One finished system: its number in the data set, its row of a prediction file, and what else is known.

    energy_start: eV; fmax: eV/A; problem: empty if there was none.
    """

    index: int
    row: PredictionSet
    energy_start: float
    fmax: float
    problem: str

    @classmethod
    def of(cls, found: Relaxed) -> "Finished":
        """A relaxation without its frames."""
        system = found.system
        row = PredictionSet(
            sid=np.array([system.sid]),
            fid=np.array([system.fid]),
            natoms=np.array([system.n_atoms]),
            energy=np.array([found.last.energy]),
            fixed=system.fixed,
            atomic_numbers=system.atomic_numbers,
            forces=found.last.forces.astype(np.float32),
            energy_true=None if system.energy_relaxed is None else np.array([system.energy_relaxed]),
            pos=found.last.pos,
            pos_true=system.pos_relaxed,
            cell=system.cell[None],
            pbc=system.pbc[None],
            converged=np.array([found.converged]),
            n_steps=np.array([found.n_steps]),
        )
        return cls(found.index, row, found.energy_start, found.fmax, found.problem or "")


class PartsWriter:
    """Writes the finished systems of one rank to `parts/`, every few seconds and at the end."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder / PARTS, rank
        self._pending: list[Finished] = []
        self._began = self._last = time.monotonic()

    def add(self, finished: Finished) -> None:
        """Take note of a finished system."""
        self._pending.append(finished)
        now = time.monotonic()
        interval = min(max(_FLUSH_SHARE * (now - self._began), _FLUSH_SOONEST), _FLUSH_LATEST)
        if now - self._last >= interval:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            name = f"{time.time_ns()}-{self._rank}-{os.getpid()}.npz"
            _write_part(self._folder / name, self._pending)
            self._pending = []
        self._last = time.monotonic()


def check_folder(folder: Path) -> None:
    """Raise RequestError for a file, or a folder that holds something else than a relaxation."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file; name a folder with --out")
    if not (folder / REQUEST_FILE).is_file() and any(entry.name != LOCK_FILE for entry in folder.glob("*")):
        raise RequestError(
            f"{folder} is there already and holds no relaxation; name another folder with --out"
        )


def open_folder(folder: Path, request: dict[str, Any]) -> list[Finished]:
    """Make the folder of a relaxation, or open that of an earlier one; returns what is finished already.

    Raises RequestError for a folder that holds something else or a relaxation of another kind, DataError for a
    damaged part.
    """
    path = folder / REQUEST_FILE
    check_folder(folder)
    if path.is_file():
        _compare(json.loads(path.read_text()), request, folder)
    for name in (PARTS, TRAJECTORIES):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_text(path, json.dumps(request, indent=2) + "\n")
    for leftover in folder.glob("*/.*partial*"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    return _merge_parts(folder / PARTS)


def _compare(earlier: dict[str, Any], request: dict[str, Any], folder: Path) -> None:
    different = [
        f"{name} was {earlier.get(name)!r} and is now {value!r}"
        for name, value in request.items()
        if earlier.get(name) != value
    ]
    if different:
        raise RequestError(
            f"{folder} holds a relaxation of another kind ({'; '.join(different)}); "
            "ask for the same again or name another folder with --out"
        )


def _merge_parts(folder: Path) -> list[Finished]:
    """All finished systems, each once; many small files become one."""
    paths = sorted(folder.glob("*.npz"))
    finished = {each.index: each for path in paths for each in _read_part(path)}
    merged = list(finished.values())
    if len(paths) > 1:
        _write_part(folder / f"{time.time_ns()}-merged.npz", merged)
        for path in paths:  # a kill in between leaves systems twice, which the next start joins
            path.unlink()
    return merged


def _write_part(path: Path, finished: Sequence[Finished]) -> None:
    columns: dict[str, Array] = {
        "index": np.array([each.index for each in finished]),
        "energy_start": np.array([each.energy_start for each in finished]),
        "fmax": np.array([each.fmax for each in finished]),
        "problem": np.array([each.problem for each in finished]),
    }
    for name in ("energy_true", "pos_true"):
        columns[f"has_{name}"] = np.array([getattr(each.row, name) is not None for each in finished])
    names = {name for each in finished for name in each.row.columns()}
    for name in names:
        values = [getattr(each.row, name) for each in finished]
        columns[name] = np.concatenate([value for value in values if value is not None])
    with written_whole(path) as file:
        np.savez(file, allow_pickle=False, **columns)


def _read_part(path: Path) -> list[Finished]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = dict(file)
    except ZIP_ERRORS as error:
        raise DataError(
            f"{path} is damaged ({error}); remove it, and the systems in it are relaxed again"
        ) from error
    return list(_rows(columns))


def _rows(columns: dict[str, Array]) -> Iterable[Finished]:
    counts = columns["natoms"]
    per_atom = ("fixed", "atomic_numbers", "forces", "pos")
    atoms = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
    true_atoms = np.split(
        np.arange(counts[columns["has_pos_true"]].sum()), np.cumsum(counts * columns["has_pos_true"])[:-1]
    )
    true_row = np.cumsum(columns["has_energy_true"]) - 1
    per_system = ("sid", "fid", "natoms", "energy", "cell", "pbc", "converged", "n_steps")
    for place in range(len(counts)):
        one = slice(place, place + 1)
        values = {name: columns[name][atoms[place]] for name in per_atom}
        values |= {name: columns[name][one] for name in per_system}
        if columns["has_pos_true"][place]:
            values["pos_true"] = columns["pos_true"][true_atoms[place]]
        if columns["has_energy_true"][place]:
            values["energy_true"] = columns["energy_true"][true_row[place]][None]
        yield Finished(
            int(columns["index"][place]),
            PredictionSet(**values),
            float(columns["energy_start"][place]),
            float(columns["fmax"][place]),
            str(columns["problem"][place]),
        )


def write_table(finished: Sequence[Finished], path: Path) -> None:
    """Write one line per system: how far it came and what went wrong."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["sid", "fid", "n_steps", "converged", "fmax", "energy_start", "energy", "problem"])
    for each in finished:
        row = each.row
        assert row.n_steps is not None
        assert row.converged is not None
        table.writerow(
            [
                int(row.sid[0]), int(row.fid[0]), int(row.n_steps[0]), "yes" if row.converged[0] else "no",
                f"{each.fmax:.6g}", f"{each.energy_start:.9g}", f"{row.energy[0]:.9g}", each.problem,
            ]
        )  # fmt: skip
    write_text(path, text.getvalue())
