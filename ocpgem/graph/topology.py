"""The integer structure a model asks for: built per system in the workers, concatenated per batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocpgem.errors import DataError, RequestError
from ocpgem.graph.edges import Edges, SymmetricEdges, stable_order
from ocpgem.graph.exchange import Ends, Exchange, OnDevice, Part
from ocpgem.graph.pairs import Pairs, QuadrupletPairs, common_edges, quadruplet_pairs
from ocpgem.graph.spec import GraphSpec
from ocpgem.graph.system_edges import SystemEdges, system_edges

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EdgeSet(OnDevice):
    """Directed edges of a batch, sorted by target.

    edge_index: [2, E] source and target; cell_offsets: [E, 3] integers, lattice vectors added to the source,
    so the vector from source to target is `pos[target] - (pos[source] + cell_offsets @ cell)`; edge_ptr:
    [N + 1], the edges of target t are edge_ptr[t]:edge_ptr[t + 1]; slot: [E] place in a table of
    N * max_degree rows; n_edges_per_system: [B]; by_source: [E] edges ordered by source, of which those of
    source s are by_source[source_ptr[s]:source_ptr[s + 1]]; source_ptr: [N + 1]. All int64. ends: what the atom
    numbers mean where the batch is divided over ranks; None where they are those of the batch.
    """

    edge_index: Tensor
    cell_offsets: Tensor
    edge_ptr: Tensor
    slot: Tensor
    n_edges_per_system: Tensor
    max_degree: int
    by_source: Tensor
    source_ptr: Tensor
    ends: Ends | None = None

    @property
    def n_edges(self) -> int:
        """Number of edges in the batch."""
        return self.edge_index.shape[1]


@dataclass(frozen=True)
class SymmetricEdgeSet(EdgeSet):
    """Edges closed under reversal; reverse_edge: [E]. by_source is reverse_edge, source_ptr is edge_ptr.

    Where the batch is divided over ranks, `reverse_edge` are places in the rows that `back` brings, and neither holds.
    """

    reverse_edge: Tensor = field(kw_only=True)
    back: Exchange | None = None


@dataclass(frozen=True)
class CommonEdges(OnDevice):
    """Edges that the main and the atom_edge graph share: same image of the source, same target.

    main: [M] positions in main, ascending; atom_edge: [M] positions in atom_edge.
    """

    main: Tensor
    atom_edge: Tensor


@dataclass(frozen=True)
class TripletTable(OnDevice):
    """Pairs of a main edge and a middle edge of quadruplets, sorted by middle edge, then main edge.

    main_edge, middle_edge: [K]; slot: [K] row in a table of n_middle * max_per_middle rows; by_main: [K] rows
    ordered by main edge, of which those of main edge e are by_main[main_ptr[e]:main_ptr[e + 1]]; main_ptr:
    [E + 1]; main_slot: [K] row in a table of n_main * max_per_main rows.
    """

    main_edge: Tensor
    middle_edge: Tensor
    slot: Tensor
    max_per_middle: int
    by_main: Tensor
    main_ptr: Tensor
    main_slot: Tensor
    max_per_main: int


@dataclass(frozen=True)
class FarEdges(OnDevice):
    """Main edges that a rank needs but that do not all end at its atoms; atom numbers are those of the batch."""

    edges: EdgeSet
    exchange: Exchange


@dataclass(frozen=True)
class Quadruplets(OnDevice):
    """Quadruplets d -> b -> a <- c, never enumerated: each row of `inner` meets each of `outer` with its middle.

    inner: main edges d -> b, d not the same image as a; outer: main edges c -> a, c not the same image as b;
    excluded_outer, excluded_inner: [X] rows of either (excluded_outer ascending) whose combination would join
    c and d of the same image. far: where the batch is divided over ranks, the edges that the rows of `inner` number.
    Source: gemnet.md 1.12.
    """

    inner: TripletTable
    outer: TripletTable
    excluded_outer: Tensor
    excluded_inner: Tensor
    far: FarEdges | None = None


@dataclass(frozen=True)
class Padding:
    """What is real in a batch that was filled up (`ocpgem.graph.buckets`): its first systems and atoms."""

    n_systems: int
    n_atoms: int


@dataclass(frozen=True)
class Topology(OnDevice):
    """All integer structure of a batch. batch: [N] system of each atom, int64.

    The graphs besides `main` are there if the model asks for them; common with atom_edge, quadruplets with
    quadruplet, which holds their middle edges b -> a. part: the atoms whose edges these are, where the batch is
    divided over ranks; `batch` is always that of all atoms. padding: where there are ghosts, which count everywhere.
    """

    main: SymmetricEdgeSet
    batch: Tensor
    n_systems: int
    atom_edge: EdgeSet | None = None
    common: CommonEdges | None = None
    quadruplet: EdgeSet | None = None
    quadruplets: Quadruplets | None = None
    atom_atom: EdgeSet | None = None
    part: Part | None = None
    padding: Padding | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the batch."""
        return self.batch.shape[0]


