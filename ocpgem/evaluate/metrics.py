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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocpgem.errors import DataError
from ocpgem.parallel import group

if TYPE_CHECKING:
    from torch_geometric.data import Batch

    from ocpgem.models.potential import Predictions

ENERGY_THRESHOLD = 0.02  # eV
FORCE_THRESHOLD = 0.03  # eV/A
LEVEL = 0.95  # of confidence intervals
RESAMPLES = 1000  # bootstrap samples of systems
_MANY_ROWS = 50_000  # frames whose terms are kept before those of one system are added up

Array = NDArray[Any]


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
RELAXED_METRICS = (Metric("average_distance_within_threshold", "ADwT", "%", higher_is_better=True),)
ALL_METRICS = METRICS + RELAXED_METRICS
_OF_ENERGIES = ("energy_mae", "energy_per_atom_mae", "energy_within_threshold")
ROW = {metric.name: row for row, metric in enumerate(ALL_METRICS)}


class S2EFMetrics:
    """Totals of all metrics over the batches seen so far, on this rank or (after merging) on all, by system.

    A system is what has a sid: the frames of one relaxation or molecular dynamics run are no independent samples, so
    confidence intervals resample systems and not frames. IS2RE energies are scored by the same class: without force
    labels only the energy metrics are counted.
    """

    def __init__(self) -> None:
        self._sids: list[Array] = []  # [n] each
        self._terms: list[Array] = []  # [n, n_metrics, 2] each: sum and count of every metric
        self._rows = 0

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
        found = np.zeros((len(batch.sid), len(ALL_METRICS), 2))
        for name, (total, count) in terms.items():
            found[:, ROW[name], 0] = total.cpu().numpy()
            found[:, ROW[name], 1] = count.cpu().numpy()
        self.add(batch.sid.cpu().numpy(), found)

    def add(self, sids: Array, terms: Array) -> None:
        """Add sums and counts [n, n_metrics, 2] of systems or frames sids [n], as `totals` gives them."""
        self._sids.append(np.asarray(sids))
        self._terms.append(terms)
        self._rows += len(sids)
        if self._rows > _MANY_ROWS:
            self._gather_rows()

    def totals(self) -> tuple[Array, Array]:
        """The sids [n], ascending, and the sum and count of every metric [n, n_metrics, 2] of each, in float64."""
        if len(self._sids) != 1:
            self._gather_rows()
        return self._sids[0], self._terms[0]

    def _gather_rows(self) -> None:
        if not self._sids:
            self._sids, self._terms = [np.zeros(0, dtype=np.int64)], [np.zeros((0, len(ALL_METRICS), 2))]
            return
        sids, row = np.unique(np.concatenate(self._sids), return_inverse=True)
        table = np.zeros((len(sids), len(ALL_METRICS), 2))
        np.add.at(table, row, np.concatenate(self._terms))
        self._sids, self._terms, self._rows = [sids], [table], 0

    def merge_across_ranks(self) -> None:
        """Make the totals those of all ranks together; every rank calls it once, after its last batch."""
        self._gather_rows()
        gathered = group.broadcast_object(group.gather_objects((self._sids[0], self._terms[0])))
        assert gathered is not None, "rank 0 has gathered"
        self._sids, self._terms = [sids for sids, _ in gathered], [terms for _, terms in gathered]
        self._gather_rows()

    @property
    def n_frames(self) -> int:
        """How many structures were counted."""
        return int(self.totals()[1][:, ROW["energy_mae"], 1].sum())

    def result(self) -> dict[str, float]:
        """The metrics by name: energies in eV, forces in eV/A, thresholds as shares between 0 and 1."""
        total, count = self.totals()[1].sum(axis=0).T
        return {
            metric.name: float(total[row] / count[row])
            for row, metric in enumerate(ALL_METRICS)
            if count[row] > 0
        }

    def result_of_all(self, n_frames: int) -> dict[str, float] | None:
        """`result` where all of `n_frames` structures have labels.

        None where an energy is absent; without the metrics of forces where the forces of a structure are.
        """
        counts = self.totals()[1][:, :, 1].sum(axis=0)
        if counts[ROW["energy_mae"]] < n_frames:
            return None
        with_forces = counts[ROW["energy_forces_within_threshold"]] == n_frames
        return {name: value for name, value in self.result().items() if with_forces or name in _OF_ENERGIES}

    def scores(self, resamples: int = RESAMPLES, seed: int = 0) -> "Scores":
        """The metrics with what is needed for their confidence intervals: `resamples` bootstrap samples of systems."""
        sids, table = self.totals()
        found = np.zeros((0, len(ALL_METRICS)))
        if len(sids) > 1 and resamples > 0:
            found = _bootstrap(table, resamples, seed)
        values = self.result()
        samples = {name: found[:, ROW[name]] for name in values if len(found)}
        return Scores(values, samples, n_systems=len(sids), n_frames=self.n_frames)


