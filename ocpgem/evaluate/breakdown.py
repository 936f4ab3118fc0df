"""Errors by what a system is made of: by element, adsorbate, number of atoms and size of the true force.

A group is a set of frames (energies) or of free atoms (forces); its error is the mean over all of them, and beside it
stands that of the simplest guess, zero force or the median energy.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase.formula import Formula
from ase.symbols import Symbols

from ocpgem.evaluate.prediction_set import Array, PredictionSet

ADSORBATE_TAG = 2
FORCE_EDGES = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, np.inf])  # eV/A


@dataclass(frozen=True)
class Breakdown:
    """Errors of groups, in their order.

    names, counts: what each is and how much it holds [n_groups]; error, guess: its MAE and that of the simplest guess
    [n_groups], NaN where nothing is in it.
    """

    names: list[str]
    counts: Array
    error: Array
    guess: Array


def force_errors(each: PredictionSet) -> tuple[Array, Array]:
    """The mean over the components of each free atom of the absolute error, and of the true force [n_free]; eV/A."""
    assert each.forces is not None, "needs forces"
    assert each.forces_true is not None, "needs labels"
    free = ~each.fixed
    true = each.forces_true[free].astype(float)
    return np.abs(each.forces[free] - true).mean(axis=1), np.abs(true).mean(axis=1)


def energy_errors(each: PredictionSet) -> tuple[Array, Array]:
    """The absolute error of each energy, and that of always predicting the median of the set [n]; eV."""
    assert each.energy_true is not None, "needs labels"
    true = each.energy_true.astype(float)
    return np.abs(each.energy - true), np.abs(np.median(true) - true)


def grouped(group: Array, names: list[str], error: Array, guess: Array) -> Breakdown:
    """Means by group; group: [n] the place in `names` that each belongs to."""
    counts = np.bincount(group, minlength=len(names))
    with np.errstate(invalid="ignore"):
        means = [np.bincount(group, values, minlength=len(names)) / counts for values in (error, guess)]
    return Breakdown(names, counts, means[0], means[1])


def by_magnitude(each: PredictionSet) -> Breakdown:
    """Force errors by the length of the true force of an atom."""
    assert each.forces_true is not None, "needs labels"
    length = np.linalg.norm(each.forces_true[~each.fixed].astype(float), axis=1)
    edges = FORCE_EDGES
    names = [f"{low:g}-{high:g}" for low, high in pairwise(edges[:-1])] + [f">{edges[-2]:g}"]
    return grouped(np.digitize(length, edges[1:-1]), names, *force_errors(each))


def size_bins(sizes: Array, most: int = 6) -> Array:
    """Edges that divide numbers of atoms into at most `most` groups of similar weight, lowest first, last exclusive."""
    inner = np.unique(np.quantile(sizes, np.linspace(0, 1, most + 1)[1:-1]).astype(int) + 1)
    return np.concatenate(
        [[sizes.min()], inner[(inner > sizes.min()) & (inner <= sizes.max())], [sizes.max() + 1]]
    )


def by_size(each: PredictionSet, edges: Array, forces: bool) -> Breakdown:
    """Errors by the number of atoms of a system; edges: of `size_bins`."""
    names = [f"{low}-{high - 1}" if high - 1 > low else f"{low}" for low, high in pairwise(edges)]
    group = np.digitize(each.natoms, edges[1:-1])
    if not forces:
        return grouped(group, names, *energy_errors(each))
    return grouped(_of_free_atoms(each, group), names, *force_errors(each))


def adsorbates(each: PredictionSet) -> list[str]:
    """The adsorbate of each system as a formula, `none` where no atom has its tag (or tags are not known)."""
    if each.tags is None:
        return ["none"] * len(each)
    cuts = np.cumsum(each.natoms)[:-1]
    found = []
    for numbers, tags in zip(np.split(each.atomic_numbers, cuts), np.split(each.tags, cuts), strict=True):
        chosen = numbers[tags == ADSORBATE_TAG]
        formula = Formula.from_list(Symbols(chosen.astype(int))).format("hill") if len(chosen) else ""
        found.append(f"*{formula}" if formula else "none")
    return found


def by_adsorbate(each: PredictionSet, names: list[str], forces: bool) -> Breakdown:
    """Errors by adsorbate; names: those to show, in their order."""
    place = {name: number for number, name in enumerate(names)}
    group = np.array([place[name] for name in adsorbates(each)])
    if not forces:
        return grouped(group, names, *energy_errors(each))
    return grouped(_of_free_atoms(each, group), names, *force_errors(each))


@dataclass(frozen=True)
class Calibration:
    """How the spread of an ensemble compares with its error, in bins of equally many predictions.

    spread, error: the root mean square of each in a bin [n_bins]; ratio: root mean square error over root mean square
    spread of all (1: calibrated, above: overconfident); rank: Spearman's correlation of spread and error.
    """

    spread: Array
    error: Array
    ratio: float
    rank: float


def calibration(spread: Array, error: Array, n_bins: int = 12) -> Calibration | None:
    """Compare spreads [n] with absolute errors [n]; None where there is too little, or no spread at all."""
    from scipy.stats import spearmanr

    if len(spread) < 2 or not spread.any():
        return None
    order = np.argsort(spread, kind="stable")
    bins = [each for each in np.array_split(order, min(n_bins, max(1, len(order) // 3))) if len(each)]

    def rms(values: Array) -> float:
        return float(np.sqrt(np.mean(np.square(values.astype(float)))))

    rank = (
        float(spearmanr(spread, error).statistic)
        if np.ptp(error) > 0 and np.ptp(spread) > 0
        else float("nan")
    )
    return Calibration(
        np.array([rms(spread[each]) for each in bins]),
        np.array([rms(error[each]) for each in bins]),
        rms(error) / rms(spread),
        rank,
    )


def calibration_of_energies(each: PredictionSet) -> Calibration | None:
    """That of the energies of an ensemble."""
    return None if each.energy_spread is None else calibration(each.energy_spread, energy_errors(each)[0])


def calibration_of_forces(each: PredictionSet) -> Calibration | None:
    """That of the force vectors of the free atoms: the length of the error against the spread."""
    if each.forces_spread is None or each.forces is None or each.forces_true is None:
        return None
    free = ~each.fixed
    error = np.linalg.norm((each.forces - each.forces_true)[free].astype(float), axis=1)
    return calibration(each.forces_spread[free], error)


def _of_free_atoms(each: PredictionSet, group: Array) -> Array:
    return np.asarray(np.repeat(group, each.natoms)[~each.fixed])
