"""Divides the topology of a batch over the ranks of a graph group: consecutive atoms with the edges that end at them.

With the angular sums as densities (spec/density.md A), everything that triplets need of an edge c -> a is at its
target a, so only three things cross ranks: embeddings of source atoms, the few channels of a reverse edge that an
update reads, and the few channels of edges d -> b that quadruplets read. Edge embeddings never do.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocpgem.graph.edges import stable_order
from ocpgem.graph.exchange import Ends, Exchange, Part
from ocpgem.graph.pairs import Pairs
from ocpgem.graph.topology import (
    CommonEdges,
    EdgeSet,
    FarEdges,
    Quadruplets,
    SymmetricEdgeSet,
    Topology,
    TripletTable,
    pointers,
    slots,
    triplet_table,
)
from ocpgem.parallel.graph import GraphGroup

Ints = NDArray[np.int64]
_SMALL_EDGE = 0.02
"""What an edge of another graph than the main one costs, in main edges: about 20 channels against 1,000."""


def partition(topology: Topology, group: GraphGroup | None) -> Topology:
    """The part of a batch (on the CPU) that a rank of the group computes; the batch itself without a group."""
    if group is None:
        return topology
    cuts = cut_atoms(topology, group.size)
    first, stop = cuts[group.rank : group.rank + 2].tolist()
    part = Part(first, stop - first, group)
    main = _symmetric_part(topology.main, cuts, part, topology.batch)
    atom_edge, atom_atom = (
        None if edges is None else EdgeSet(**_fields(edges, cuts, part, topology.batch))
        for edges in (topology.atom_edge, topology.atom_atom)
    )
    common = None
    if topology.common is not None and topology.atom_edge is not None:
        common = _common_part(topology.common, topology.main, topology.atom_edge, part)
    quadruplet, quadruplets = None, None
    if topology.quadruplet is not None and topology.quadruplets is not None:
        quadruplet = EdgeSet(**_fields(topology.quadruplet, cuts, part, topology.batch))
        quadruplets = _quadruplets_part(topology, cuts, part)
    return Topology(
        main, topology.batch, topology.n_systems, atom_edge, common, quadruplet, quadruplets, atom_atom, part
    )


def cut_atoms(topology: Topology, n_parts: int) -> Ints:
    """Where the atoms of each rank start, [n_parts + 1]: consecutive atoms with equal shares of the edges' cost."""
    cost = topology.main.edge_ptr.diff().double()
    for edges in (topology.atom_edge, topology.quadruplet, topology.atom_atom):
        if edges is not None:
            cost = cost + _SMALL_EDGE * edges.edge_ptr.diff()
    total = np.concatenate(([0.0], np.cumsum(cost.numpy())))
    wanted = total[-1] * np.arange(1, n_parts) / n_parts
    # The nearer of the two atoms between which the share lies.
    above = np.searchsorted(total, wanted).clip(1, len(total) - 1)
    inner = above - (wanted - total[above - 1] < total[above] - wanted)
    return np.concatenate(([0], np.maximum.accumulate(inner), [len(total) - 1])).astype(np.int64)


def _exchange(needed: Sequence[Ints], bounds: Ints, part: Part) -> Exchange:
    """needed: for each rank the ascending places of the rows it needs; rank r owns bounds[r]:bounds[r + 1]."""
    rank = part.group.rank
    sent = []
    for rows in needed:
        begin, end = np.searchsorted(rows, bounds[rank : rank + 2])
        sent.append(rows[begin:end] - bounds[rank])
    send = np.concatenate(sent)
    received = np.diff(np.searchsorted(needed[rank], bounds))
    return Exchange(
        rows=_tensor(needed[rank]),
        send=_tensor(send),
        by_row=_tensor(stable_order(send)),
        row_ptr=_tensor(pointers(send, int(bounds[rank + 1] - bounds[rank]))),
        send_counts=tuple(len(rows) for rows in sent),
        receive_counts=tuple(received.tolist()),
        group=part.group,
    )


def _fields(edges: EdgeSet, cuts: Ints, part: Part, batch: Tensor) -> dict[str, Any]:
    """The fields of the set of edges that end at the atoms of a part."""
    bounds = edges.edge_ptr.numpy()[cuts]
    source = edges.edge_index[0].numpy()
    needed = [np.unique(source[bounds[r] : bounds[r + 1]]) for r in range(part.group.size)]
    begin, end = bounds[part.group.rank : part.group.rank + 2].tolist()
    atoms = needed[part.group.rank]
    local_source = np.searchsorted(atoms, source[begin:end])
    local_target = edges.edge_index[1, begin:end].numpy() - part.first
    edge_ptr = edges.edge_ptr.numpy()[part.first : part.first + part.n_atoms + 1] - begin
    slot, max_degree = slots(local_target, edge_ptr)
    systems = batch[edges.edge_index[1, begin:end]]
    return {
        "edge_index": _tensor(np.stack([local_source, local_target])),
        "cell_offsets": edges.cell_offsets[begin:end],
        "edge_ptr": _tensor(edge_ptr),
        "slot": _tensor(slot),
        "n_edges_per_system": torch.bincount(systems, minlength=len(edges.n_edges_per_system)),
        "max_degree": max_degree,
        "by_source": _tensor(stable_order(local_source)),
        "source_ptr": _tensor(pointers(local_source, len(atoms))),
        "ends": Ends(part, _exchange(needed, cuts, part)),
    }


