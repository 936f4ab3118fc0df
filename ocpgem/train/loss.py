"""The S2EF loss of OC20: MAE of the energy plus the mean L2 norm of the force error over free atoms."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ocpgem.errors import DataError
from ocpgem.models.potential import Normalization, Predictions
from ocpgem.train.config import LossSection


@dataclass(frozen=True)
class GlobalCounts:
    """How many systems and free atoms one optimiser step holds over all ranks and micro-batches."""

    n_systems: int
    n_free_atoms: int


def loss_share(
    predictions: Predictions,
    batch: Any,
    weights: LossSection,
    normalization: Normalization,
    counts: GlobalCounts,
    progress: float = 0.0,
) -> Tensor:
    """This micro-batch's share of the step's loss: the shares of all ranks and micro-batches add up to the global mean.

    Errors are divided by the standard deviations of `normalization`, so the loss is that of normalised targets.
    progress: the fraction of the run that is done; the softening of small force errors falls to zero by its middle.
    """
    energy_error = (predictions.energy - batch.energy.to(predictions.energy.dtype)).abs().sum()
    loss = weights.energy / (normalization.energy_std * counts.n_systems) * energy_error
    if predictions.forces is not None and weights.forces > 0 and counts.n_free_atoms > 0:
        error = predictions.forces - batch.forces
        free = (~batch.fixed.bool()).to(error.dtype)
        softening = (
            weights.forces_softening * max(0.0, 1 - 2 * progress) + 1e-12
        )  # never 0, so that the gradient of a zero error exists
        force_error = (error.square().sum(dim=1) + softening**2).sqrt() - softening
        loss = (
            loss
            + weights.forces / (normalization.forces_std * counts.n_free_atoms) * (force_error * free).sum()
        )
    return loss


def require_labels(batch: Any, forces: bool) -> None:
    """Raise DataError, naming the first system of the batch, unless there is something to train on."""
    for key in ("energy", "forces") if forces else ("energy",):
        if batch.get(key) is None:
            raise DataError(f"sid {int(batch.sid[0])}, frame {int(batch.fid[0])} has no {key} to train on")
