"""Which of the neighbours become edges: the nearest-K rule, symmetrisation, and the reverse of every edge."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.errors import DataError

TIE = 1e-8  # relative difference below which two distances count as equal
LARGEST_CODE = 2**62
NOT_STRICT_MARGIN = 0.01  # added to the (K+1)-th smallest weight by the rule that is not strict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Edges:
    """Directed edges, sorted by target; sources ascend within a target.

    source, target: [E] atoms; offset: [E, 3] lattice vectors added to the source.
    """

    source: Ints
    target: Ints
    offset: Ints

    def __len__(self) -> int:
        return len(self.source)

    def take(self, chosen: Ints) -> "Edges":
        """The edges at some positions."""
        return Edges(self.source.take(chosen), self.target.take(chosen), self.offset.take(chosen, axis=0))


@dataclass(frozen=True, slots=True)
class SymmetricEdges(Edges):
    """Edges closed under reversal; reverse: [E] position of target -> source with the opposite offset."""

    reverse: Ints


def nearest_k(
    target: Ints,
    weight: Floats,
    n_atoms: int,
    max_neighbors: int,
    strict: bool = True,
    all_ties: bool = False,
) -> Mask:
    """Mask [E] of the edges that remain when every target keeps about `max_neighbors` sources of smallest
    weight.

    target: [E], ascending; weight: [E], whatever measures distance (the released search hands in squared
    distances, GemNet-OC's sub-selection plain ones). Strict: exactly K remain; weights within a relative
    1e-8 of the K-th are ties, of which the first in the list remain, or all with `all_ties`. Not strict: all
    up to 0.01 above the (K+1)-th smallest. K <= 0 keeps everything. Source: gemnet.md 1.2 and 9.7.
    """
    degree = np.bincount(target, minlength=n_atoms)
    if max_neighbors <= 0 or degree.max(initial=0) <= max_neighbors:
        return np.ones(len(target), dtype=bool)
    crowded = degree > max_neighbors
    counts = degree[crowded]
    inside = np.arange(counts.max()) < counts[:, None]  # [n_crowded, largest degree], rows in list order
    affected = crowded.take(target)
    table = np.full(inside.shape, np.inf)
    table[inside] = weight[affected]
    if not strict:
        chosen = _nearly_nearest(table, max_neighbors)
    elif all_ties:
        chosen = _nearest_and_ties(table, max_neighbors)
    else:
        chosen = _strictly_nearest(table, max_neighbors)
    keep = ~affected
    keep[affected] = chosen[inside]
    return keep


def _strictly_nearest(table: Floats, k: int) -> Mask:
    last = np.partition(table, k - 1, axis=1)[:, k - 1 : k]
    margin = TIE * np.abs(last)
    nearer = table < last - margin
    tied = table <= last + margin
    tied &= ~nearer
    wanted = k - np.count_nonzero(nearer, axis=1)[:, None]
    tied &= np.cumsum(tied, axis=1) <= wanted
    return nearer | tied


def _nearest_and_ties(table: Floats, k: int) -> Mask:
    last = np.partition(table, k - 1, axis=1)[:, k - 1 : k]
    return np.asarray(table <= last + TIE * np.abs(last))


def _nearly_nearest(table: Floats, k: int) -> Mask:
    limit = np.partition(table, k, axis=1)[:, k : k + 1] + NOT_STRICT_MARGIN
    return np.asarray(table <= limit)


def symmetrize(edges: Edges, self_images: str = "negative") -> SymmetricEdges:
    """Make an edge list symmetric as the released models do: keep one direction and add its reverse.

    An edge is kept if source < target, or if it joins an atom to its own image by a lexicographically
    negative offset (GemNet-T; "positive": by a positive one, GemNet-OC). After truncation some edges
    therefore vanish and some targets exceed K. The list must be sorted by target, source, offset. Source:
    gemnet.md 1.7, 9.6.
    """
    source, target, offset = edges.source, edges.target, edges.offset
    keep = source < target
    own = np.flatnonzero(source == target)
    n1, n2, n3 = offset[own].T if self_images == "negative" else -offset[own].T
    keep[own] = (n1 < 0) | ((n1 == 0) & ((n2 < 0) | ((n2 == 0) & (n3 < 0))))
    kept = np.flatnonzero(keep)
    n_kept = len(kept)
    low, high, shift = source.take(kept), target.take(kept), offset.take(kept, axis=0)
    to = np.concatenate((high, low))
    # A stable sort by target alone leaves the sources ascending: the first half has those below the target,
    # the second half those above.
    order = stable_order(to)
    position = np.empty(2 * n_kept, dtype=np.int64)
    position[order] = np.arange(2 * n_kept)
    opposite = np.concatenate((position[n_kept:], position[:n_kept]))
    return SymmetricEdges(
        source=np.concatenate((low, high)).take(order),
        target=to.take(order),
        offset=np.concatenate((shift, -shift)).take(order, axis=0),
        reverse=opposite.take(order),
    )


def join_directions(edges: Edges) -> SymmetricEdges:
    """Make an edge list symmetric by adding the reverse of every edge that lacks it.

    Unlike `symmetrize` this does not depend on how the atoms are numbered.
    """
    source = np.concatenate((edges.source, edges.target))
    target = np.concatenate((edges.target, edges.source))
    offset = np.concatenate((edges.offset, -edges.offset))
    (codes,) = edge_codes(Edges(source, target, offset))
    _, first, position = np.unique(codes, return_index=True, return_inverse=True)
    reverse = np.empty(len(first), dtype=np.int64)
    reverse[position] = np.roll(position, len(edges))
    return SymmetricEdges(source.take(first), target.take(first), offset.take(first, axis=0), reverse)


def edge_codes(*sets: Edges) -> list[Ints]:
    """Integers [E] of the edges of each set: equal for equal edges, ascending by target, source, offset."""
    columns = [
        np.concatenate([edges.target for edges in sets]),
        np.concatenate([edges.source for edges in sets]),
    ]
    columns += list(np.concatenate([edges.offset for edges in sets]).T)
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    n_codes = 1
    for column in columns if len(codes) else []:
        low = int(column.min())
        span = int(column.max()) - low + 1
        if n_codes * span > LARGEST_CODE:  # offsets of thousands of cells
            codes = np.unique(codes, return_inverse=True)[1]
            n_codes = int(codes.max()) + 1
        codes = codes * span + (column - low)
        n_codes *= span
    return np.split(codes, np.cumsum([len(edges) for edges in sets])[:-1])


def positions_of(wanted: Ints, present: Ints) -> Ints:
    """Where each wanted code stands among distinct present ones; -1 if it does not."""
    if len(present) == 0:
        return np.full(len(wanted), -1)
    order = np.argsort(present, kind="stable")  # a merge sort: quick, as edges are nearly in order
    ascending = present.take(order)
    place = np.searchsorted(ascending, wanted)
    place[place == len(present)] = 0
    return np.where(ascending.take(place) == wanted, order.take(place), -1)


def stable_order(numbers: Ints) -> Ints:
    """Positions that sort numbers from 0 to 2^32 - 1, equal ones in the order of the list.

    Numpy sorts 16-bit numbers by radix, several times faster than wider ones.
    """
    order = np.argsort(numbers.astype(np.uint16), kind="stable")
    if numbers.max(initial=0) < 1 << 16:
        return order
    high = (numbers >> 16).astype(np.uint16)
    return order.take(np.argsort(high.take(order), kind="stable"))


def find_reverse(source: Ints, target: Ints, offset: Ints) -> Ints:
    """Position [E] of the reverse of every edge of any symmetric list, such as one read from a file.

    Raises DataError naming the first edge without a reverse. Source: gemnet.md 1.8.
    """
    forward = np.column_stack((target, source, offset))
    backward = np.column_stack((source, target, -offset))
    order, mirror = np.lexsort(forward.T), np.lexsort(backward.T)
    wrong = (forward[order] != backward[mirror]).any(axis=1)
    if wrong.any():
        forward_keys = {tuple(key) for key in forward.tolist()}
        lost = next(i for i, key in enumerate(backward.tolist()) if tuple(key) not in forward_keys)
        raise DataError(
            f"edge {lost} ({source[lost]} -> {target[lost]}, offset {offset[lost].tolist()}) has no reverse; "
            "the edge list is not symmetric"
        )
    reverse = np.empty(len(order), dtype=np.int64)
    reverse[mirror] = order
    return reverse
