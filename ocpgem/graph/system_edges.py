"""The edges of one system in every graph that a model asks for; numpy alone, so that reading data needs no torch."""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

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
    return SystemEdges(n_atoms, main, directed(spec.atom_edge), quadruplet, directed(spec.atom_atom))


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
