"""Predictions of a whole data set as arrays, and the files they are written to.

Three dialects of one npz file:

- `raw`: everything, uncast, all atoms, in the order of the data set. Keys: ids, sid, fid, natoms [n];
  energy [n]; chunk_idx [n - 1]; forces [N, 3], fixed, atomic_numbers, tags [N]; energy_true, forces_true where the
  data have labels; energy_spread [n], forces_spread [N] of an ensemble.
  Of a relaxation: pos [N, 3] in A besides, with the energy and forces at those positions,
  and pos_true and energy_true (of the relaxed structure) where the data have them; converged, n_steps [n].
- `ocp`: what the first host of the Open Catalyst leaderboard takes. Keys: ids ("sid_fid"), energy [n], forces
  of the free atoms, chunk_idx; float16 for OC20, float32 for OC22; sorted by id.
- `hub`: what the present host documents. The same keys, all atoms, uncast, in the order of the data set; ids
  are "sid", or "sid_fid" where one sid has several frames, since no id may occur twice.

What the last two hold is described by `leaderboard.format`, which submissions are built by, too.

chunk_idx says where forces are cut into systems: `np.split(forces, chunk_idx)`. Energies alone (a model
without forces) are identified by "sid", as in IS2RE.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch_geometric.data import Data

from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.leaderboard.format import DIALECTS as HOSTED
from ocpgem.evaluate.leaderboard.format import Benchmark, DialectName, Format, ids_of
from ocpgem.evaluate.metrics import ALL_METRICS, ENERGY_THRESHOLD, ROW, S2EFMetrics
from ocpgem.evaluate.positions import mean_distances, share_within
from ocpgem.files import require_file, written_whole
from ocpgem.models.potential import Predictions
from ocpgem.zip_errors import ZIP_ERRORS

if TYPE_CHECKING:
    from torch_geometric.data import Batch

Array = NDArray[Any]
DIALECTS = ("raw", *HOSTED)

ATOM_KEYS = ("forces", "fixed", "atomic_numbers", "forces_true", "pos", "pos_true", "tags", "forces_spread")
_ROW_SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("forces", "forces_true", "pos", "pos_true", "pbc"), (3,)),
    "cell": (3, 3),
}
_RAW_REQUIRED = ("sid", "fid", "natoms", "energy", "fixed", "atomic_numbers")
_LOSS_SHARE = 0.1  # of the energy threshold that a cast may lose before it is worth a warning
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionSet:
    """Predictions of n systems with N atoms, and the labels where there are any.

    sid, fid, natoms: [n]; energy, energy_true: [n] eV; forces, forces_true: [N, 3] eV/A, all atoms, system
    after system; fixed, atomic_numbers, tags: [N]; energy_spread [n] eV, forces_spread [N] eV/A: how far the members of
    an ensemble lie from their mean. Of a relaxation: pos, pos_true: [N, 3] A; cell: [n, 3, 3] A and pbc:
    [n, 3], to measure distances with; converged: [n] bool; n_steps: [n].
    """

    sid: Array
    fid: Array
    natoms: Array
    energy: Array
    fixed: Array
    atomic_numbers: Array
    forces: Array | None = None
    energy_true: Array | None = None
    forces_true: Array | None = None
    pos: Array | None = None
    pos_true: Array | None = None
    cell: Array | None = None
    pbc: Array | None = None
    converged: Array | None = None
    n_steps: Array | None = None
    tags: Array | None = None
    energy_spread: Array | None = None
    forces_spread: Array | None = None

    def __len__(self) -> int:
        return len(self.sid)

    def columns(self) -> dict[str, Array]:
        """The arrays that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def take(self, order: Array) -> "PredictionSet":
        """The systems `order` [m], in that order."""
        starts = np.cumsum(self.natoms) - self.natoms
        counts = self.natoms[order]
        shift = starts[order] - (np.cumsum(counts) - counts)
        atoms = np.repeat(shift, counts) + np.arange(counts.sum())
        chosen = {
            name: value[atoms if name in ATOM_KEYS else order] for name, value in self.columns().items()
        }
        return PredictionSet(**chosen)

    def ids(self, frame: bool = True) -> Array:
        """The leaderboard's name of each system, "sid_fid" or "sid"."""
        return ids_of(self.sid, self.fid, frame)


