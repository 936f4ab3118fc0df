"""The integer structure a model asks for: built per system in the workers, concatenated per batch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ocpgem.errors import DataError, RequestError
from ocpgem.graph.edges import Edges, nearest_k, symmetrize
from ocpgem.graph.neighbors import neighbor_search


@dataclass(frozen=True)
class GraphSpec:
    """What a model needs of a graph: the cutoff in A and how many neighbours an atom keeps (0: all)."""

    cutoff: float
    max_neighbors: int

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < float("inf"):
            raise RequestError(f"the graph cutoff is {self.cutoff} A; it must be a positive number")
        if self.max_neighbors < 0:
            raise RequestError(f"max_neighbors is {self.max_neighbors}; it must be 0 (no limit) or more")


@dataclass(frozen=True, slots=True)
class SystemEdges:
    """The edge sets of one system in numpy: what a worker computes, a cache stores and `concat` joins."""

    n_atoms: int
    main: Edges


class _OnDevice:
    """Moves every tensor of a dataclass, and every dataclass in it."""

    def _map(self, how: Any) -> Self:
        moved = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = how(value)
            elif isinstance(value, _OnDevice):
                moved[field.name] = value._map(how)
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same structure on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same structure in page-locked memory, for copies that do not block."""
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True)
class EdgeSet(_OnDevice):
    """Symmetric edges of a batch, sorted by target.

    edge_index: [2, E] source and target; cell_offsets: [E, 3] integers, lattice vectors added to the source,
    so the vector from source to target is `pos[target] - (pos[source] + cell_offsets @ cell)`; reverse_edge:
    [E]; edge_ptr: [N + 1], the edges of target t are edge_ptr[t]:edge_ptr[t + 1]; slot: [E] place in a table
    of N * max_degree rows; n_edges_per_system: [B]. All int64.
    """

    edge_index: Tensor
    cell_offsets: Tensor
    reverse_edge: Tensor
    edge_ptr: Tensor
    slot: Tensor
    n_edges_per_system: Tensor
    max_degree: int

    @property
    def n_edges(self) -> int:
        """Number of edges in the batch."""
        return self.edge_index.shape[1]


@dataclass(frozen=True)
class Topology(_OnDevice):
    """All integer structure of a batch. batch: [N] system of each atom, int64."""

    main: EdgeSet
    batch: Tensor
    n_systems: int

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the batch."""
        return self.batch.shape[0]


def system_edges(pos: ArrayLike, cell: ArrayLike, pbc: ArrayLike, spec: GraphSpec) -> SystemEdges:
    """The edges of one system: search, nearest K (strict), symmetrise.

    pos: [n, 3] in A; cell: [3, 3] row vectors in A; pbc: [3] bool. Raises DataError for input the search
    cannot use, for a system without neighbours, and for one whose edges all vanish in symmetrisation.
    """
    found = neighbor_search(pos, cell, pbc, spec.cutoff)
    n_atoms = len(np.asarray(pos))
    if len(found.source) == 0:
        raise DataError(
            f"no two of its {n_atoms} atoms are within {spec.cutoff} A; "
            "check positions and cell, raise the cutoff or leave the system out"
        )
    keep = nearest_k(found.target, found.distance, n_atoms, spec.max_neighbors)
    kept = np.flatnonzero(keep)
    edges = symmetrize(found.source.take(kept), found.target.take(kept), found.offset.take(kept, axis=0))
    if len(edges) == 0:
        raise DataError(
            f"none of its edges is left after keeping {spec.max_neighbors} neighbours an atom; "
            "raise max_neighbors"
        )
    return SystemEdges(n_atoms, edges)


def concat(systems: Sequence[SystemEdges]) -> Topology:
    """The topology of a batch from the edges of its systems, in order."""
    if not systems:
        raise RequestError("a topology needs at least one system")
    n_atoms = np.array([system.n_atoms for system in systems])
    batch = np.repeat(np.arange(len(systems)), n_atoms)
    main = _edge_set([system.main for system in systems], n_atoms)
    return Topology(main=main, batch=torch.from_numpy(batch), n_systems=len(systems))


def _edge_set(parts: Sequence[Edges], n_atoms: NDArray[np.int64]) -> EdgeSet:
    n_edges = np.array([len(part) for part in parts])
    first_atom = np.repeat(np.cumsum(n_atoms) - n_atoms, n_edges)
    first_edge = np.repeat(np.cumsum(n_edges) - n_edges, n_edges)
    edge_index = np.empty((2, len(first_atom)), dtype=np.int64)
    np.add(np.concatenate([part.source for part in parts]), first_atom, out=edge_index[0])
    np.add(np.concatenate([part.target for part in parts]), first_atom, out=edge_index[1])
    target = edge_index[1]
    degree = np.bincount(target, minlength=int(n_atoms.sum()))
    edge_ptr = np.concatenate(([0], np.cumsum(degree)))
    max_degree = int(degree.max(initial=0))
    slot = target * max_degree + np.arange(len(target)) - edge_ptr.take(target)
    return EdgeSet(
        edge_index=torch.from_numpy(edge_index),
        cell_offsets=torch.from_numpy(np.concatenate([part.offset for part in parts])),
        reverse_edge=torch.from_numpy(np.concatenate([part.reverse for part in parts]) + first_edge),
        edge_ptr=torch.from_numpy(edge_ptr),
        slot=torch.from_numpy(slot),
        n_edges_per_system=torch.from_numpy(n_edges),
        max_degree=max_degree,
    )


def build_topology(
    pos: Tensor,
    cell: Tensor,
    pbc: Tensor,
    n_atoms: Tensor,
    spec: GraphSpec,
    names: Sequence[str] | None = None,
) -> Topology:
    """The topology of a batch on the CPU.

    pos: [N, 3] in A, systems one after another; cell: [B, 3, 3]; pbc: [B, 3] bool; n_atoms: [B]; names: [B],
    how errors call the systems. Raises DataError naming the system (by position in the batch without `names`)
    that `system_edges` refuses.
    """
    counts = n_atoms.tolist()
    if sum(counts) != len(pos):
        raise DataError(f"n_atoms adds up to {sum(counts)}, but the batch has {len(pos)} positions")
    if not len(counts) == len(cell) == len(pbc):
        raise DataError(
            f"the batch has {len(counts)} systems by n_atoms, {len(cell)} cells and {len(pbc)} rows of pbc"
        )
    positions, cells, flags = (tensor.detach().cpu().numpy() for tensor in (pos, cell, pbc))
    systems = []
    first = 0
    for index, count in enumerate(counts):
        try:
            systems.append(system_edges(positions[first : first + count], cells[index], flags[index], spec))
        except DataError as error:
            name = names[index] if names else f"system {index} of the batch"
            raise DataError(f"{name}: {error}") from None
        first += count
    return concat(systems)
