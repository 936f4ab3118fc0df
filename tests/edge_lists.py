"""Edge sets and quadruplets of a topology written out row by row, for comparison with other lists."""

import numpy as np
from numpy.typing import NDArray

from ocpgem.graph.topology import EdgeSet, Topology

Ints = NDArray[np.int64]


def edge_rows(edges: EdgeSet) -> Ints:
    """[E, 5]: source, target, offset."""
    return np.column_stack((*edges.edge_index.numpy(), edges.cell_offsets.numpy()))


def unique_rows(table: Ints) -> set[tuple[int, ...]]:
    """The rows as a set; asserts that none is there twice."""
    found = {tuple(row) for row in table.tolist()}
    assert len(found) == len(table), "a row is listed twice"
    return found


def quadruplet_members(topology: Topology) -> Ints:
    """[n_quadruplets, 3]: main edge c -> a, middle edge b -> a, main edge d -> b, from the two tables."""
    quadruplets = topology.quadruplets
    assert quadruplets is not None
    inner, outer = quadruplets.inner, quadruplets.outer
    excluded = set(zip(quadruplets.excluded_outer.tolist(), quadruplets.excluded_inner.tolist(), strict=True))
    assert len(excluded) == len(quadruplets.excluded_outer), "an exclusion is listed twice"
    rows_of: dict[int, list[int]] = {}
    for row, middle in enumerate(inner.middle_edge.tolist()):
        rows_of.setdefault(middle, []).append(row)
    inner_main = inner.main_edge.tolist()
    members, met = [], set()
    for row, (main, middle) in enumerate(
        zip(outer.main_edge.tolist(), outer.middle_edge.tolist(), strict=True)
    ):
        for other in rows_of.get(middle, []):
            if (row, other) in excluded:
                met.add((row, other))
            else:
                members.append((main, middle, inner_main[other]))
    assert met == excluded, "an exclusion joins rows of different middle edges"
    return np.array(members, dtype=np.int64).reshape(-1, 3)


def quadruplet_rows(topology: Topology) -> Ints:
    """[n_quadruplets, 13]: a, then b, c, d each with the offset of its image against a."""
    assert topology.quadruplet is not None
    main, middle = edge_rows(topology.main), edge_rows(topology.quadruplet)
    to_a, via, to_b = quadruplet_members(topology).T
    d = main[to_b][:, [0, 2, 3, 4]]
    d[:, 1:] += middle[via][:, 2:]
    return np.column_stack((main[to_a][:, 1], middle[via][:, [0, 2, 3, 4]], main[to_a][:, [0, 2, 3, 4]], d))