def as_arrays(predictions: Predictions, batch: "Batch") -> PredictionSet:
    """What was predicted for a batch, with its labels."""

    def array(value: torch.Tensor | None) -> Any:
        return None if value is None else value.detach().cpu().numpy()

    return PredictionSet(
        sid=array(batch.sid),
        fid=array(batch.fid),
        natoms=array(batch.natoms),
        energy=array(predictions.energy),
        fixed=array(batch.fixed),
        atomic_numbers=array(batch.atomic_numbers).astype(np.uint8),
        forces=array(predictions.forces),
        energy_true=array(batch.get("energy")),
        forces_true=array(batch.get("forces")) if predictions.forces is not None else None,
        tags=array(batch.tags).astype(np.uint8),
        energy_spread=array(predictions.energy_spread),
        forces_spread=array(predictions.forces_spread),
    )


class OtherDialectError(DataError):
    """A sound prediction file, but not of the raw dialect."""


def score(predictions: PredictionSet) -> dict[str, float]:
    """The metrics of predictions with labels."""
    return metrics_of(predictions).result()


def metrics_of(predictions: PredictionSet) -> S2EFMetrics:
    """The totals of the metrics of predictions with labels."""
    columns = {name: torch.from_numpy(value) for name, value in predictions.columns().items()}
    system = torch.arange(len(predictions)).repeat_interleave(columns["natoms"])
    labels = {"energy": columns.get("energy_true"), "forces": columns.get("forces_true")}
    batch = Data(
        batch=system, **{name: columns[name] for name in ("sid", "fid", "natoms", "fixed")}, **labels
    )
    metrics = S2EFMetrics()
    metrics.update(Predictions(columns["energy"], columns.get("forces")), batch)
    if predictions.pos is not None and predictions.pos_true is not None:
        add_positions(metrics, predictions)
    return metrics


def add_positions(metrics: S2EFMetrics, predictions: PredictionSet) -> None:
    """Add what relaxed positions are scored by (ADwT) to the totals."""
    assert predictions.cell is not None, "distances need the cell"
    assert predictions.pbc is not None, "distances need to know what repeats"
    assert predictions.pos is not None, "relaxed positions are there"
    assert predictions.pos_true is not None, "and those to compare with"
    difference = predictions.pos - predictions.pos_true
    distance = mean_distances(
        difference, predictions.natoms, predictions.cell, predictions.pbc, predictions.fixed
    )
    terms = np.zeros((len(predictions), len(ALL_METRICS), 2))
    terms[:, ROW["average_distance_within_threshold"]] = np.stack(
        [share_within(distance), np.ones(len(distance))], axis=1
    )
    metrics.add(predictions.sid, terms)


