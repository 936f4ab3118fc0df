"""Tables that relate two edge sets of a batch: edges in common, and the pairs that quadruplets consist of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.graph.edges import Edges, SymmetricEdges, edge_codes, positions_of

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Main edges that meet a middle edge, sorted by middle edge, then main edge.

    main_edge, middle_edge: [K]; middle_ptr: [n_middle + 1] rows of each middle edge.
    """

    main_edge: Ints
    middle_edge: Ints
    middle_ptr: Ints


@dataclass(frozen=True, slots=True)
class QuadrupletPairs:
    """Quadruplets d -> b -> a <- c as pairs with their middle edge b -> a, and the exceptions.

    inner: main edges d -> b; outer: main edges c -> a; excluded_outer, excluded_inner: [X] rows of either
    whose combination would join c and d of the same image.
    """

    inner: Pairs
    outer: Pairs
    excluded_outer: Ints
    excluded_inner: Ints


def common_edges(one: Edges, other: Edges) -> tuple[Ints, Ints]:
    """Positions [M] in two sets of the edges that both have (same source image and target); the first ascend."""
    place = positions_of(*edge_codes(one, other))
    mine = np.flatnonzero(place >= 0)
    return mine, place.take(mine)


def quadruplet_pairs(main: SymmetricEdges, main_ptr: Ints, middle: Edges) -> QuadrupletPairs:
    """Everything that quadruplets around the middle edges consist of, without enumerating them.

    main_ptr: [N + 1] edges of each target. Left out: a as its own d, and b as its own c (the same images).
    Source: gemnet.md 1.12, density.md C.
    """
    main_codes, middle_codes = edge_codes(main, middle)
    # Where b -> a is a main edge itself, its source is no c and its reverse comes from no d.
    itself = positions_of(middle_codes, main_codes)
    backward = np.where(itself >= 0, main.reverse.take(itself), -1)
    inner = _pairs(main_ptr, middle.source, backward)
    outer = _pairs(main_ptr, middle.target, itself)
    excluded_outer, closing = _closing_edges(main, middle, outer)
    at = outer.middle_edge.take(excluded_outer)
    rank = closing - main_ptr.take(middle.source.take(at))
    left_out = backward.take(at)
    rank -= (left_out >= 0) & (left_out < closing)
    return QuadrupletPairs(inner, outer, excluded_outer, inner.middle_ptr.take(at) + rank)


def _pairs(main_ptr: Ints, atoms: Ints, left_out: Ints) -> Pairs:
    """Each middle edge with all main edges whose target is `atoms` [n_middle], but the one left out (-1: none)."""
    first = main_ptr.take(atoms)
    count = main_ptr.take(atoms + 1) - first
    start = np.cumsum(count) - count
    middle_edge = np.repeat(np.arange(len(atoms)), count)
    main_edge = np.arange(len(middle_edge)) + np.repeat(first - start, count)
    kept = np.flatnonzero(main_edge != np.repeat(left_out, count))
    middle_ptr = np.concatenate(([0], np.cumsum(count - (left_out >= 0))))
    return Pairs(main_edge.take(kept), middle_edge.take(kept), middle_ptr)


def _closing_edges(main: SymmetricEdges, middle: Edges, outer: Pairs) -> tuple[Ints, Ints]:
    """Rows [X] of `outer` (ascending) in which c -> b is a main edge as well, and the position of that edge."""
    to_a, via = outer.main_edge, outer.middle_edge
    offset = main.offset.take(to_a, axis=0) - middle.offset.take(via, axis=0)
    from_c_to_b = Edges(main.source.take(to_a), middle.source.take(via), offset)
    main_codes, wanted = edge_codes(main, from_c_to_b)
    closing = positions_of(wanted, main_codes)
    rows = np.flatnonzero(closing >= 0)
    return rows, closing.take(rows)
