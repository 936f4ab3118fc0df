"""How many edges of a model's own graph the systems of a data set have, the same estimate on every rank."""

from ocpgem.data.cost import Cost, fit_edge_cost
from ocpgem.data.dataset import Dataset
from ocpgem.errors import OcpgemError
from ocpgem.graph.spec import GraphSpec
from ocpgem.parallel import group


def agreed_edge_cost(dataset: Dataset, graph: GraphSpec) -> Cost:
    """`fit_edge_cost` on rank 0, for all: plans must not differ by a rounding error. Every rank calls it."""
    cost, error = None, None
    if group.is_main():
        try:
            cost = fit_edge_cost(dataset, graph)
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    agreed = group.broadcast_object(cost)
    assert agreed is not None
    return agreed