def concat(systems: Sequence[SystemEdges]) -> Topology:
    """The topology of a batch from the edges of its systems, in order, all made for the same spec."""
    if not systems:
        raise RequestError("a topology needs at least one system")
    n_atoms = np.array([system.n_atoms for system in systems])
    main, main_set = _symmetric([system.main for system in systems], n_atoms)
    graphs: dict[str, Any] = {}
    atom_edge = _directed([system.atom_edge for system in systems], n_atoms)
    if atom_edge is not None:
        joined, graphs["atom_edge"] = atom_edge
        graphs["common"] = CommonEdges(*(torch.from_numpy(places) for places in common_edges(main, joined)))
    quadruplet = _directed([system.quadruplet for system in systems], n_atoms)
    if quadruplet is not None:
        middle, graphs["quadruplet"] = quadruplet
        pairs = quadruplet_pairs(main, main_set.edge_ptr.numpy(), middle)
        graphs["quadruplets"] = _quadruplets(pairs, len(main))
    atom_atom = _directed([system.atom_atom for system in systems], n_atoms)
    if atom_atom is not None:
        graphs["atom_atom"] = atom_atom[1]
    batch = np.repeat(np.arange(len(systems)), n_atoms)
    return Topology(main=main_set, batch=torch.from_numpy(batch), n_systems=len(systems), **graphs)


def _symmetric(parts: Sequence[SymmetricEdges], n_atoms: Ints) -> tuple[SymmetricEdges, SymmetricEdgeSet]:
    edges, fields = _joined(parts, n_atoms)
    n_edges = fields["n_edges_per_system"].numpy()
    first_edge = np.repeat(np.cumsum(n_edges) - n_edges, n_edges)
    reverse = np.concatenate([part.reverse for part in parts]) + first_edge
    back = torch.from_numpy(reverse)
    edge_set = SymmetricEdgeSet(**fields, by_source=back, source_ptr=fields["edge_ptr"], reverse_edge=back)
    return SymmetricEdges(edges.source, edges.target, edges.offset, reverse), edge_set


def _directed(parts: Sequence[Edges | None], n_atoms: Ints) -> tuple[Edges, EdgeSet] | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    edges, fields = _joined(present, n_atoms)
    return edges, EdgeSet(
        **fields,
        by_source=torch.from_numpy(stable_order(edges.source)),
        source_ptr=torch.from_numpy(pointers(edges.source, int(n_atoms.sum()))),
    )


def _joined(parts: Sequence[Edges], n_atoms: Ints) -> tuple[Edges, dict[str, Any]]:
    """The edges of all systems, numbered through, and those fields of their set that follow from the targets."""
    n_edges = np.array([len(part) for part in parts])
    first_atom = np.repeat(np.cumsum(n_atoms) - n_atoms, n_edges)
    edge_index = np.empty((2, len(first_atom)), dtype=np.int64)
    source, target = edge_index
    np.add(np.concatenate([part.source for part in parts]), first_atom, out=source)
    np.add(np.concatenate([part.target for part in parts]), first_atom, out=target)
    offset = np.concatenate([part.offset for part in parts])
    edge_ptr = pointers(target, int(n_atoms.sum()))
    slot, max_degree = slots(target, edge_ptr)
    return Edges(source, target, offset), {
        "edge_index": torch.from_numpy(edge_index),
        "cell_offsets": torch.from_numpy(offset),
        "edge_ptr": torch.from_numpy(edge_ptr),
        "slot": torch.from_numpy(slot),
        "n_edges_per_system": torch.from_numpy(n_edges),
        "max_degree": max_degree,
    }


