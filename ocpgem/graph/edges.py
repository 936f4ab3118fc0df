"""Which of the neighbours become edges: the nearest-K rule, symmetrisation, and the reverse of every edge."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.errors import DataError

TIE = 1e-8  # relative difference below which two distances count as equal
NOT_STRICT_MARGIN = 0.01  # added to the (K+1)-th smallest weight by the rule that is not strict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Edges:
    """Symmetric edges of one system, sorted by target; sources ascend within a target.

    source, target: [E] atoms; offset: [E, 3] lattice vectors added to the source; reverse: [E] position of
    the edge target -> source with the opposite offset.
    """

    source: Ints
    target: Ints
    offset: Ints
    reverse: Ints

    def __len__(self) -> int:
        return len(self.source)


def nearest_k(target: Ints, weight: Floats, n_atoms: int, max_neighbors: int, strict: bool = True) -> Mask:
    """Mask [E] of the edges that remain when every target keeps about `max_neighbors` sources of smallest
    weight.

    target: [E], ascending; weight: [E], whatever measures distance (the released search hands in squared
    distances, GemNet-OC's sub-selection plain ones). Strict: exactly K remain; weights within 1e-8 of the
    K-th are ties, of which the first in the list remain. Not strict: all up to 0.01 above the (K+1)-th
    smallest. K <= 0 keeps everything. Source: gemnet.md 1.2 and 9.7.
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
    chosen = _strictly_nearest(table, max_neighbors) if strict else _nearly_nearest(table, max_neighbors)
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


def _nearly_nearest(table: Floats, k: int) -> Mask:
    limit = np.partition(table, k, axis=1)[:, k : k + 1] + NOT_STRICT_MARGIN
    return np.asarray(table <= limit)


def symmetrize(source: Ints, target: Ints, offset: Ints) -> Edges:
    """Make an edge list symmetric as the released models do: keep one direction and add its reverse.

    An edge is kept if source < target, or if it joins an atom to its own image by a lexicographically
    negative offset. After truncation some edges therefore vanish and some targets exceed K. The list must be
    sorted by target, source, offset. Source: gemnet.md 1.7, 9.6.
    """
    keep = source < target
    own = np.flatnonzero(source == target)
    n1, n2, n3 = offset[own].T
    keep[own] = (n1 < 0) | ((n1 == 0) & ((n2 < 0) | ((n2 == 0) & (n3 < 0))))
    kept = np.flatnonzero(keep)
    n_kept = len(kept)
    low, high, shift = source.take(kept), target.take(kept), offset.take(kept, axis=0)
    to = np.concatenate((high, low))
    # A stable sort by target alone leaves the sources ascending: the first half has those below the target,
    # the second half those above. Numpy sorts 16-bit keys by radix.
    order = np.argsort(to if len(to) == 0 or to.max() > 32767 else to.astype(np.int16), kind="stable")
    position = np.empty(2 * n_kept, dtype=np.int64)
    position[order] = np.arange(2 * n_kept)
    opposite = np.concatenate((position[n_kept:], position[:n_kept]))
    return Edges(
        source=np.concatenate((low, high)).take(order),
        target=to.take(order),
        offset=np.concatenate((shift, -shift)).take(order, axis=0),
        reverse=opposite.take(order),
    )


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
