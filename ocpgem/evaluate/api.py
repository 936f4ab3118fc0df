"""Predicting and scoring from Python, for `ase.Atoms` and for data sets."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset, InMemoryDataset
from ocpgem.data.open import open_dataset
from ocpgem.data.system import system_from_atoms
from ocpgem.errors import RequestError
from ocpgem.evaluate.metrics import check_finite
from ocpgem.evaluate.open_model import Model, require_model
from ocpgem.evaluate.predict import Effort, evaluate, outputs

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Prediction:
    """What a model says of one structure.

    energy: eV; forces: [n_atoms, 3] in eV/A, None for a model of energies only.
    energy_spread: eV, forces_spread: [n_atoms] in eV/A: standard deviation over the members of an ensemble, None for a
        single model.
    """

    energy: float
    forces: NDArray[np.float32] | None
    energy_spread: float | None = None
    forces_spread: NDArray[np.float32] | None = None


@overload
def predict(model: Model, structures: "Atoms", effort: Effort | None = None) -> Prediction: ...
@overload
def predict(  # type: ignore[overload-cannot-match]  # mypy does not read ASE here
    model: Model, structures: "Sequence[Atoms] | Dataset | str | Path", effort: Effort | None = None
) -> list[Prediction]: ...
def predict(
    model: Model, structures: "Atoms | Sequence[Atoms] | Dataset | str | Path", effort: Effort | None = None
) -> Prediction | list[Prediction]:
    """Predict energies and forces.

    model: as `ocpgem.load` gives it.
    structures: one `ase.Atoms` (gives one prediction), or several, a data set or its path (gives a list, in order).
    effort: batch sizes and loader processes; results do not depend on them, nor on labels.
    Raises RequestError for a model that is not loaded, DataError naming the structure that cannot be used or whose
    prediction is not finite.
    """
    from ase import Atoms

    model = require_model(model)
    if isinstance(structures, Atoms):
        return predict(model, [structures], effort)[0]
    dataset = as_dataset(structures)
    found: dict[int, Prediction] = {}
    with closing(outputs(model, dataset, effort or Effort(progress=False), "predict")) as batches:
        for item, predictions in batches:
            check_finite(predictions.energy, predictions.forces, item.batch, "predictions")
            found.update(zip(item.indices.tolist(), _singles(predictions, item.batch.natoms), strict=True))
    return [found[index] for index in range(len(dataset))]


def score(
    model: Model, structures: "Sequence[Atoms] | Dataset | str | Path", effort: Effort | None = None
) -> dict[str, float]:
    """The OC20 metrics of a model on labelled structures; energies in eV, forces in eV/A, shares from 0 to 1.

    model: as `ocpgem.load` gives it. Labels of `ase.Atoms` are read from their calculator.
    Raises RequestError for a model that is not loaded, DataError where labels are missing.
    """
    return evaluate(require_model(model), as_dataset(structures), effort or Effort(progress=False))


def as_dataset(structures: "Sequence[Atoms] | Dataset | str | Path") -> Dataset:
    """The structures as a data set."""
    if isinstance(structures, Dataset):
        return structures
    if isinstance(structures, str | Path):
        return open_dataset(structures)
    if len(structures) == 0:
        raise RequestError("there are no structures to predict")
    systems = [
        system_from_atoms(atoms, sid=number, source=f"structure {number}")
        for number, atoms in enumerate(structures)
    ]
    return InMemoryDataset(systems)


def _singles(predictions: Any, natoms: Any) -> list[Prediction]:
    """The predictions of a batch, one by one."""
    counts = natoms.tolist()
    energy = predictions.energy.tolist()
    energy_spread = [None] * len(counts)
    if predictions.energy_spread is not None:
        energy_spread = predictions.energy_spread.tolist()
    forces, spread = (
        [None] * len(counts) if values is None else [v.cpu().numpy() for v in values.split(counts)]
        for values in (predictions.forces, predictions.forces_spread)
    )
    return [Prediction(*each) for each in zip(energy, forces, energy_spread, spread, strict=True)]