def join(parts: Sequence[PredictionSet]) -> PredictionSet:
    """One set after another; labels and forces are kept where every part has them."""
    names = set.intersection(*(set(part.columns()) for part in parts))
    return PredictionSet(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def check_target(path: Path, dialect: str) -> None:
    """Raise RequestError unless a prediction file of this dialect can be written to `path`; nothing is made."""
    if dialect not in DIALECTS:
        raise RequestError(f"the dialect is {dialect!r}; it must be one of {', '.join(DIALECTS)}")
    if path.suffix != ".npz":
        raise RequestError(f"predictions are written to a file ending in .npz; {path} does not")
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the file to write")
    existing = next(parent for parent in path.parents if parent.exists())
    if not existing.is_dir():
        raise RequestError(f"the folder {path.parent} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise RequestError(f"the folder {existing} is not writable")


def make_target(path: Path, dialect: str) -> None:
    """Make the folder of a prediction file; raises RequestError as `check_target` does."""
    check_target(path, dialect)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"the folder {path.parent} cannot be made: {error.strerror}") from error


def write_predictions(
    predictions: PredictionSet,
    path: Path,
    dialect: str,
    provenance: dict[str, Any] | None = None,
    benchmark: Benchmark = "oc20",
) -> None:
    """Write a prediction file; it is complete or absent. Raises DataError where an id would occur twice.

    provenance: plain facts on where the predictions come from, kept in files of the raw dialect.
    benchmark: which data they are of; the type of the ocp dialect depends on it.
    """
    if dialect == "raw":
        content = {
            "ids": predictions.ids(),
            "chunk_idx": chunks_of(predictions.natoms),
            **predictions.columns(),
        }
        if provenance is not None:
            content["provenance"] = np.array(json.dumps(provenance))
        compressed = False
    else:
        task: Literal["s2ef", "is2re"] = "is2re" if predictions.forces is None else "s2ef"
        content = _leaderboard_columns(predictions, Format(task, cast("DialectName", dialect), benchmark))
        compressed = True
    try:
        with written_whole(path) as file:
            _save(file, content, compressed)
    except OSError as error:
        raise OcpgemError(f"{path} cannot be written: {error.strerror}") from error


def read_provenance(path: Path) -> dict[str, Any] | None:
    """The record that a raw prediction file carries, None where it has none; raises DataError for a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "provenance" not in file:
                return None
            record: dict[str, Any] = json.loads(str(file["provenance"]))
    except ZIP_ERRORS as error:
        raise DataError(f"{path} cannot be read as a prediction file: {error}") from error
    return record


def read_raw(path: Path) -> PredictionSet:
    """The content of a `raw` prediction file.

    Raises RequestError where there is no file, DataError for one of another kind or a damaged one.
    """
    require_file(path)
    names = [field.name for field in dataclasses.fields(PredictionSet)]
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds a single array; a prediction file is an npz file")
        with loaded as file:
            missing = [name for name in _RAW_REQUIRED if name not in file]
            if missing:
                raise OtherDialectError(
                    f"{path} has no {', '.join(missing)}, so it is not a prediction file of the raw dialect"
                )
            columns = {name: file[name] for name in names if name in file}
    except OSError as error:
        raise DataError(f"{path} cannot be read as a prediction file: {error.strerror or error}") from error
    except ZIP_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as a prediction file, it is cut off, damaged or of another kind: {error}"
        ) from error
    _check_shapes(columns, path)
    return PredictionSet(**columns)


def _check_shapes(columns: dict[str, Array], path: Path) -> None:
    """Raise DataError unless every array has a row for each system or atom, of the length that it should have."""
    natoms = columns["natoms"]
    if natoms.ndim != 1 or natoms.dtype.kind not in "iu" or (natoms < 1).any():
        raise DataError(f"{path}: natoms should hold the number of atoms of each system, at least 1")
    n_systems, n_atoms = len(natoms), int(natoms.sum())
    for name, value in columns.items():
        rows = n_atoms if name in ATOM_KEYS else n_systems
        shape = (rows, *_ROW_SHAPES.get(name, ()))
        if value.shape != shape:
            raise DataError(f"{path}: {name} has shape {list(value.shape)} where {list(shape)} is expected")


def _leaderboard_columns(predictions: PredictionSet, form: Format) -> dict[str, Array]:
    several_frames = len(np.unique(predictions.sid)) < len(predictions)
    ids = predictions.ids(frame=form.id_has_frame(several_frames))
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise DataError(
            f"the id {values[counts.argmax()]} occurs {counts.max()} times in the data; "
            "a leaderboard file needs every id exactly once"
        )
    if form.sorted_by_id:
        order = np.argsort(ids)
        predictions, ids = predictions.take(order), ids[order]
    content = {"ids": ids, "energy": _cast(predictions.energy, form.dtype("energy"), "energy")}
    if predictions.forces is not None:
        keep = ~predictions.fixed if form.free_atoms_only else np.ones_like(predictions.fixed)
        system = np.repeat(np.arange(len(ids)), predictions.natoms)
        content["forces"] = _cast(predictions.forces[keep], form.dtype("forces"), "forces")
        content["chunk_idx"] = chunks_of(np.bincount(system[keep], minlength=len(ids)))
    return content


def _cast(values: Array, dtype: DTypeLike | None, what: str) -> Array:
    if dtype is None:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise DataError(
            f"the largest {what} is {np.abs(values).max():.6g}, beyond the range of {np.dtype(dtype)}"
        )
    if what == "energy":
        lost = np.abs(cast.astype(np.float64) - values) > _LOSS_SHARE * ENERGY_THRESHOLD
        if lost.any():
            _log.warning(
                "%s loses more than a tenth of the %g eV energy threshold on %d of %d energies",
                np.dtype(dtype), ENERGY_THRESHOLD, lost.sum(), len(values),
            )  # fmt: skip
    return cast


def chunks_of(counts: Array) -> Array:
    """Where rows are cut into systems with these numbers of rows [n], for `np.split`; [n - 1]."""
    return np.cumsum(counts)[:-1]


def _save(file: IO[bytes], content: dict[str, Array], compressed: bool) -> None:
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, allow_pickle=False, **content)
