"""How the batches of a run are made: the budgets of its configuration in units of its model's costs."""

import json
from dataclasses import asdict, dataclass

from ocpgem.data.cost import ATOMS, SYSTEMS, Batching, Budget, Cost
from ocpgem.data.dataset import Dataset
from ocpgem.errors import RequestError
from ocpgem.evaluate.edge_cost import agreed_edge_cost
from ocpgem.files import write_text
from ocpgem.graph.spec import GraphSpec
from ocpgem.parallel import group
from ocpgem.train.config import BatchBudget, DataSection
from ocpgem.train.run_directory import RunDirectory

COSTS_FILE = "costs.json"


@dataclass(frozen=True)
class Costs:
    """What the systems of a run cost.

    edges: of the model's main graph.
    """

    edges: Cost


def prepare_costs(run: RunDirectory, train_set: Dataset, graph: GraphSpec) -> Costs:
    """The costs of a run, estimated once and kept in its directory, the same on every rank. Every rank calls it."""
    file = run.path / COSTS_FILE
    found, error = None, None
    if group.is_main() and file.is_file():
        try:
            found = Costs(edges=Cost(**json.loads(file.read_text())["edges"]))
        except (OSError, ValueError, KeyError, TypeError) as caught:
            error = RequestError(f"{file} cannot be read ({caught}); choose another --run-dir")
    group.raise_together(error)
    found = group.broadcast_object(found)
    if found is None:
        found = Costs(edges=agreed_edge_cost(train_set, graph))
        if group.is_main():
            write_text(file, json.dumps(asdict(found), indent=2) + "\n")
    return found


def train_batching(data: DataSection, costs: Costs) -> Batching:
    """The batches of training steps."""
    return _batching(data.batch_size, data, costs)


def eval_batching(data: DataSection, costs: Costs) -> Batching:
    """The batches of validation."""
    return _batching(data.eval_batch_size, data, costs)


def require_work_for_all(data: DataSection, batching: Batching, train_set: Dataset, world_size: int) -> None:
    """Raise RequestError if steps hold fewer systems than there are ranks."""
    n_systems = systems_per_step(batching, train_set)
    if n_systems < world_size:
        raise RequestError(
            f"data.batch_size is {batching.size.amount} {batching.size.cost.unit} over all ranks, about "
            f"{n_systems:.3g} systems, fewer than the {world_size} ranks; raise it or use fewer ranks"
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
    assert size.edges is not None
    return Budget(costs.edges, size.edges)
