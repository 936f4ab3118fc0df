"""Energies of elements whose sums over the atoms come closest to the training energies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.train.target_moments import Floats, Moments

_SMALLEST_EIGENVALUE = 1e-10
"""Of numbers of atoms scaled to unit size; smaller ones are rounding."""
_VISIBLE = 1e-6
"""Part of a direction of unit length that is more than rounding."""


@dataclass(frozen=True)
class ElementFit:
    """Fitted energies of elements.

    energies: [N] in eV by atomic number, 0 for elements that do not occur; undetermined: elements whose energies the
    compositions do not tell apart; n_determined: how many independent combinations of energies they do determine.
    """

    energies: Floats
    undetermined: tuple[int, ...]
    n_determined: int


def fit_elements(moments: Moments, ridge: float | None = None) -> ElementFit:
    """Least squares without an intercept, or ridge regression (mean squared error + ridge * sum of squares, in eV^2).

    Where compositions do not determine all energies, least squares takes those with the smallest sum of squares.
    """
    present = moments.elements
    products = moments.products[np.ix_(present, present)] / moments.weight
    mixed = moments.energy_counts[present] / moments.weight
    if ridge is not None:
        target = mixed + moments.per_atom * products.sum(axis=1)
        solution = np.linalg.solve(products + ridge * np.eye(len(present)), target)
        return ElementFit(_table(moments, solution), (), len(present))
    scale = 1 / np.sqrt(np.diag(products))  # a rare element is no less determined than a frequent one
    values, vectors = np.linalg.eigh(products * np.outer(scale, scale))
    known = values > _SMALLEST_EIGENVALUE * values[-1]
    # Solved for the difference to per_atom, which is small and keeps its digits.
    right = scale * mixed
    inverse = vectors[:, known] / values[known]
    found = scale * (inverse @ (vectors[:, known].T @ right)) + moments.per_atom
    free, _ = np.linalg.qr(scale[:, None] * vectors[:, ~known])
    found -= free @ (free.T @ found)
    undetermined = present[np.abs(free).max(axis=1, initial=0.0) > _VISIBLE]
    return ElementFit(_table(moments, found), tuple(undetermined.tolist()), int(known.sum()))


def _table(moments: Moments, found: NDArray[Any]) -> Floats:
    energies = np.zeros_like(moments.counts)
    energies[moments.elements] = found
    return energies
