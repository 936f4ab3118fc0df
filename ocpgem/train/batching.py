"""How the batches of a run are made: the budgets of its configuration in units of its model's costs."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ocpgem.data.cost import ATOMS, SYSTEMS, Batching, Budget, Cost, fit_edge_cost
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import Recipe
from ocpgem.errors import OcpgemError, RequestError
from ocpgem.files import write_text
from ocpgem.graph.spec import GraphSpec
from ocpgem.models.potential import Potential
from ocpgem.parallel import group
from ocpgem.train.activation_memory import fit_memory_cost
from ocpgem.train.config import BatchBudget, DataSection, TrainConfig
from ocpgem.train.run_directory import RunDirectory

COSTS_FILE = "costs.json"
BALANCED = 1.05
"""The slowest rank's work over the mean, up to which ranks count as balanced."""
_LOOKED_AT = 20_000
"""Systems among which the largest is looked for; of more, so many evenly spaced ones."""


@dataclass(frozen=True)
class Costs:
    """What the systems of a run cost.

    edges: of the model's main graph; memory: bytes kept for the gradient, where a budget is given in it.
    """

    edges: Cost
    memory: Cost | None = None


def prepare_costs(run: RunDirectory, potential: Potential, recipe: Recipe, data: DataSection) -> Costs:
    """The costs of a run, estimated once and kept in its directory, the same on every rank. Every rank calls it."""
    file = run.path / COSTS_FILE
    found, error = None, None
    if group.is_main():  # one rank, because plans must not differ by a rounding error
        try:
            found = _found_costs(file, potential, recipe, data)
            write_text(file, json.dumps(asdict(found), indent=2) + "\n")
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    agreed = group.broadcast_object(found)
    assert agreed is not None
    return agreed


def keep_edge_cost(folder: Path | None, train_set: Dataset, graph: GraphSpec) -> Cost:
    """The cost in edges of a run that has none yet, kept for `prepare_costs`. Only rank 0 calls it.

    folder: the run directory; None keeps nothing.
    """
    costs = Costs(fit_edge_cost(train_set, graph))
    if folder is not None:
        write_text(folder / COSTS_FILE, json.dumps(asdict(costs), indent=2) + "\n")
    return costs.edges


def _found_costs(file: Path, potential: Potential, recipe: Recipe, data: DataSection) -> Costs:
    """What the file says, and what it does not say yet."""
    known = _read_costs(file) if file.is_file() else None
    edges = fit_edge_cost(recipe.dataset, recipe.graph) if known is None else known.edges
    if known is not None and known.memory is not None:
        return known
    sizes = (data.batch_size, data.eval_batch_size)
    if any(isinstance(size, BatchBudget) and size.memory_gb is not None for size in sizes):
        return Costs(edges, fit_memory_cost(potential, recipe))
    return Costs(edges)


def _read_costs(file: Path) -> Costs:
    try:
        values = {name: Cost(**cost) for name, cost in json.loads(file.read_text()).items() if cost}
        return Costs(**values)
    except (OSError, ValueError, TypeError, AttributeError) as caught:
        raise RequestError(f"{file} cannot be read ({caught}); choose another --run-dir") from None


def train_batching(data: DataSection, costs: Costs) -> Batching:
    """The batches of training steps."""
    return _batching(data.batch_size, data, costs)


def eval_batching(data: DataSection, costs: Costs) -> Batching:
    """The batches of validation."""
    return _batching(data.eval_batch_size, data, costs)


def require_systems_for_all(config: TrainConfig, n_ranks: int) -> None:
    """Raise RequestError if a batch of so many systems has fewer than there are ranks; budgets are left out."""
    size, shared_by = config.data.batch_size, config.parallel.graph
    n_groups = n_ranks // shared_by
    if isinstance(size, int) and size < n_groups:
        those = (
            f"{n_ranks} ranks" if shared_by == 1 else f"{n_groups} groups of parallel.graph={shared_by} ranks"
        )
        raise RequestError(
            f"data.batch_size is {size} systems over all ranks, fewer than the {those}; raise it or use fewer ranks"
        )


def require_work_for_all(data: DataSection, batching: Batching, train_set: Dataset, world_size: int) -> None:
    """Raise RequestError if steps hold fewer systems than there are ranks."""
    n_systems = systems_per_step(batching, train_set)
    if n_systems < world_size:
        raise RequestError(
            f"data.batch_size is {batching.size.amount} {batching.size.cost.unit} over all ranks, about "
            f"{n_systems:.3g} systems, fewer than the {world_size} ranks; raise it or use fewer ranks"
        )


def unbalanced(batching: Batching, train_set: Dataset, world_size: int) -> str | None:
    """What to tell a user whose steps cannot be balanced, since one system is more than a rank's share; else None.

    No division of a step makes the slowest rank faster than its largest system. A run may want that all the same
    (the content of its steps does not depend on the number of ranks), so it is said and not refused.
    """
    places = np.unique(np.linspace(0, len(train_set) - 1, min(_LOOKED_AT, len(train_set))).astype(np.int64))
    rows = train_set.rows(places)
    work, size = batching.work.of(rows), batching.size.cost.of(rows)
    n_systems = min(batching.size.amount / max(1e-9, float(size.mean())), len(train_set))
    share, largest = n_systems * float(work.mean()) / world_size, int(work.max())
    if world_size == 1 or largest <= BALANCED * share:
        return None
    needed = largest / (BALANCED * share)
    # 2 %: steps are filled up to the budget and not beyond it, and their systems differ from the mean
    advice = (
        f"data.batch_size of {math.ceil(1.02 * needed * batching.size.amount):,} {batching.size.cost.unit}"
    )
    return (
        f"ranks cannot be balanced in every step: the largest system has {largest:,} {batching.work.unit}, "
        f"{largest / share - 1:.0%} more than a rank's share of {share:,.0f}; they can with a {advice}, "
        + (
            f"or on {int(world_size / (1.02 * needed))} rank(s)"
            if world_size > 1.02 * needed
            else "or on 1 rank"
        )
    )


def systems_per_step(batching: Batching, train_set: Dataset) -> float:
    """About how many systems a step holds, from the first ones of the data set."""
    _, rows = next(train_set.rows_in_order(at_once=10_000))
    return min(batching.size.amount / max(1e-9, float(batching.size.cost.of(rows).mean())), len(train_set))


def _batching(size: int | BatchBudget, data: DataSection, costs: Costs) -> Batching:
    limit = None if data.max_edges is None else Budget(costs.edges, data.max_edges)
    return Batching(_budget(size, costs), limit, work=costs.edges)


def _budget(size: int | BatchBudget, costs: Costs) -> Budget:
    if isinstance(size, int):
        return Budget(SYSTEMS, size)
    if size.atoms is not None:
        return Budget(ATOMS, size.atoms)
    if size.edges is not None:
        return Budget(costs.edges, size.edges)
    assert size.memory_gb is not None
    assert costs.memory is not None
    return Budget(costs.memory, round(size.memory_gb * 1e9))
