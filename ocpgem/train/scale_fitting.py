"""Fits the scale factors: constants that give every activation the variance of its reference (GemNet, appendix).

Factors are fitted one after the other in the order in which a forward pass meets them, each with all earlier ones
active. A factor is sqrt(var_in / var_out), both averaged over the batches, weighted by the rows of the scaled tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import TrainingError
from ocpgem.graph.topology import Topology
from ocpgem.models.gemnet.layers import ScaleFactor
from ocpgem.models.potential import Potential


@dataclass
class FittedScale:
    """One fitted factor and the variances of its activation."""

    name: str
    factor: float
    variance_before: float
    """Without this factor, with those before it."""
    variance_reference: float
    variance_unscaled: float
    """Without any factor."""

    @property
    def variance_scaled(self) -> float:
        """With this factor and those before it."""
        return self.variance_before * self.factor**2


class _Reached(Exception):  # noqa: N818  (not an error)
    """Ends a forward pass as soon as the factor in question has been seen."""


def scale_factors(potential: Potential) -> dict[str, ScaleFactor]:
    """Every scale factor of the model by its module path."""
    return {name: module for name, module in potential.named_modules() if isinstance(module, ScaleFactor)}


def fit_scale_factors(
    potential: Potential,
    batches: Sequence[tuple[Any, Topology]],
    on_progress: Callable[[FittedScale, int, int], None] | None = None,
) -> list[FittedScale]:
    """Reset and fit all factors of `potential` on `batches`.

    `on_progress` is called after each factor with it, its number and the number of factors. Raises TrainingError when a
    variance is zero or not finite, or an activation does not occur in any batch.
    """
    was_training = potential.training
    potential.eval()
    factors = scale_factors(potential)
    for scale in factors.values():
        scale.factor.fill_(1.0)
        scale.fitted.fill_(False)
    try:
        unscaled = _unscaled_variances(potential, factors, batches)
        fitted = []
        for index, (name, variance) in enumerate(unscaled.items(), start=1):
            result = _fit_one(potential, name, factors[name], batches, variance)
            fitted.append(result)
            if on_progress is not None:
                on_progress(result, index, len(unscaled))
    finally:
        for scale in factors.values():
            scale.observer = None
        potential.train(was_training)
    return fitted


def _unscaled_variances(
    potential: Potential, factors: dict[str, ScaleFactor], batches: Sequence[tuple[Any, Topology]]
) -> dict[str, float]:
    """The variance of every activation while no factor acts, in the order in which a forward pass meets them."""
    names = {id(scale): name for name, scale in factors.items()}
    totals: dict[str, Tensor] = {}  # weighted variance, rows

    def record(scale: ScaleFactor, x: Tensor, *_: Tensor | None) -> None:
        name, rows = names[id(scale)], x.shape[0]
        seen = torch.tensor([_mean_variance(x) * rows, rows], dtype=torch.float64)
        totals[name] = totals[name] + seen if name in totals else seen

    for scale in factors.values():
        scale.observer = record
    with torch.no_grad():
        for batch, topology in batches:
            potential(batch, topology)
    for scale in factors.values():
        scale.observer = None
    absent = [name for name in factors if name not in totals or totals[name][1] == 0]
    if absent:
        hint = "; model.quadruplets.tags must occur in the data" if "quadruplet" in absent[0] else ""
        raise TrainingError(
            f"Scale factor {absent[0]} (of {len(absent)}) cannot be fitted: the batches hold nothing that it scales; "
            f"fit on more or larger systems{hint}."
        )
    return {name: float(total[0] / total[1]) for name, total in totals.items()}


def _fit_one(
    potential: Potential,
    name: str,
    scale: ScaleFactor,
    batches: Sequence[tuple[Any, Topology]],
    unscaled: float,
) -> FittedScale:
    totals = torch.zeros(3, dtype=torch.float64)  # weighted variance, weighted reference variance, rows

    def measure(_: ScaleFactor, x: Tensor, reference: Tensor | None, times: Tensor | None) -> None:
        rows = x.shape[0]
        of_reference = _mean_variance(reference, times) if reference is not None else 1.0
        totals.add_(torch.tensor([_mean_variance(x) * rows, of_reference * rows, rows], dtype=torch.float64))
        raise _Reached

    scale.observer = measure
    with torch.no_grad():
        for batch, topology in batches:
            try:
                potential(batch, topology)
            except _Reached:
                continue
    scale.observer = None
    variance, reference, rows = totals.tolist()
    ratio = reference / variance if variance > 0 else float("nan")
    if not (ratio > 0 and ratio < float("inf")):
        raise TrainingError(
            f"Scale factor {name} cannot be fitted: the variance before scaling is {variance / max(rows, 1):.3g}, "
            f"that of its reference {reference / max(rows, 1):.3g}; fit on more or larger systems."
        )
    scale.set(ratio**0.5)
    return FittedScale(name, ratio**0.5, variance / rows, reference / rows, unscaled)


def _mean_variance(x: Tensor, times: Tensor | None = None) -> float:
    """The mean over channels of the variance over rows; times: [n_rows] how often each row counts, None: once."""
    x = x.detach().float()
    if times is None:
        return float(x.var(dim=0, unbiased=True).mean()) if x.shape[0] > 1 else 0.0
    count = int(times.sum())
    if count < 2:
        return 0.0
    weights = times[:, None] / count
    deviation = x - (weights * x).sum(dim=0)
    return float((weights * deviation.square()).sum(dim=0).mean() * (count / (count - 1)))
