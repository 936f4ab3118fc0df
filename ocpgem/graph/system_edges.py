"""The edges of one system in every graph that a model asks for; numpy and scipy, so reading data needs no torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocpgem.errors import DataError
from ocpgem.graph.edges import Edges, SymmetricEdges, join_directions, nearest_k, symmetrize
from ocpgem.graph.neighbors import NeighborList, neighbor_search
from ocpgem.graph.spec import GraphSpec, Limit


@dataclass(frozen=True, slots=True)
class SystemEdges:
    """The edge sets of one system in numpy: what a worker computes, a cache stores and `concat` joins."""

    n_atoms: int
    main: SymmetricEdges
    atom_edge: Edges | None = None
    quadruplet: Edges | None = None
    atom_atom: Edges | None = None


def system_edges(
    pos: ArrayLike, cell: ArrayLike, pbc: ArrayLike, spec: GraphSpec, tags: ArrayLike | None = None
) -> SystemEdges:
    """The edges of one system: one search, a selection for every graph, the main one made symmetric.

    pos: [n, 3] in A; cell: [3, 3] row vectors in A; pbc: [3] bool; tags: [n], needed where the spec selects by
    them. Raises DataError for input the search cannot use, for missing tags, for a system without neighbours,
    and for one whose edges all vanish in symmetrisation; of these last two it only warns if spec.may_be_empty.
    """
    return select_edges(neighbor_search(pos, cell, pbc, spec.parent.cutoff), len(np.asarray(pos)), spec, tags)


def select_edges(
    neighbors: NeighborList, n_atoms: int, spec: GraphSpec, tags: ArrayLike | None = None
) -> SystemEdges:
    """`system_edges` for neighbours [within spec.parent.cutoff] that are known already."""
    found = _kept(neighbors, n_atoms, spec)
    near = _selected(found, spec.main, n_atoms, spec)
    main = symmetrize(near, spec.self_images) if spec.truncation == "released" else join_directions(near)
    if len(main) == 0:
        _without_edges(near, n_atoms, spec)

    def directed(limit: Limit | None) -> Edges | None:
        return None if limit is None else _selected(found, limit, n_atoms, spec)

    quadruplet = directed(spec.quadruplet)
    if quadruplet is not None and spec.quadruplet_tags is not None:
        quadruplet = _tagged(quadruplet, tags, spec.quadruplet_tags, n_atoms)
    selected = SystemEdges(n_atoms, main, directed(spec.atom_edge), quadruplet, directed(spec.atom_atom))
    if len(main) > 0 and len(near) < np.count_nonzero(neighbors.distance <= spec.main.cutoff):
        _warn_of_parts(neighbors, selected, spec)
    return selected


def _without_edges(near: Edges, n_atoms: int, spec: GraphSpec) -> None:
    """Warn of a system without main edges, `near` before symmetrisation, or refuse it."""
    if spec.may_be_empty:
        warnings.warn(
            f"a system of {n_atoms} atoms has no edges of the main graph (cutoff {spec.cutoff} A, "
            f"max_neighbors {spec.max_neighbors}); as with the released GemNet-OC it has an energy all the same, and "
            "direct forces of 0",
            stacklevel=3,
        )
    elif len(near) == 0:
        raise DataError(
            f"no two of its {n_atoms} atoms are within {spec.cutoff} A; "
            "check positions and cell, raise the cutoff or leave the system out"
        )
    else:
        raise DataError(
            f"none of its edges is left after keeping {spec.max_neighbors} neighbours an atom; "
            "raise max_neighbors"
        )


def _warn_of_parts(neighbors: NeighborList, selected: SystemEdges, spec: GraphSpec) -> None:
    """Warn where the limit of neighbours removed every edge between atoms that would be connected without it.

    The text names no system, so that Python shows it once in a process. neighbors: all within spec.parent.cutoff.
    """
    main, n_atoms = selected.main, selected.n_atoms
    if _is_connected(main, n_atoms):
        return
    graphs = (main, selected.atom_edge, selected.quadruplet, selected.atom_atom)
    n_parts = _n_parts([(graph.source, graph.target) for graph in graphs if graph is not None], n_atoms)
    if n_parts > _n_parts([(neighbors.source, neighbors.target)], n_atoms):
        warnings.warn(
            f"keeping {spec.main.max_neighbors} neighbours an atom leaves systems in parts that exchange no messages, "
            f"though they have atoms within {spec.parent.cutoff} A of each other; train with a larger max_neighbors",
            stacklevel=3,
        )


def _is_connected(edges: SymmetricEdges, n_atoms: int) -> bool:
    """Whether every atom is reached from the first; quick, for it is asked wherever neighbours are left out."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order

    ptr = np.zeros(n_atoms + 1, dtype=np.int64)  # edges are in the order of their target
    np.cumsum(np.bincount(edges.target, minlength=n_atoms), out=ptr[1:])
    graph = csr_array((np.ones(len(edges)), edges.source, ptr), shape=(n_atoms, n_atoms))
    return len(breadth_first_order(graph, 0, return_predecessors=False)) == n_atoms


def _n_parts(ends: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], n_atoms: int) -> int:
    """Into how many groups of atoms that no edge connects a system falls."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    source, target = (np.concatenate(side) for side in zip(*ends, strict=True))
    edges = coo_array((np.ones(len(source), dtype=np.int8), (source, target)), shape=(n_atoms, n_atoms))
    return int(connected_components(edges, directed=False, return_labels=False))


def _kept(found: NeighborList, n_atoms: int, spec: GraphSpec) -> NeighborList:
    """The neighbours within the limit of the parent; of these every graph selects its own."""
    limit = spec.parent.max_neighbors
    all_ties = spec.truncation == "symmetric"
    keep = nearest_k(found.target, found.distance**2, n_atoms, limit, spec.strict, all_ties)
    if keep.all():
        return found
    kept = np.flatnonzero(keep)
    return NeighborList(
        found.source.take(kept),
        found.target.take(kept),
        found.offset.take(kept, axis=0),
        found.distance.take(kept),
    )


def _selected(found: NeighborList, limit: Limit, n_atoms: int, spec: GraphSpec) -> Edges:
    edges = Edges(found.source, found.target, found.offset)
    distance = found.distance
    if limit.cutoff != spec.parent.cutoff:
        near = np.flatnonzero(distance <= limit.cutoff)
        edges, distance = edges.take(near), distance.take(near)
    if limit.max_neighbors != spec.parent.max_neighbors:
        all_ties = spec.truncation == "symmetric"
        keep = nearest_k(edges.target, distance, n_atoms, limit.max_neighbors, spec.strict, all_ties)
        edges = edges.take(np.flatnonzero(keep))
    return edges


def _tagged(edges: Edges, tags: ArrayLike | None, wanted: tuple[int, ...], n_atoms: int) -> Edges:
    """The edges of which an end has one of the wanted tags."""
    if tags is None:
        raise DataError(f"it has no tags, which the model needs to choose quadruplets (tags {list(wanted)})")
    tags = np.asarray(tags)
    if tags.shape != (n_atoms,):
        raise DataError(f"its tags have shape {tags.shape}; {n_atoms} atoms need ({n_atoms},)")
    chosen = np.isin(tags, wanted)
    return edges.take(np.flatnonzero(chosen.take(edges.source) | chosen.take(edges.target)))
