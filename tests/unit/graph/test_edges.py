"""Which neighbours become edges: nearest K, ties, symmetrisation, reverse edges."""

import numpy as np
import pytest

from ocpgem.errors import DataError
from ocpgem.graph.edges import (
    Edges,
    edge_codes,
    find_reverse,
    join_directions,
    nearest_k,
    positions_of,
    stable_order,
    symmetrize,
)

ONE_TARGET = np.zeros(6, dtype=np.int64)


def kept(weights: list[float], k: int, strict: bool = True, all_ties: bool = False) -> list[int]:
    target = np.zeros(len(weights), dtype=np.int64)
    return np.flatnonzero(nearest_k(target, np.array(weights), 1, k, strict, all_ties)).tolist()


def edge_list(source: list[int], target: list[int], offset: list[list[int]] | None = None) -> Edges:
    shift = np.array(offset) if offset else np.zeros((len(source), 3), dtype=np.int64)
    return Edges(np.array(source, dtype=np.int64), np.array(target, dtype=np.int64), shift)


def rows(edges: Edges) -> list[list[int]]:
    return np.column_stack((edges.source, edges.target, edges.offset)).tolist()


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


def test_all_of_the_equal_distances_remain_if_asked():
    assert kept([2.0 + 4e-16, 1.0, 2.0 + 2e-9, 2.0, 3.0], 2, all_ties=True) == [0, 1, 2, 3]
    assert kept([2.0 + 1e-6, 1.0, 2.0, 3.0], 2, all_ties=True) == [1, 2]


def test_rule_that_is_not_strict_keeps_all_up_to_a_hundredth_beyond_the_next_one():
    assert kept([1.0, 2.0, 3.0, 3.0099, 3.011, 4.0], 2, strict=False) == [0, 1, 2, 3]
    assert kept([1.0, 2.0, 3.0], 3, strict=False) == [0, 1, 2]


def test_symmetrisation_keeps_the_direction_towards_the_higher_atom_and_adds_its_reverse():
    # 1 -> 0 has no partner in the list and vanishes; 0 -> 2 gains its reverse.
    edges = symmetrize(edge_list([1, 0], [0, 2], [[0, 0, 1], [1, 0, -1]]))
    assert edges.source.tolist() == [2, 0]
    assert edges.target.tolist() == [0, 2]
    assert edges.offset.tolist() == [[-1, 0, 1], [1, 0, -1]]
    assert edges.reverse.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("offset", "survives"),
    [((-1, 5, 5), True), ((0, -1, 5), True), ((0, 0, -1), True), ((1, -5, -5), False), ((0, 0, 1), False)],
)
def test_of_an_atoms_own_images_the_lexicographically_negative_one_counts(offset, survives: bool):
    edges = edge_list([0], [0], [list(offset)])
    assert len(symmetrize(edges)) == (2 if survives else 0)
    assert len(symmetrize(edges, self_images="positive")) == (0 if survives else 2)


def test_a_complete_list_stays_complete_with_sources_ascending_in_a_target():
    complete = edge_list([1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2])
    for edges in (symmetrize(complete), join_directions(complete)):
        np.testing.assert_array_equal(edges.source, complete.source)
        np.testing.assert_array_equal(edges.target, complete.target)


def test_joining_directions_adds_the_missing_reverse_and_keeps_what_is_there_once():
    edges = join_directions(edge_list([1, 0, 2], [0, 1, 2], [[0, 0, 1], [0, 0, -1], [1, 0, 0]]))
    assert rows(edges) == [[1, 0, 0, 0, 1], [0, 1, 0, 0, -1], [2, 2, -1, 0, 0], [2, 2, 1, 0, 0]]
    assert edges.reverse.tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("shear", [1, 400_000_000])
def test_codes_are_equal_for_equal_edges_and_ascend_with_them(shear: int):
    rng = np.random.default_rng(3)
    table = rng.integers(-2, 3, (300, 5)) * [1, 1, shear, shear, shear] + [2, 2, 0, 0, 0]
    one, other = (Edges(part[:, 1], part[:, 0], part[:, 2:]) for part in (table[:200], table[200:]))
    codes = np.concatenate(edge_codes(one, other))
    order = np.lexsort(table.T[::-1])
    assert (np.diff(codes[order]) >= 0).all()
    same = (table[:, None] == table).all(axis=2)
    np.testing.assert_array_equal(codes[:, None] == codes, same)


def test_positions_are_those_in_the_list_as_given():
    present = np.array([5, 2, 9])
    assert positions_of(np.array([9, 3, 2, 10, 5, 0]), present).tolist() == [2, -1, 1, -1, 0, -1]
    assert positions_of(np.array([4]), present[:0]).tolist() == [-1]


@pytest.mark.parametrize("largest", [5, 60_000, 2**20, 2**32])
def test_stable_order_is_that_of_a_stable_sort(largest: int):
    numbers = np.random.default_rng(0).integers(0, largest, 500)
    numbers[::7] = numbers[0]
    np.testing.assert_array_equal(stable_order(numbers), np.argsort(numbers, kind="stable"))


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
    assert len(symmetrize(edge_list([], []))) == len(join_directions(edge_list([], []))) == 0
    assert find_reverse(nothing, nothing, np.zeros((0, 3), dtype=np.int64)).tolist() == []
