"""How many triplets and quadruplets read each row that is summed, which fits of the scale factors of sums ask for.

The reference of such a factor has one row for each triplet or quadruplet (gemnet.md 3.4), which exist nowhere.
"""

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet, Quadruplets


def triplets_per_edge(edges: EdgeSet) -> Tensor:
    """[n_edges], the other edges with the same target."""
    return edges.edge_ptr.diff()[edges.edge_index[1]] - 1


def mixed_triplets_per_edge(incoming: EdgeSet, outgoing: EdgeSet, common: Tensor) -> Tensor:
    """[n_incoming], the outgoing edges with the same target; without itself where both have an edge (`common`)."""
    times = outgoing.edge_ptr.diff()[incoming.edge_index[1]]
    return times.index_add(0, common, torch.ones_like(common), alpha=-1)


def quadruplets_per_row(tables: Quadruplets, n_middle: int) -> Tensor:
    """[n_inner], the rows of `outer` with the same middle edge, without those that are excluded."""
    per_middle = torch.bincount(tables.outer.middle_edge, minlength=n_middle)
    excluded = torch.bincount(tables.excluded_inner, minlength=len(tables.inner.middle_edge))
    return per_middle[tables.inner.middle_edge] - excluded
