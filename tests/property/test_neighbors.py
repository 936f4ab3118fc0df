"""The neighbour search finds exactly what ASE and a brute-force loop find, in cells of every kind."""

import itertools
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocpgem.graph import neighbors
from ocpgem.graph.edges import Edges, find_reverse, nearest_k, symmetrize
from ocpgem.graph.neighbors import NeighborList, neighbor_search

BOUNDARY = 1e-9  # A; ASE excludes the cutoff itself, so pairs this close to it are left out of the comparison
TRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

CELLS = ["cubic", "triclinic", "thin", "needle", "skewed", "left-handed", "tiny"]
PLACES = ["inside", "on the faces", "outside", "far outside", "clustered"]
FREE_ROWS = ["kept", "zero", "parallel to another", "huge"]


@dataclass(frozen=True)
class Structure:
    pos: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    cutoff: float


def make_cell(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Three independent row vectors of the kind; about 2 to 8 A where the kind does not say otherwise."""
    cell = np.diag(rng.uniform(2.5, 8.0, 3))
    if kind == "cubic":
        return np.eye(3) * rng.integers(2, 8)
    cell += np.tril(rng.uniform(-2.0, 2.0, (3, 3)), -1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cell = cell @ (rotation * np.linalg.det(rotation))
    scale = np.ones((3, 1))
    axis = rng.integers(3)
    if kind == "thin":
        scale[axis] = 0.25
    elif kind == "needle":
        scale[:] = 0.5
        scale[axis] = 6.0
    elif kind == "tiny":
        scale[:] = 0.35
    cell = cell * scale
    if kind == "skewed":
        cell[1] += rng.integers(-4, 5) * cell[0]
        cell[2] += rng.integers(-4, 5) * cell[1]
    if kind == "left-handed":
        cell = cell[[1, 0, 2]]
    return cell


def make_positions(kind: str, n_atoms: int, cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    frac = rng.uniform(0, 1, (n_atoms, 3))
    if kind == "on the faces":
        frac = rng.integers(-1, 3, (n_atoms, 3)) / 2 + rng.choice([0.0, 1e-17, -1e-17, 1e-12], (n_atoms, 3))
    elif kind == "outside":
        frac += rng.integers(-2, 3, (n_atoms, 3))
    elif kind == "far outside":
        frac += rng.integers(-300, 301, (n_atoms, 3))
    elif kind == "clustered":
        frac = rng.uniform(-0.05, 0.05, (n_atoms, 3))
    return frac @ cell


@st.composite
def structures(draw: st.DrawFn, places: list[str] = PLACES, largest: int = 9) -> Structure:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cell = make_cell(draw(st.sampled_from(CELLS)), rng)
    pos = make_positions(
        draw(st.sampled_from(places)), draw(st.sampled_from([largest, 1, 2, 3, 5])), cell, rng
    )
    pbc = np.array(draw(st.one_of(st.just((True,) * 3), st.tuples(*[st.booleans()] * 3))))
    row = draw(st.sampled_from(FREE_ROWS))
    if row == "zero":
        cell[~pbc] = 0.0
    elif row == "parallel to another":
        cell[~pbc] = cell[0]
    elif row == "huge":
        cell[~pbc] *= 1e4
    cutoff = draw(st.sampled_from([4.0, 2.5, 6.0, 9.0, 1.0])) * draw(st.floats(0.9, 1.1))
    volume = abs(np.linalg.det(cell)) if pbc.all() else 100.0
    # Keep the lists short enough for the references: a few thousand neighbours an atom.
    return Structure(pos, cell, pbc, min(cutoff, (2000 * volume / len(pos)) ** (1 / 3)))


def search(s: Structure) -> NeighborList:
    return neighbor_search(s.pos, s.cell, s.pbc, s.cutoff)


def as_set(source, target, offset, distance, cutoff: float) -> set[tuple[int, ...]]:
    clear = (np.abs(distance - cutoff) > BOUNDARY) & (np.abs(distance - neighbors.MIN_DISTANCE) > BOUNDARY)
    keep = clear & (distance > neighbors.MIN_DISTANCE)
    table = np.column_stack((source, target, offset))[keep]
    rows = {tuple(row) for row in table.tolist()}
    assert len(rows) == len(table), "an edge is listed twice"
    return rows


def found_set(s: Structure) -> set[tuple[int, ...]]:
    found = search(s)
    return as_set(found.source, found.target, found.offset, found.distance, s.cutoff)


def ase_set(s: Structure) -> set[tuple[int, ...]]:
    cell = s.cell.copy()
    cell[~s.pbc] = 0.0
    # In ASE's list the offset belongs to the second atom, which makes it our source.
    atoms = Atoms(positions=s.pos, cell=cell, pbc=s.pbc)
    target, source, offset, distance = neighbor_list("ijSd", atoms, s.cutoff)
    return as_set(source, target, offset, distance, s.cutoff)


def brute_force_set(s: Structure) -> set[tuple[int, ...]]:
    ranges = [range(1)] * 3
    if s.pbc.any():
        periodic = s.cell[s.pbc]
        dual = np.linalg.pinv(periodic)
        spread = np.ptp(s.pos @ dual, axis=0)
        most = np.ceil(s.cutoff * np.linalg.norm(dual, axis=0) + spread).astype(int)
        for axis, reach in zip(np.flatnonzero(s.pbc), most, strict=True):
            ranges[axis] = range(-reach, reach + 1)
    rows = set()
    cell = np.where(s.pbc[:, None], s.cell, 0.0)
    for n in itertools.product(*ranges):
        distance = np.linalg.norm(s.pos[:, None] - (s.pos[None] + np.array(n) @ cell), axis=2)
        target, source = np.nonzero(distance <= s.cutoff)
        offset = np.tile(n, (len(target), 1))
        rows |= as_set(source, target, offset, distance[target, source], s.cutoff)
    return rows


@settings(TRIED, max_examples=400)
@given(structures())
def test_search_finds_exactly_the_pairs_ase_finds(s: Structure):
    assert found_set(s) == ase_set(s)


@settings(TRIED, max_examples=200)
@given(structures(places=["inside", "on the faces", "outside", "clustered"], largest=5))
def test_search_finds_exactly_the_pairs_a_brute_force_loop_finds(s: Structure):
    assert found_set(s) == brute_force_set(s)


@settings(TRIED, max_examples=150)
@given(structures())
def test_search_in_the_reduced_lattice_finds_the_same_list(s: Structure):
    direct = search(s)
    with mock.patch.object(neighbors, "MOST_CANDIDATES", 0):
        reduced = search(s)
    for name in ("source", "target", "offset"):
        np.testing.assert_array_equal(getattr(direct, name), getattr(reduced, name))
    np.testing.assert_allclose(direct.distance, reduced.distance, atol=1e-8)


@settings(TRIED, max_examples=100)
@given(structures(), st.sampled_from([1, 60, 700]))
def test_splitting_the_product_into_blocks_changes_nothing(s: Structure, block: int):
    whole = search(s)
    with mock.patch.object(neighbors, "BLOCK", block):
        split = search(s)
    for name in ("source", "target", "offset"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(split, name))


@settings(TRIED, max_examples=200)
@given(structures())
def test_every_pair_is_found_from_both_ends_with_the_distance_its_offset_gives(s: Structure):
    found = search(s)
    reverse = find_reverse(found.source, found.target, found.offset)
    np.testing.assert_array_equal(reverse[reverse], np.arange(len(reverse)))
    cell = np.where(s.pbc[:, None], s.cell, 0.0)
    vector = s.pos[found.target] - (s.pos[found.source] + found.offset @ cell)
    precision = 1e-13 * (1 + np.abs(s.pos).max()) ** 2
    np.testing.assert_allclose(vector[reverse], -vector, atol=precision)
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), found.distance, atol=precision / 0.01)
    assert not found.offset[:, ~s.pbc].any()


@settings(TRIED, max_examples=150)
@given(structures())
def test_the_list_is_ordered_by_target_source_and_offset(s: Structure):
    found = search(s)
    keys = np.column_stack((found.target, found.source, found.offset)).tolist()
    assert keys == sorted(keys)


@settings(TRIED, max_examples=150)
@given(structures(places=["inside", "outside"]), st.integers(0, 2**32 - 1))
def test_moving_atoms_by_lattice_vectors_changes_only_the_offsets(s: Structure, seed: int):
    shift = np.random.default_rng(seed).integers(-3, 4, s.pos.shape) * s.pbc
    moved = Structure(s.pos + shift @ np.where(s.pbc[:, None], s.cell, 0.0), s.cell, s.pbc, s.cutoff)
    before, after = search(s), search(moved)
    clear = np.abs(before.distance - s.cutoff).min(initial=1.0) > BOUNDARY
    if clear and len(before.source) == len(after.source):
        np.testing.assert_array_equal(before.source, after.source)
        np.testing.assert_array_equal(before.target, after.target)
        expected = before.offset + shift[before.target] - shift[before.source]
        np.testing.assert_array_equal(after.offset, expected)
    else:
        assert not clear


@settings(TRIED, max_examples=150)
@given(structures(), st.integers(1, 30))
def test_symmetrised_edges_come_in_opposite_pairs_sorted_by_target(s: Structure, k: int):
    found = search(s)
    keep = nearest_k(found.target, found.distance, len(s.pos), k)
    assert np.bincount(found.target[keep], minlength=1).max() <= k
    edges = symmetrize(Edges(found.source[keep], found.target[keep], found.offset[keep]))
    assert (np.diff(edges.target) >= 0).all()
    np.testing.assert_array_equal(edges.reverse[edges.reverse], np.arange(len(edges)))
    np.testing.assert_array_equal(edges.source[edges.reverse], edges.target)
    np.testing.assert_array_equal(edges.offset[edges.reverse], -edges.offset)
    np.testing.assert_array_equal(edges.reverse, find_reverse(edges.source, edges.target, edges.offset))
    if len(found.source):
        assert len(edges) > 0, "a system with neighbours keeps some"


@pytest.mark.parametrize("shear", [50, 300])
def test_a_cell_sheared_by_many_vectors_holds_the_same_pairs_as_the_compact_one(shear: int):
    rng = np.random.default_rng(5)
    compact = np.diag([3.0, 3.5, 4.0]) + rng.uniform(-0.3, 0.3, (3, 3))
    combination = np.array([[1, 0, 0], [shear, 1, 0], [0, -shear, 1]])
    pos = rng.uniform(0, 4, (4, 3))
    here = neighbor_search(pos, combination @ compact, True, 5.0)
    there = neighbor_search(pos, compact, True, 5.0)
    translated = as_set(here.source, here.target, here.offset @ combination, here.distance, 5.0)
    assert translated == as_set(there.source, there.target, there.offset, there.distance, 5.0)
