"""The Open Catalyst metrics of energies and forces, accumulated exactly over batches and ranks.

Every metric is a total over the whole set divided by a total of counts, both held in float64; no average of
averages is ever formed, so neither the batch size nor the number of ranks can change a score. Thresholds are
strict (`<`). Fixed atoms are left out of all force metrics. The definitions are those of the OC20 benchmark
(Chanussot et al., ACS Catal. 11, 6059 (2021), section 4); what they leave open:

- the cosine is 0 where the predicted or the true force is exactly zero, as a missing direction agrees with
  none;
- a system without a free atom has no force component that could be wrong: it meets the force threshold, and
  adds nothing to the other force metrics;
- a metric that nothing was counted for (no force labels, a model without forces, no free atom in the whole
  set) is absent from the result.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ocpgem.errors import DataError
from ocpgem.parallel import group

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from ocpgem.models.potential import Predictions

ENERGY_THRESHOLD = 0.02  # eV
FORCE_THRESHOLD = 0.03  # eV/A


@dataclass(frozen=True)
class Metric:
    """How a metric is named, shown and compared."""

    name: str
    title: str
    unit: str
    higher_is_better: bool = False


METRICS = (
    Metric("energy_mae", "Energy MAE", "eV"),
    Metric("energy_per_atom_mae", "Energy MAE per atom", "eV"),
    Metric("energy_within_threshold", "EwT", "%", higher_is_better=True),
    Metric("forces_mae", "Force MAE", "eV/Å"),
    Metric("forcesx_mae", "Force MAE, x", "eV/Å"),
    Metric("forcesy_mae", "Force MAE, y", "eV/Å"),
    Metric("forcesz_mae", "Force MAE, z", "eV/Å"),
    Metric("forces_cosine_similarity", "Force cosine", "", higher_is_better=True),
    Metric("forces_magnitude_error", "Force magnitude error", "eV/Å"),
    Metric("energy_forces_within_threshold", "EFwT", "%", higher_is_better=True),
)
_ROW = {metric.name: row for row, metric in enumerate(METRICS)}


class S2EFMetrics:
    """Totals of all metrics over the batches seen so far, on this rank or (after merging) on all.

    IS2RE energies are scored by the same class: without force labels only the energy metrics are counted.
    """

    def __init__(self) -> None:
        self._totals = torch.zeros(len(METRICS), 2, dtype=torch.float64)  # sum and count of each metric

    def update(self, predictions: "Predictions", batch: "Batch") -> None:
        """Add a batch.

        predictions: energy [n_systems] eV, forces [n_atoms, 3] eV/A or None.
        batch: with energy [n_systems] and, where the set has them, forces [n_atoms, 3]; fixed [n_atoms],
            batch [n_atoms], natoms
            [n_systems], sid and fid [n_systems].
        Raises DataError, naming the system, for a prediction or a label that is not finite, and where there
        is no energy label.
        """
        if batch.get("energy") is None:
            raise DataError(
                "the data have no energy labels, so there is nothing to compare with; use predict instead"
            )
        terms = _energy_terms(predictions.energy, batch)
        if predictions.forces is not None and batch.get("forces") is not None:
            terms |= _force_terms(predictions.forces, batch, terms["energy_within_threshold"])
        for name, values in terms.items():
            self._totals[_ROW[name]] += torch.stack([values.sum(), values.new_tensor(values.numel())]).cpu()

    def merge_across_ranks(self) -> None:
        """Make the totals those of all ranks together; every rank calls it once, after its last batch."""
        self._totals = group.all_reduce_sum(self._totals)

    @property
    def n_systems(self) -> int:
        """How many systems were counted."""
        return int(self._totals[_ROW["energy_mae"], 1])

    def result(self) -> dict[str, float]:
        """The metrics by name: energies in eV, forces in eV/A, thresholds as shares between 0 and 1."""
        return {
            metric.name: float(total / count)
            for metric, (total, count) in zip(METRICS, self._totals, strict=True)
            if count > 0
        }


def check_finite(energy: Tensor, forces: Tensor | None, batch: "Batch", what: str) -> None:
    """Raise DataError naming the first system whose energy [n_systems] or forces [n_atoms, 3] are wrong."""
    bad = ~torch.isfinite(energy)
    if forces is not None:
        bad_atom = ~torch.isfinite(forces).all(dim=1)
        bad = bad | torch.zeros_like(bad).index_put((batch.batch,), bad_atom, accumulate=True)
    if bool(bad.any()):
        system = int(bad.nonzero()[0, 0])
        raise DataError(
            f"the {what} for sid {int(batch.sid[system])}, frame {int(batch.fid[system])} contain NaN or "
            "infinity, so no metric of the set would mean anything; look at this system first"
        )


def _energy_terms(predicted: Tensor, batch: "Batch") -> dict[str, Tensor]:
    """Per-system values [n_systems], float64."""
    true = batch.energy.double()
    assert predicted.shape == true.shape, "energies must be [n_systems]"
    check_finite(predicted, None, batch, "predictions")
    check_finite(true, None, batch, "labels")
    error = (predicted.detach().double() - true).abs()
    return {
        "energy_mae": error,
        "energy_per_atom_mae": error / batch.natoms.to(error),
        "energy_within_threshold": (error < ENERGY_THRESHOLD).double(),
    }


def _force_terms(predicted: Tensor, batch: "Batch", energy_within: Tensor) -> dict[str, Tensor]:
    """Per-component [3 n_free], per-atom [n_free] and per-system [n_systems] values, float64."""
    assert predicted.shape == batch.forces.shape, "forces must be [n_atoms, 3]"
    check_finite(batch.energy, predicted, batch, "predictions")
    check_finite(batch.energy, batch.forces, batch, "labels")
    free = ~batch.fixed.bool()
    ours = predicted.detach()[free].double()  # [n_free, 3]
    true = batch.forces[free].double()
    error = (ours - true).abs()
    norms, true_norms = ours.norm(dim=1), true.norm(dim=1)
    product = norms * true_norms
    cosine = torch.where(product > 0, (ours * true).sum(dim=1) / product, 0.0)
    worst = error.new_zeros(len(energy_within))
    worst.scatter_reduce_(0, batch.batch[free], error.amax(dim=1), "amax")
    return {
        "forces_mae": error.flatten(),
        "forcesx_mae": error[:, 0],
        "forcesy_mae": error[:, 1],
        "forcesz_mae": error[:, 2],
        "forces_cosine_similarity": cosine,
        "forces_magnitude_error": (norms - true_norms).abs(),
        "energy_forces_within_threshold": energy_within * (worst < FORCE_THRESHOLD),
    }
