"""What a system costs, as a linear function of its row in the side table, and budgets of that cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ocpgem.data.dataset import Dataset
from ocpgem.data.edge_store import edges_of
from ocpgem.data.sizes import SizeTable
from ocpgem.errors import DataError, RequestError
from ocpgem.graph.spec import GraphSpec

Ints = NDArray[np.integer]
SAMPLE = 500
DIGITS = 6


@dataclass(frozen=True)
class Cost:
    """So many units a system, an atom and an edge of the side table; whole numbers, so that sums are exact.

    error: by how much, relative to the estimate, a system of the sample that the numbers were fitted on costs more
    than they say, at most.
    """

    unit: str
    per_system: float = 0.0
    per_atom: float = 0.0
    per_edge: float = 0.0
    error: float = 0.0

    def of(self, rows: SizeTable) -> Ints:
        """The cost of each system."""
        total = self.per_atom * rows["n_atoms"] + self.per_edge * rows["n_edges"] + self.per_system
        return np.rint(total).astype(np.int64)

    def at_most(self, rows: SizeTable) -> Ints:
        """What each system may cost if the estimate is as wrong as it was anywhere in the sample."""
        return np.ceil(self.of(rows) * (1 + self.error)).astype(np.int64)


SYSTEMS = Cost("systems", per_system=1)
ATOMS = Cost("atoms", per_atom=1)
STORED_EDGES = Cost("edges", per_edge=1)
"""Edges of the graph that the side table counts (6 A, nearest 50), whatever graph a model builds."""


@dataclass(frozen=True)
class Budget:
    """So much of a cost; raises RequestError unless it is at least 1."""

    cost: Cost
    amount: int

    def __post_init__(self) -> None:
        if self.amount < 1:
            raise RequestError(f"the batch size is {self.amount} {self.cost.unit}; it must be at least 1")


@dataclass(frozen=True)
class Batching:
    """How systems become batches.

    size: what a training step holds over all ranks, or an evaluation batch of one rank. It is filled up to that; a
    system that exceeds it alone is a step or batch of its own.
    limit: what a rank computes at once; a larger share is divided into micro-batches, and a system that exceeds it
    alone is refused. Estimates count with their error.
    work: what is divided evenly over ranks.
    """

    size: Budget
    limit: Budget | None = None
    work: Cost = STORED_EDGES


def systems_per_batch(n_systems: int) -> Batching:
    """Batches of a fixed number of systems."""
    return Batching(Budget(SYSTEMS, n_systems))


def fit_edge_cost(dataset: Dataset, graph: GraphSpec, sample: int = SAMPLE) -> Cost:
    """The edges of a model's main graph, from atoms and stored edges.

    Fitted to the edges counted in up to `sample` records spread evenly over the data set; records that cannot be used
    are left out. Raises DataError if none can.
    """
    places = np.unique(np.linspace(0, len(dataset) - 1, min(sample, len(dataset))).astype(np.int64))
    counted, used = [], []
    for place in places.tolist():
        try:
            system = dataset[place]
            counted.append(max(1, len(edges_of(system, graph).main)))
        except DataError as error:
            failure = error
            continue
        used.append(place)
    if not used:
        raise DataError(
            f"{dataset.path}: edges cannot be counted in any of {len(places)} records ({failure})"
        )
    return fit_cost("edges", dataset.rows(np.array(used)), np.array(counted, dtype=np.float64))


def fit_cost(unit: str, rows: SizeTable, measured: NDArray[np.float64]) -> Cost:
    """The cost that is nearest to what was measured of some systems, per atom; no coefficient is negative.

    measured: [n], of the systems in `rows`, all positive.
    """
    edges_per_atom = rows["n_edges"] / rows["n_atoms"]
    columns = np.stack([np.ones(len(rows)), edges_per_atom / max(edges_per_atom.mean(), 1e-300)], axis=1)
    coefficients = nnls(columns, measured / rows["n_atoms"])[0]
    coefficients[1] /= max(edges_per_atom.mean(), 1e-300)
    per_atom, per_edge = (float(f"{value:.{DIGITS}g}") for value in coefficients)
    cost = Cost(unit, per_atom=per_atom, per_edge=per_edge)
    worst = float((measured / np.maximum(cost.of(rows), 1)).max()) - 1
    return Cost(unit, per_atom=per_atom, per_edge=per_edge, error=max(0.0, float(f"{worst:.{DIGITS}g}")))
