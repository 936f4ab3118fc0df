"""Claims about the neighbour search that a few atoms decide; tests/property compares it with ASE."""

import numpy as np
import pytest

from ocpgem.errors import DataError, RequestError
from ocpgem.graph.neighbors import neighbor_search

BOX = np.eye(3) * 20.0


def pairs(found) -> list[tuple[int, int]]:
    return list(zip(found.source.tolist(), found.target.tolist(), strict=True))


def test_a_pair_at_exactly_the_cutoff_is_a_neighbour():
    found = neighbor_search([[0, 0, 0], [3.0, 4.0, 0.0]], BOX, True, 5.0)
    assert pairs(found) == [(1, 0), (0, 1)]
    assert found.distance.tolist() == [5.0, 5.0]


def test_a_pair_beyond_the_cutoff_by_the_last_digit_is_not():
    just_beyond = np.nextafter(5.0, 6.0)
    assert pairs(neighbor_search([[0, 0, 0], [just_beyond, 0, 0]], BOX, True, 5.0)) == []


def test_images_at_exactly_the_cutoff_are_all_found():
    found = neighbor_search([[0.3, 0.1, 0.7]], np.eye(3) * 3.0, True, 6.0)
    assert len(found.source) == 32  # 6 at 1, 12 at sqrt 2, 8 at sqrt 3 and 6 at 2 lattice constants
    assert (found.distance == 6.0).sum() == 6


@pytest.mark.parametrize(("distance", "n_edges"), [(0.0, 0), (0.009, 0), (0.0101, 2)])
def test_atoms_within_a_hundredth_of_an_angstrom_are_no_neighbours(distance: float, n_edges: int):
    found = neighbor_search([[1, 1, 1], [1 + distance, 1, 1]], BOX, True, 6.0)
    assert len(found.source) == n_edges


def test_offset_belongs_to_the_source():
    found = neighbor_search([[0.5, 0, 0], [19.5, 0, 0]], BOX, True, 2.0)
    assert pairs(found) == [(1, 0), (0, 1)]
    assert found.offset.tolist() == [[-1, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(found.distance, 1.0)


def test_an_atom_many_cells_away_has_the_neighbours_of_its_image():
    found = neighbor_search([[0.5, 0, 0], [0.5 - 1 + 20 * 37, -20.0 * 5, 0]], BOX, True, 2.0)
    assert pairs(found) == [(1, 0), (0, 1)]
    assert found.offset.tolist() == [[-37, 5, 0], [37, -5, 0]]


def test_an_axis_that_is_not_periodic_has_no_images():
    cell = np.diag([3.0, 3.0, 0.0])
    found = neighbor_search([[0, 0, 0.0], [0, 0, 2.5]], cell, [True, True, False], 2.6)
    assert pairs(found) == [(1, 0), (0, 1)]
    assert len(neighbor_search([[0, 0, 0.0]], cell, [True, False, False], 3.1).source) == 2


def test_a_molecule_needs_no_cell():
    found = neighbor_search([[0, 0, 0], [0, 0, 1.1], [50, 0, 0]], np.zeros((3, 3)), False, 2.0)
    assert pairs(found) == [(1, 0), (0, 1)]


def test_a_left_handed_cell_holds_the_same_pairs():
    rng = np.random.default_rng(0)
    cell, pos = np.diag([4.0, 5.0, 6.0]) + rng.uniform(-1, 1, (3, 3)), rng.uniform(0, 5, (4, 3))
    right = neighbor_search(pos, cell, True, 6.0)
    left = neighbor_search(pos, -cell, True, 6.0)
    np.testing.assert_allclose(np.sort(left.distance), np.sort(right.distance))


def test_single_precision_input_is_measured_in_double_precision():
    pos = np.array([[0, 0, 0], [1, 1, 1]], dtype=np.float32)
    found = neighbor_search(pos, BOX.astype(np.float32), np.array([1, 1, 1], dtype=np.uint8), 2.0)
    assert found.distance.dtype == np.float64
    assert found.source.dtype == found.target.dtype == found.offset.dtype == np.int64
    assert found.distance.tolist() == pytest.approx([3**0.5] * 2, abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_an_unusable_position_names_its_atom(value: float):
    with pytest.raises(DataError, match="atom 1 is at"):
        neighbor_search([[0, 0, 0], [0, value, 0]], BOX, True, 6.0)


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), [[1, 0, 0], [2, 0, 0], [0, 0, 1]], np.full((3, 3), np.nan), np.diag([1, np.inf, 1])],
    ids=["zero", "parallel", "nan", "infinite"],
)
@pytest.mark.parametrize("pbc", [[True, True, True], [True, True, False]])
def test_a_singular_cell_along_periodic_axes_is_refused(cell, pbc):
    with pytest.raises(DataError, match="linearly dependent"):
        neighbor_search([[0, 0, 0], [1, 0, 0]], cell, pbc, 6.0)


@pytest.mark.parametrize("cutoff", [0.0, -6.0, np.nan, np.inf])
def test_a_cutoff_that_is_no_length_is_refused(cutoff: float):
    with pytest.raises(RequestError, match="cutoff"):
        neighbor_search([[0, 0, 0]], BOX, True, cutoff)


def test_input_of_the_wrong_shape_is_refused():
    with pytest.raises(DataError, match="positions have shape"):
        neighbor_search(np.zeros((0, 3)), BOX, True, 6.0)
    with pytest.raises(DataError, match="cell has shape"):
        neighbor_search([[0, 0, 0]], np.ones((1, 3, 3)), True, 6.0)
    with pytest.raises(DataError, match="pbc"):
        neighbor_search([[0, 0, 0]], BOX, [True, False], 6.0)


def test_a_cutoff_that_reaches_far_too_many_images_is_refused():
    with pytest.raises(DataError, match="check the cell and its unit"):
        neighbor_search([[0, 0, 0]], np.eye(3) * 0.01, True, 12.0)


@pytest.mark.parametrize(
    ("n_atoms", "edge", "periodic"),
    [(100, 0.5, True), (5000, 3.0, False)],
    ids=["tiny cell", "dense cluster"],
)
def test_a_system_far_denser_than_matter_is_refused_before_it_fills_the_memory(
    n_atoms: int, edge: float, periodic: bool
) -> None:
    """Damaged or hostile records ask for this; the first took 16 GB once."""
    pos = np.random.default_rng(0).uniform(0, edge, (n_atoms, 3))
    with pytest.raises(DataError, match="check the positions, the cell"):
        neighbor_search(pos, np.eye(3) * edge, [periodic] * 3, 6.0)