def _symmetric_part(edges: SymmetricEdgeSet, cuts: Ints, part: Part, batch: Tensor) -> SymmetricEdgeSet:
    bounds = edges.edge_ptr.numpy()[cuts]
    reverse = edges.reverse_edge.numpy()
    of_ranks = [reverse[bounds[r] : bounds[r + 1]] for r in range(part.group.size)]
    needed = [np.sort(rows) for rows in of_ranks]
    rank = part.group.rank
    return SymmetricEdgeSet(
        **_fields(edges, cuts, part, batch),
        reverse_edge=_tensor(np.searchsorted(needed[rank], of_ranks[rank])),
        back=_exchange(needed, bounds, part),
    )


def _range(edges: EdgeSet, part: Part) -> tuple[int, int]:
    begin, end = edges.edge_ptr[[part.first, part.first + part.n_atoms]].tolist()
    return begin, end


def _common_part(common: CommonEdges, main: EdgeSet, atom_edge: EdgeSet, part: Part) -> CommonEdges:
    begin, end = _range(main, part)
    low, high = torch.searchsorted(common.main, torch.tensor([begin, end])).tolist()
    first_other = _range(atom_edge, part)[0]
    return CommonEdges(common.main[low:high] - begin, common.atom_edge[low:high] - first_other)


def _quadruplets_part(topology: Topology, cuts: Ints, part: Part) -> Quadruplets:
    main, middle, tables = topology.main, topology.quadruplet, topology.quadruplets
    assert middle is not None
    assert tables is not None
    middle_bounds = middle.edge_ptr.numpy()[cuts]
    inner_rows = np.searchsorted(tables.inner.middle_edge.numpy(), middle_bounds)
    inner_edges = tables.inner.main_edge.numpy()
    needed = [np.unique(inner_edges[inner_rows[r] : inner_rows[r + 1]]) for r in range(part.group.size)]
    rank = part.group.rank
    begin, end = inner_rows[rank : rank + 2].tolist()
    outer_begin, outer_end = np.searchsorted(
        tables.outer.middle_edge.numpy(), middle_bounds[rank : rank + 2]
    ).tolist()
    first_main, end_main = _range(main, part)
    first_middle, n_middle = middle_bounds[rank], middle_bounds[rank + 1] - middle_bounds[rank]
    low, high = np.searchsorted(tables.excluded_outer.numpy(), [outer_begin, outer_end]).tolist()
    far = needed[rank]
    return Quadruplets(
        inner=_rows(
            tables.inner,
            begin,
            end,
            np.searchsorted(far, inner_edges[begin:end]),
            (first_middle, n_middle),
            len(far),
        ),
        outer=_rows(
            tables.outer,
            outer_begin,
            outer_end,
            tables.outer.main_edge[outer_begin:outer_end].numpy() - first_main,
            (first_middle, n_middle),
            end_main - first_main,
        ),
        excluded_outer=tables.excluded_outer[low:high] - outer_begin,
        excluded_inner=tables.excluded_inner[low:high] - begin,
        far=FarEdges(_taken(main, far), _exchange(needed, main.edge_ptr.numpy()[cuts], part)),
    )


def _rows(
    table: TripletTable, begin: int, end: int, main_edge: Ints, middle: tuple[int, int], n_main: int
) -> TripletTable:
    """Rows begin:end of a table with new numbers of their main edges; middle: the first of theirs, and their number."""
    middle_edge = table.middle_edge[begin:end].numpy() - middle[0]
    pairs = Pairs(main_edge, middle_edge, pointers(middle_edge, int(middle[1])))
    return triplet_table(pairs, n_main)


def _taken(edges: EdgeSet, rows: Ints) -> EdgeSet:
    """Some edges of a set, by ascending place, with the atom numbers of the batch."""
    source, target = edges.edge_index.numpy()[:, rows]
    n_atoms = len(edges.edge_ptr) - 1
    edge_ptr = pointers(target, n_atoms)
    slot, max_degree = slots(target, edge_ptr)
    chosen = _tensor(rows)
    ends = edges.n_edges_per_system.cumsum(0)
    per_system = torch.bincount(torch.searchsorted(ends, chosen, right=True), minlength=len(ends))
    return EdgeSet(
        edge_index=_tensor(np.stack([source, target])),
        cell_offsets=edges.cell_offsets[chosen],
        edge_ptr=_tensor(edge_ptr),
        slot=_tensor(slot),
        n_edges_per_system=per_system,
        max_degree=max_degree,
        by_source=_tensor(stable_order(source)),
        source_ptr=_tensor(pointers(source, n_atoms)),
    )


def _tensor(values: Ints) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
