"""The metrics of a submission where the labels of its systems are at hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ocpgem.data.dataset import Dataset
from ocpgem.data.system import System
from ocpgem.errors import DataError
from ocpgem.evaluate.leaderboard.format import Array, Format, ids_of
from ocpgem.evaluate.metrics import Scores
from ocpgem.evaluate.prediction_set import PredictionSet, metrics_of


def score_submission(
    columns: Mapping[str, Array], form: Format, sets: Mapping[str, Dataset]
) -> dict[str, Scores]:
    """The scores of every split in `sets`, which hold the labels; the submission must have passed its check.

    Rounding counts: what is scored is what the file holds. Raises DataError for a system without the label.
    """
    return {split: _score_split(columns, form, split, dataset) for split, dataset in sets.items()}


def _score_split(columns: Mapping[str, Array], form: Format, split: str, dataset: Dataset) -> Scores:
    sid, fid = np.asarray(dataset.sids), np.asarray(dataset.fids)
    several = len(np.unique(sid)) < len(sid)
    place = {name: row for row, name in enumerate(ids_of(sid, fid, form.id_has_frame(several)).tolist())}
    ids = columns[f"{split}_ids"].astype(str).tolist()
    systems = [dataset[place[name]] for name in ids]
    atoms = [system.n_atoms for system in systems]
    fixed = np.concatenate([system.fixed for system in systems])
    found = {
        "sid": np.array([system.sid for system in systems]),
        "fid": np.array([system.fid for system in systems]),
        "natoms": np.array(atoms),
        "fixed": fixed,
        "atomic_numbers": np.concatenate([system.atomic_numbers for system in systems]),
        "energy": columns.get(f"{split}_energy", np.zeros(len(ids))).astype(np.float64),
        "energy_true": np.zeros(len(ids)),
    }
    if form.task != "is2rs":
        key = "energy" if form.task == "s2ef" else "energy_relaxed"
        found["energy_true"] = np.array([_label(system, key) for system in systems])
    if form.task == "s2ef":
        found["forces_true"] = np.concatenate([_label(system, "forces") for system in systems])
        found["forces"] = np.zeros((len(fixed), 3))
        rows = ~fixed if form.free_atoms_only else np.ones_like(fixed)
        found["forces"][rows] = columns[f"{split}_forces"]
    if form.task == "is2rs":
        found |= {
            "pos": columns[f"{split}_pos"],
            "pos_true": np.concatenate([_label(system, "pos_relaxed") for system in systems]),
            "cell": np.stack([system.cell for system in systems]),
            "pbc": np.stack([system.pbc for system in systems]),
        }
    scores = metrics_of(PredictionSet(**found)).scores()
    return scores if form.task != "is2rs" else _positions_only(scores)


def _positions_only(scores: Scores) -> Scores:
    """Without the energies, which an IS2RS submission does not hold."""
    name = "average_distance_within_threshold"
    samples = {key: value for key, value in scores.samples.items() if key == name}
    return Scores({name: scores.values[name]}, samples, scores.n_systems, scores.n_frames)


def _label(system: System, key: str) -> Any:
    value = getattr(system, key)
    if value is None:
        raise DataError(f"{system.where} has no {key} to score with")
    return value
