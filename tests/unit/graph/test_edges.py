"""Which neighbours become edges: nearest K, ties, symmetrisation, reverse edges."""

import numpy as np
import pytest

from ocpgem.errors import DataError
from ocpgem.graph.edges import find_reverse, nearest_k, symmetrize

ONE_TARGET = np.zeros(6, dtype=np.int64)


def kept(weights: list[float], k: int, strict: bool = True) -> list[int]:
    target = np.zeros(len(weights), dtype=np.int64)
    return np.flatnonzero(nearest_k(target, np.array(weights), 1, k, strict)).tolist()


def test_strict_rule_keeps_the_k_nearest_in_list_order():
    assert kept([3.0, 1.0, 2.0, 5.0, 4.0], 3) == [0, 1, 2]
    assert kept([5.0, 1.0, 2.0, 4.0, 3.0], 2) == [1, 2]


def test_every_target_has_its_own_k_nearest():
    rng = np.random.default_rng(0)
    degree = np.array([0, 7, 3, 12, 5, 0, 9])
    target = np.repeat(np.arange(7), degree)
    weight = rng.uniform(size=len(target))
    keep = nearest_k(target, weight, 7, 5)
    for atom in range(7):
        mine = np.flatnonzero(target == atom)
        expected = np.sort(mine[np.argsort(weight[mine])[:5]])
        np.testing.assert_array_equal(np.flatnonzero(keep & (target == atom)), expected)


@pytest.mark.parametrize("k", [0, -1, 6, 50])
def test_no_limit_or_a_limit_not_reached_keeps_everything(k: int):
    assert nearest_k(ONE_TARGET, np.arange(6.0), 3, k).all()


def test_of_equal_distances_the_first_in_the_list_remain():
    assert kept([2.0, 1.0, 2.0, 2.0, 2.0], 3) == [0, 1, 2]


def test_distances_apart_by_rounding_count_as_equal():
    assert kept([2.0 + 4e-16, 1.0, 2.0 + 2e-9, 2.0, 2.0 - 4e-16], 3) == [0, 1, 2]
    assert kept([2.0 + 1e-6, 1.0, 2.0, 3.0], 2) == [1, 2]


def test_rule_that_is_not_strict_keeps_all_up_to_a_hundredth_beyond_the_next_one():
    assert kept([1.0, 2.0, 3.0, 3.0099, 3.011, 4.0], 2, strict=False) == [0, 1, 2, 3]
    assert kept([1.0, 2.0, 3.0], 3, strict=False) == [0, 1, 2]


def test_symmetrisation_keeps_the_direction_towards_the_higher_atom_and_adds_its_reverse():
    # 1 -> 0 has no partner in the list and vanishes; 0 -> 2 gains its reverse.
    source, target = np.array([1, 0]), np.array([0, 2])
    edges = symmetrize(source, target, np.array([[0, 0, 1], [1, 0, -1]]))
    assert edges.source.tolist() == [2, 0]
    assert edges.target.tolist() == [0, 2]
    assert edges.offset.tolist() == [[-1, 0, 1], [1, 0, -1]]
    assert edges.reverse.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("offset", "survives"),
    [((-1, 5, 5), True), ((0, -1, 5), True), ((0, 0, -1), True), ((1, -5, -5), False), ((0, 0, 1), False)],
)
def test_of_an_atoms_own_images_the_lexicographically_negative_one_counts(offset, survives: bool):
    edges = symmetrize(np.array([0]), np.array([0]), np.array([offset]))
    assert len(edges) == (2 if survives else 0)


def test_a_complete_list_stays_complete_with_sources_ascending_in_a_target():
    source, target = np.array([1, 2, 0, 2, 0, 1]), np.array([0, 0, 1, 1, 2, 2])
    edges = symmetrize(source, target, np.zeros((6, 3), dtype=np.int64))
    np.testing.assert_array_equal(edges.source, source)
    np.testing.assert_array_equal(edges.target, target)


def test_reverse_is_found_by_key_in_any_order():
    source, target = np.array([2, 0, 1, 0]), np.array([0, 1, 0, 2])
    offset = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0], [0, -1, 0]])
    assert find_reverse(source, target, offset).tolist() == [3, 2, 1, 0]


def test_an_edge_without_reverse_is_named():
    offset = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 3]])
    with pytest.raises(DataError, match=r"edge 2 \(1 -> 2, offset \[0, 0, 3\]\) has no reverse"):
        find_reverse(np.array([0, 1, 1]), np.array([1, 0, 2]), offset)


def test_an_empty_list_has_no_edges():
    nothing = np.zeros(0, dtype=np.int64)
    assert nearest_k(nothing, np.zeros(0), 4, 3).tolist() == []
    assert len(symmetrize(nothing, nothing, np.zeros((0, 3), dtype=np.int64))) == 0
    assert find_reverse(nothing, nothing, np.zeros((0, 3), dtype=np.int64)).tolist() == []