@dataclass(frozen=True)
class Scores:
    """The metrics of one data set.

    values: by name; samples: by name, the metric of every bootstrap sample of systems [n_resamples], nothing where
    there is only one system; n_systems, n_frames: how many were counted.
    """

    values: dict[str, float]
    samples: dict[str, Array]
    n_systems: int
    n_frames: int

    def intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """The percentile interval of each metric that holds `level` of its bootstrap samples."""
        return {name: percentile_interval(values, level) for name, values in self.samples.items()}


def percentile_interval(samples: Array, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of bootstrap samples [n]; samples in which nothing was counted (NaN) are left out."""
    low, high = np.nanpercentile(samples, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _bootstrap(table: Array, resamples: int, seed: int) -> Array:
    """The metrics [resamples, n_metrics] of samples of systems, drawn with replacement; table: [n, n_metrics, 2].

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    rng = np.random.default_rng(seed)
    n = len(table)
    flat = table.reshape(n, -1)
    found = np.empty((resamples, table.shape[1]))
    for number in range(resamples):
        drawn = np.bincount(rng.integers(n, size=n), minlength=n).astype(float)
        total, count = (drawn @ flat).reshape(-1, 2).T
        found[number] = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return found


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


Terms = dict[str, tuple[Tensor, Tensor]]  # metric -> sum and count of each system of a batch [n_systems]


def _energy_terms(predicted: Tensor, batch: "Batch") -> Terms:
    """Sums and counts of each system [n_systems], float64."""
    true = batch.energy.double()
    assert predicted.shape == true.shape, "energies must be [n_systems]"
    check_finite(predicted, None, batch, "predictions")
    check_finite(true, None, batch, "labels")
    error = (predicted.detach().double() - true).abs()
    one = torch.ones_like(error)
    return {
        "energy_mae": (error, one),
        "energy_per_atom_mae": (error / batch.natoms.to(error), one),
        "energy_within_threshold": ((error < ENERGY_THRESHOLD).double(), one),
    }


def _force_terms(predicted: Tensor, batch: "Batch", energy_within: tuple[Tensor, Tensor]) -> Terms:
    """Sums over the free atoms of each system, and their number [n_systems], float64."""
    assert predicted.shape == batch.forces.shape, "forces must be [n_atoms, 3]"
    check_finite(batch.energy, predicted, batch, "predictions")
    check_finite(batch.energy, batch.forces, batch, "labels")
    free = ~batch.fixed.bool()
    system = batch.batch[free]
    ours = predicted.detach()[free].double()  # [n_free, 3]
    true = batch.forces[free].double()
    error = (ours - true).abs()
    norms, true_norms = ours.norm(dim=1), true.norm(dim=1)
    product = norms * true_norms
    cosine = torch.where(product > 0, (ours * true).sum(dim=1) / product, 0.0)
    values = torch.stack([error.sum(dim=1), *error.unbind(dim=1), cosine, (norms - true_norms).abs()], dim=1)
    sums = values.new_zeros(len(batch.natoms), 6).index_add(0, system, values)
    n_free = torch.bincount(system, minlength=len(batch.natoms)).double()
    worst = error.new_zeros(len(n_free)).scatter_reduce(0, system, error.amax(dim=1), "amax")
    within, one = energy_within
    names = ("forces_mae", "forcesx_mae", "forcesy_mae", "forcesz_mae", "forces_cosine_similarity")
    terms = {
        name: (sums[:, column], n_free) for column, name in enumerate((*names, "forces_magnitude_error"))
    }
    terms["forces_mae"] = (sums[:, 0], 3 * n_free)
    terms["energy_forces_within_threshold"] = (within * (worst < FORCE_THRESHOLD), one)
    return terms
