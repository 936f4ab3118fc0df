"""Exact periodic neighbour search for one system, in vectorised numpy.

Atoms are wrapped into the cell; of their periodic images only those within reach of the cell's contents are
built, and one small matrix product gives the squared distance of every (target, image) pair. Candidates are
laid out by target, source and offset, so the list comes out ordered without a sort. Pairs too close to a
limit to be decided by that product are measured again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocpgem.errors import DataError, RequestError

MIN_DISTANCE = 0.01  # A; closer pairs are one atom (gemnet.md 1.1)
FARTHEST_ATOM = 1e6  # A from the origin; beyond it float64 no longer resolves distances well
FLATTEST_CELL = 1e-6  # volume over the product of the edge lengths
MOST_CANDIDATES = 2_000_000  # (atom, offset) pairs looked at before the lattice is reduced first
MOST_CANDIDATES_REDUCED = 10_000_000
MOST_PAIRS = 10_000_000  # about 1 GB; a system of 20,000 atoms with 500 neighbours each
BLOCK = 250_000  # multiply-adds of one product: stays in cache, and below where OpenBLAS starts threads
EPS = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# glibc gives the memory of a search back to the system and faults it in again for the next one, which takes
# longer than the search, until the process has once freed a large block. This one is never touched.
np.empty(31_000_000, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class NeighborList:
    """Directed edges of one system, ordered by target, then source, then offset.

    source, target: [E] atoms; offset: [E, 3] lattice vectors added to the source; distance: [E] in A. The
    vector from source to target is `pos[target] - (pos[source] + offset @ cell)`.
    """

    source: Ints
    target: Ints
    offset: Ints
    distance: Floats


def neighbor_search(pos: ArrayLike, cell: ArrayLike, pbc: ArrayLike, cutoff: float) -> NeighborList:
    """Every pair of atoms (images included) with 0.01 A < distance <= cutoff.

    pos: [n, 3] in A, anywhere; cell: [3, 3] row vectors in A, of any shape and handedness; rows of axes that
    are not periodic are ignored; pbc: [3] (or one) bool; cutoff in A. Arithmetic is float64; a pair is found
    from both its ends or from neither. Raises DataError for positions or a cell that cannot be used,
    RequestError for a bad cutoff. Source: gemnet.md 1.1.
    """
    if not (cutoff > 0 and math.isfinite(cutoff)):
        raise RequestError(f"the neighbour cutoff is {cutoff} A; it must be a positive number")
    return _search(_checked_positions(pos), _Lattice.of(cell, _checked_pbc(pbc)), cutoff)


def _search(pos: Floats, lattice: "_Lattice", cutoff: float) -> NeighborList:
    frac = pos @ lattice.inverse
    wrap = np.floor(frac)
    if not all(lattice.periodic):
        wrap[:, [not periodic for periodic in lattice.periodic]] = 0.0
    wrapped = bool(wrap.any())
    if wrapped:
        frac -= wrap
    low, high = frac.min(axis=0).tolist(), frac.max(axis=0).tolist()
    axes = lattice.offsets_in_reach(low, high, cutoff)
    n_candidates = len(pos) * math.prod(len(numbers) for numbers in axes)
    if n_candidates > MOST_CANDIDATES:
        if not lattice.is_reduced:
            return _search_reduced(pos, lattice, cutoff)
        if n_candidates > MOST_CANDIDATES_REDUCED:
            raise DataError(
                f"a cutoff of {cutoff} A reaches {n_candidates} atom images in a cell of "
                f"{lattice.volume:.3g} A^3; check the cell and its unit"
            )
    image_source, image_offset = lattice.images(frac, axes, low, high, cutoff)
    home = pos - wrap @ lattice.vectors if wrapped else pos
    images = home.take(image_source, axis=0)
    images += image_offset @ lattice.vectors
    tolerance = _rounding(pos, images)
    target, image, squared = _pairs_within(home, images, cutoff, tolerance)
    source = image_source.take(image)
    offset = image_offset.astype(np.int64).take(image, axis=0)
    if wrapped:
        wrap_int = wrap.astype(np.int64)
        offset += wrap_int.take(target, axis=0)
        offset -= wrap_int.take(source, axis=0)
    return _decided(pos, lattice.vectors, NeighborList(source, target, offset, squared), cutoff, tolerance)


@dataclass(frozen=True, slots=True)
class _Lattice:
    """Three independent row vectors; those of axes that are not periodic only complete the periodic ones."""

    vectors: Floats
    inverse: Floats
    periodic: tuple[bool, bool, bool]
    reach: tuple[
        float, float, float
    ]  # extent of a sphere of radius 1 A in fractional coordinates, = 1 / height
    volume: float
    is_reduced: bool = False

    @classmethod
    def of(cls, cell: ArrayLike, periodic: tuple[bool, bool, bool], is_reduced: bool = False) -> "_Lattice":
        vectors = np.asarray(cell, dtype=np.float64)
        if vectors.shape != (3, 3):
            raise DataError(
                f"the cell has shape {vectors.shape}; it must be [3, 3], one lattice vector per row"
            )
        if not all(periodic):
            vectors = _completed(vectors, periodic)
        # Plain floats: on nine numbers they are faster than array calls.
        a, b, c = rows = vectors.tolist()
        cross = [_cross(b, c), _cross(c, a), _cross(a, b)]
        volume = a[0] * cross[0][0] + a[1] * cross[0][1] + a[2] * cross[0][2]
        lengths = math.prod(math.hypot(*row) for row in rows)
        if not (abs(volume) > FLATTEST_CELL * lengths and math.isfinite(volume)):
            raise DataError(
                f"the cell {_rounded(cell)} has linearly dependent or unusable vectors along its periodic "
                f"axes (pbc {list(periodic)}); correct the cell or pbc"
            )
        inverse = np.array(cross).T / volume
        reach = tuple(math.hypot(*row) / abs(volume) for row in cross)
        return cls(vectors, inverse, periodic, reach, abs(volume), is_reduced)

    def offsets_in_reach(self, low: list[float], high: list[float], cutoff: float) -> list[Floats]:
        """Per axis, the offsets that may bring an atom within the cutoff of another."""
        axes = []
        for axis, periodic in enumerate(self.periodic):
            span = high[axis] - low[axis]
            most = math.floor(_widened(cutoff * self.reach[axis]) + span) if periodic else 0
            axes.append(np.arange(-most, most + 1, dtype=np.float64))
        return axes

    def images(
        self, frac: Floats, axes: list[Floats], low: list[float], high: list[float], cutoff: float
    ) -> tuple[Ints, Floats]:
        """Atoms [M] and offsets [M, 3] of the images in the box around all atoms widened by the cutoff."""
        inside = []
        for axis, numbers in enumerate(axes):
            margin = _widened(cutoff * self.reach[axis])
            image = frac[:, axis, None] + numbers
            inside.append((image >= low[axis] - margin) & (image <= high[axis] + margin))
        mask = (inside[0][:, :, None] & inside[1][:, None, :])[..., None] & inside[2][:, None, None, :]
        offsets = np.empty((*mask.shape[1:], 3))
        offsets[..., 0] = axes[0][:, None, None]
        offsets[..., 1] = axes[1][:, None]
        offsets[..., 2] = axes[2]
        offsets = offsets.reshape(-1, 3)
        chosen = np.flatnonzero(mask)
        source = chosen // len(offsets)
        return source, offsets.take(chosen - source * len(offsets), axis=0)


def _pairs_within(home: Floats, images: Floats, cutoff: float, tolerance: float) -> tuple[Ints, Ints, Floats]:
    """Target, image and squared distance of all pairs within the limits, give or take `tolerance` A^2."""
    left = np.empty((len(home), 5))  # |t - s|^2 = -2 t.s + |t|^2 + |s|^2 as one product
    np.multiply(home, -2.0, out=left[:, :3])
    np.einsum("ij,ij->i", home, home, out=left[:, 3])
    left[:, 4] = 1.0
    right = np.empty((5, len(images)))
    right[:3] = images.T
    right[3] = 1.0
    np.einsum("ij,ij->i", images, images, out=right[4])
    found, n_pairs = [], 0
    for block in _blocks(left, right, MIN_DISTANCE**2 - tolerance, cutoff**2 + tolerance):
        found.append(block)
        n_pairs += len(block[0])
        if n_pairs > MOST_PAIRS:
            raise DataError(
                f"more than {MOST_PAIRS:,} pairs of its {len(home)} atoms and their images are within {cutoff} A; "
                "check the positions, the cell and their unit"
            )
    if len(found) == 1:
        return found[0]
    targets, chosen, squared = zip(*found, strict=True)
    return np.concatenate(targets), np.concatenate(chosen), np.concatenate(squared)


def _blocks(left: Floats, right: Floats, low: float, high: float) -> Iterator[tuple[Ints, Ints, Floats]]:
    n_images = right.shape[1]
    rows = max(1, BLOCK // (5 * n_images))
    for first in range(0, len(left), rows):
        squared = left[first : first + rows] @ right
        mask = squared <= high
        mask &= squared > low
        hits = np.flatnonzero(mask)
        row = np.repeat(np.arange(len(mask)), np.count_nonzero(mask, axis=1))
        yield row + first if first else row, hits - row * n_images, squared.ravel().take(hits)


def _decided(
    pos: Floats, vectors: Floats, found: NeighborList, cutoff: float, tolerance: float
) -> NeighborList:
    """Turn squared distances into distances; settle the pairs near a limit, a pair as its reverse."""
    squared = found.distance
    longest, shortest = cutoff**2 - 2 * tolerance, MIN_DISTANCE**2 + 2 * tolerance
    if len(squared) == 0 or (squared.max() < longest and squared.min() > shortest):
        return NeighborList(found.source, found.target, found.offset, np.sqrt(squared, out=squared))
    doubtful = np.flatnonzero((squared >= longest) | (squared <= shortest))
    n = found.offset[doubtful].astype(np.float64)
    # Elementwise, so that negating an edge negates every intermediate exactly.
    shift = n[:, :1] * vectors[0] + n[:, 1:2] * vectors[1] + n[:, 2:] * vectors[2]
    vector = (pos[found.target[doubtful]] - pos[found.source[doubtful]]) - shift
    squared[doubtful] = (vector * vector).sum(axis=1)
    distance = np.sqrt(squared, out=squared)
    keep = (distance <= cutoff) & (distance > MIN_DISTANCE)
    return NeighborList(found.source[keep], found.target[keep], found.offset[keep], distance[keep])


def _search_reduced(pos: Floats, lattice: _Lattice, cutoff: float) -> NeighborList:
    """Search with the shortest vectors of the same lattice, which a strongly skewed cell hides."""
    from ase.geometry import minkowski_reduce

    _, combination = minkowski_reduce(lattice.vectors, lattice.periodic)
    reduced = _Lattice.of(combination @ lattice.vectors, lattice.periodic, is_reduced=True)
    found = _search(pos, reduced, cutoff)
    offset = found.offset @ combination
    order = np.lexsort((offset[:, 2], offset[:, 1], offset[:, 0], found.source, found.target))
    return NeighborList(found.source[order], found.target[order], offset[order], found.distance[order])


def _rounding(pos: Floats, images: Floats) -> float:
    """Bound in A^2 on the rounding error of a squared distance taken from the matrix product."""
    largest = max(images.max(), -images.min(), pos.max(), -pos.min())
    return 256 * EPS * float(largest) ** 2


def _widened(extent: float) -> float:
    return extent + 1e-6 * (1.0 + extent)


def _cross(u: list[float], v: list[float]) -> list[float]:
    return [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]


def _checked_positions(pos: ArrayLike) -> Floats:
    pos = np.ascontiguousarray(pos, dtype=np.float64)
    if pos.ndim != 2 or pos.shape[1] != 3 or len(pos) == 0:
        raise DataError(
            f"the positions have shape {pos.shape}; they must be [n_atoms, 3] with at least one atom"
        )
    if not max(pos.max(), -pos.min()) < FARTHEST_ATOM:
        atom = int(np.flatnonzero(~(np.abs(pos) < FARTHEST_ATOM).all(axis=1))[0])
        raise DataError(
            f"atom {atom} is at {_rounded(pos[atom])} A; positions must be finite and within "
            f"{FARTHEST_ATOM:.0e} A of the origin"
        )
    return pos


def _checked_pbc(pbc: ArrayLike) -> tuple[bool, bool, bool]:
    flags = np.asarray(pbc, dtype=bool)
    if flags.shape not in ((), (3,)):
        raise DataError(f"pbc has shape {flags.shape}; it must be one flag or [3]")
    a, b, c = flags.tolist() if flags.shape else [bool(flags)] * 3
    return a, b, c


def _completed(vectors: Floats, periodic: tuple[bool, bool, bool]) -> Floats:
    """Replace the rows of axes that are not periodic by unit vectors orthogonal to the periodic ones."""
    if not any(periodic):
        return np.eye(3)
    vectors = vectors.copy()
    kept = [axis for axis in range(3) if periodic[axis]]
    free = [axis for axis in range(3) if not periodic[axis]]
    if not np.isfinite(vectors[kept]).all():
        return vectors
    # The right singular vectors beyond the rank span what is orthogonal to the periodic rows.
    vectors[free] = np.linalg.svd(vectors[kept])[2][len(kept) :]
    return vectors


def _rounded(values: ArrayLike) -> list[object]:
    return np.round(np.asarray(values, dtype=np.float64), 4).tolist()
