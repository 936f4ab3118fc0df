"""A neighbour list with a skin gives what a fresh search gives, at every step of a walk."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ocpgem.errors import RequestError
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.graph.skin import SkinList, SkinLists
from ocpgem.graph.system_edges import select_edges, system_edges
from ocpgem.graph.topology import GraphSpec

CELLS = {
    "slab": (np.array([[7.0, 0, 0], [3.5, 6.1, 0], [0, 0, 18.0]]), (True, True, True)),
    "thin": (np.array([[2.6, 0, 0], [0.4, 2.7, 0], [0.1, 0.2, 9.0]]), (True, True, True)),
    "skewed": (np.array([[5.0, 0, 0], [24.0, 5.0, 0], [0, 9.0, 6.0]]), (True, True, True)),
    "open above": (np.array([[5.0, 0, 0], [0, 5.5, 0], [0, 0, 0]]), (True, True, False)),
    "molecule": (np.zeros((3, 3)), (False, False, False)),
}


def walk(name: str, n_atoms: int = 12, n_steps: int = 40, step: float = 0.04, seed: int = 0):
    """Positions of a random walk; the atoms also drift together, across the borders of the cell."""
    cell, pbc = CELLS[name]
    rng = np.random.default_rng(seed)
    frame = np.where(np.array(pbc)[:, None], cell, 6.0 * np.eye(3))
    pos = rng.random((n_atoms, 3)) @ frame
    for _ in range(n_steps):
        pos = pos + rng.normal(0, step, pos.shape) + [0.03, -0.02, 0.05]
        yield pos


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.target, other.target)
    np.testing.assert_array_equal(one.source, other.source)
    np.testing.assert_array_equal(one.offset, other.offset)
    np.testing.assert_allclose(one.distance, other.distance, rtol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_a_walk_with_a_skin_finds_what_a_search_finds(name: str):
    cell, pbc = CELLS[name]
    skin = SkinList(5.0, 0.8)
    for pos in walk(name):
        assert_same(skin.neighbors(pos, cell, pbc), neighbor_search(pos, cell, pbc, 5.0))
    assert 1 < skin.n_searches < 25


def test_an_atom_that_moves_just_over_half_the_skin_is_searched_again():
    pos = np.array([[0.0, 0, 0], [5.55, 0, 0]])
    skin = SkinList(5.0, 0.5)
    assert len(skin.neighbors(pos, np.zeros((3, 3)), False).source) == 0
    moved = np.array([[0.28, 0, 0], [5.27, 0, 0]])
    assert len(skin.neighbors(moved, np.zeros((3, 3)), False).source) == 2
    assert skin.n_searches == 2


def test_a_new_cell_is_searched_again():
    pos = np.array([[0.1, 0, 0], [3.9, 0, 0]])
    skin = SkinList(3.0, 1.0)
    skin.neighbors(pos, np.eye(3) * 9, True)
    changed = np.diag([4.6, 9.0, 9.0])
    assert_same(skin.neighbors(pos, changed, True), neighbor_search(pos, changed, True, 3.0))
    open_box = [False, True, True]
    assert_same(skin.neighbors(pos, changed, open_box), neighbor_search(pos, changed, open_box, 3.0))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("truncation", ["released", "symmetric"])
def test_nearest_k_edges_are_those_of_a_search_also_with_ties(strict: bool, truncation: str):
    spec = GraphSpec(5.0, 9, strict=strict, truncation=truncation)
    cell = np.diag([6.0, 6.0, 20.0])
    grid = np.stack(np.meshgrid(range(3), range(3), range(2), indexing="ij"), -1).reshape(-1, 3) * 2.0
    skin = SkinList(spec.parent.cutoff, 0.6)
    rng = np.random.default_rng(1)
    pos = grid.astype(np.float32)  # every distance occurs many times
    for number in range(30):
        found = select_edges(skin.neighbors(pos, cell, True), len(pos), spec)
        fresh = system_edges(pos, cell, [True] * 3, spec)
        for name in ("source", "target", "offset", "reverse"):
            np.testing.assert_array_equal(getattr(found.main, name), getattr(fresh.main, name))
        if number > 3:
            pos = (pos + rng.normal(0, 0.02, pos.shape)).astype(np.float32)
    assert skin.n_searches < 20


def test_structures_in_turn_keep_their_lists():
    cell = np.eye(3) * 8
    images = [np.random.default_rng(seed).random((10, 3)) * 8 for seed in range(5)]
    lists = SkinLists(4.0, 0.5)
    for step in range(6):
        for image in images:
            pos = image + 0.02 * step
            assert_same(lists.neighbors(pos, cell, True), neighbor_search(pos, cell, True, 4.0))
    assert lists.n_searches == 5


def test_threads_share_lists():
    cell = np.eye(3) * 8
    lists = SkinLists(4.0, 0.5, most=3)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        pos = rng.random((10, 3)) * 8
        for _ in range(20):
            pos = pos + rng.normal(0, 0.03, pos.shape)
            assert_same(lists.neighbors(pos, cell, True), neighbor_search(pos, cell, True, 4.0))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(work, range(5)))


def test_a_negative_skin_is_refused():
    with pytest.raises(RequestError, match="skin"):
        SkinList(5.0, -0.1)
