"""Edges of a model's own graph are estimated from the side table, with an error that is known."""

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111, molecule

from ocpgem.data.cost import ATOMS, STORED_EDGES, SYSTEMS, fit_cost, fit_edge_cost
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.sizes import SIZES
from ocpgem.data.system import system_from_atoms
from ocpgem.errors import DataError
from ocpgem.graph.system_edges import system_edges
from ocpgem.graph.topology import GraphSpec


def side_table(n_atoms, n_edges):
    rows = np.zeros(len(n_atoms), dtype=SIZES)
    rows["n_atoms"], rows["n_edges"] = n_atoms, n_edges
    return rows


def test_systems_atoms_and_edges_are_what_the_side_table_says():
    rows = side_table([3, 5], [20, 70])
    assert [cost.of(rows).tolist() for cost in (SYSTEMS, ATOMS, STORED_EDGES)] == [[1, 1], [3, 5], [20, 70]]


def test_a_linear_cost_is_found_exactly():
    rng = np.random.default_rng(0)
    rows = side_table(rng.integers(20, 225, 100), rng.integers(500, 9000, 100))
    cost = fit_cost("edges", rows, 3.0 * rows["n_atoms"] + 0.5 * rows["n_edges"])
    assert (cost.per_atom, cost.per_edge) == pytest.approx((3.0, 0.5), rel=1e-5)
    assert cost.error < 1e-3


def test_no_system_of_the_sample_exceeds_what_it_costs_at_most():
    rng = np.random.default_rng(1)
    rows = side_table(rng.integers(20, 225, 300), rng.integers(500, 9000, 300))
    measured = (4.0 * rows["n_atoms"] + 0.7 * rows["n_edges"]) * rng.uniform(0.8, 1.2, 300)
    cost = fit_cost("edges", rows, measured)
    assert 0.1 < cost.error < 0.4
    assert (cost.at_most(rows) >= measured).all()
    assert abs(cost.of(rows).sum() / measured.sum() - 1) < 0.05


def slabs(count, seed):
    """Rattled slabs of different metals and sizes with an adsorbed CO."""
    rng = np.random.default_rng(seed)
    for sid in range(count):
        size = (*rng.integers(2, 5, 2).tolist(), int(rng.integers(3, 6)))
        atoms = fcc111(str(rng.choice(["Cu", "Pt", "Al", "Ag"])), size, vacuum=7.5, periodic=True)
        add_adsorbate(atoms, molecule("CO"), 2.0, "ontop")
        atoms.rattle(0.1, seed=int(rng.integers(1000)))
        yield system_from_atoms(atoms, sid=sid, source="slab")


@pytest.mark.parametrize(
    ("graph", "error"),
    [
        (GraphSpec(6.0, 50), 0.05),
        (GraphSpec(12.0, 30), 0.2),
        (GraphSpec(4.5, 0), 0.6),  # shells of neighbours lie within it in one metal and beyond it in another
    ],
)
def test_the_edges_of_another_graph_are_estimated_within_the_stated_error(graph, error):
    cost = fit_edge_cost(InMemoryDataset(list(slabs(40, 0))), graph)
    unseen = InMemoryDataset(list(slabs(20, 1)))
    counted = [
        len(system_edges(s.pos, s.cell, s.pbc, graph).main) for s in map(unseen.__getitem__, range(20))
    ]
    ratio = np.array(counted) / cost.of(unseen.sizes)
    assert cost.error < error
    assert (ratio <= 1 + 1.3 * cost.error).all(), "far beyond what was seen in the sample"
    assert abs(sum(counted) / cost.of(unseen.sizes).sum() - 1) < 0.02 + error / 10
    if graph.cutoff != 6.0:
        assert abs(unseen.n_edges.sum() / sum(counted) - 1) > 0.2, "the side table would have done"


def test_records_that_cannot_be_used_do_not_spoil_the_estimate(make_system):
    good = list(slabs(10, 0))
    lonely = make_system(1, cell=np.eye(3, dtype="f4") * 30)
    graph = GraphSpec(4.5, 0)
    mixed = InMemoryDataset([lonely, *good, lonely])
    assert fit_edge_cost(mixed, graph) == fit_edge_cost(InMemoryDataset(good), graph)
    with pytest.raises(DataError, match=r"cannot be counted in any of 1 records .*no two of its 1 atoms"):
        fit_edge_cost(InMemoryDataset([lonely]), graph)


def test_a_sample_is_spread_over_the_whole_data_set():
    read = []

    class Recording(InMemoryDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    fit_edge_cost(Recording(list(slabs(20, 0))), GraphSpec(6.0, 50), sample=5)
    assert read == [0, 4, 9, 14, 19]