def _quadruplets(pairs: QuadrupletPairs, n_main: int) -> Quadruplets:
    return Quadruplets(
        inner=triplet_table(pairs.inner, n_main),
        outer=triplet_table(pairs.outer, n_main),
        excluded_outer=torch.from_numpy(pairs.excluded_outer),
        excluded_inner=torch.from_numpy(pairs.excluded_inner),
    )


def triplet_table(
    pairs: Pairs, n_main: int, widths: tuple[int | None, int | None] = (None, None)
) -> TripletTable:
    """The table of some pairs, and its order by main edge; n_main: how many main edges there are.

    widths: max_per_middle and max_per_main, where they are to be larger than they need to be.
    """
    slot, max_per_middle = slots(pairs.middle_edge, pairs.middle_ptr, widths[0])
    by_main = stable_order(pairs.main_edge)
    main_ptr = pointers(pairs.main_edge, n_main)
    ordered_slot, max_per_main = slots(pairs.main_edge.take(by_main), main_ptr, widths[1])
    main_slot = np.empty_like(ordered_slot)
    main_slot[by_main] = ordered_slot
    return TripletTable(
        main_edge=torch.from_numpy(pairs.main_edge),
        middle_edge=torch.from_numpy(pairs.middle_edge),
        slot=torch.from_numpy(slot),
        max_per_middle=max_per_middle,
        by_main=torch.from_numpy(by_main),
        main_ptr=torch.from_numpy(main_ptr),
        main_slot=torch.from_numpy(main_slot),
        max_per_main=max_per_main,
    )


def pointers(group: Ints, n_groups: int) -> Ints:
    """Where the rows of each group start, once the rows are ordered by group."""
    return np.concatenate(([0], np.cumsum(np.bincount(group, minlength=n_groups))))


def slots(group: Ints, ptr: Ints, width: int | None = None) -> tuple[Ints, int]:
    """Place of each row in a table with equally many rows a group, and that number; rows ordered by group.

    width: that number, where it is to be larger than the largest group.
    """
    most = int(np.diff(ptr).max(initial=0)) if width is None else width
    return group * most + np.arange(len(group)) - ptr.take(group), most


def build_topology(
    pos: Tensor,
    cell: Tensor,
    pbc: Tensor,
    n_atoms: Tensor,
    spec: GraphSpec,
    names: Sequence[str] | None = None,
    tags: Tensor | None = None,
) -> Topology:
    """The topology of a batch on the CPU.

    pos: [N, 3] in A, systems one after another; cell: [B, 3, 3]; pbc: [B, 3] bool; n_atoms: [B]; names: [B],
    how errors call the systems; tags: [N], needed where the spec selects by them. Raises DataError naming the
    system (by position in the batch without `names`) that `system_edges` refuses.
    """
    counts = n_atoms.tolist()
    if sum(counts) != len(pos):
        raise DataError(f"n_atoms adds up to {sum(counts)}, but the batch has {len(pos)} positions")
    if not len(counts) == len(cell) == len(pbc):
        raise DataError(
            f"the batch has {len(counts)} systems by n_atoms, {len(cell)} cells and {len(pbc)} rows of pbc"
        )
    if tags is not None and len(tags) != len(pos):
        raise DataError(f"the batch has {len(tags)} tags, but {len(pos)} positions")
    positions, cells, flags = (tensor.detach().cpu().numpy() for tensor in (pos, cell, pbc))
    labels = None if tags is None else tags.detach().cpu().numpy()
    systems = []
    first = 0
    for index, count in enumerate(counts):
        mine = slice(first, first + count)
        try:
            own_tags = None if labels is None else labels[mine]
            systems.append(system_edges(positions[mine], cells[index], flags[index], spec, own_tags))
        except DataError as error:
            name = names[index] if names else f"system {index} of the batch"
            raise DataError(f"{name}: {error}") from None
        first += count
    return concat(systems)
