"""Batches filled up with ghosts: the same numbers, few sizes, tables that are still consistent."""

import pytest
import torch

from ocpgem.graph.buckets import Buckets, fill, shape_of
from ocpgem.graph.topology import Topology
from tests.structures import case_config, random_potential, random_slabs, topology_of

N_ATOMS = [tuple(4 + (seed * 3 + place * 5) % 6 for place in range(1 + seed % 3)) for seed in range(12)]
"""Of the systems of twelve batches, no two alike."""


def padded(topology: Topology) -> Topology:
    filled = Buckets().pad(topology)
    assert filled.padding is not None
    assert filled.n_atoms > topology.n_atoms
    return filled


@pytest.mark.parametrize("case", ["gemnet_T", "gemnet_dT", "gemnet_Q", "gemnet_OC"])
def test_ghosts_change_no_energy_force_or_gradient(case: str) -> None:
    potential = random_potential(case_config(case, n_blocks=1), torch.float64).train()
    batch = random_slabs((9, 5))
    topology = topology_of(batch, potential.graph_spec)
    found = []
    for each in (topology, padded(topology)):
        predicted = potential(batch, each)
        potential.zero_grad()
        (predicted.energy.sum() + predicted.forces.square().sum()).backward()
        gradients = [weight.grad.clone() for weight in potential.parameters() if weight.grad is not None]
        found.append([predicted.energy, predicted.forces, *gradients])
    for plain, filled in zip(*found, strict=True):
        assert (plain - filled).abs().max() <= 1e-10 * plain.abs().max()


@pytest.mark.parametrize("case", ["gemnet_dT", "gemnet_OC"])
def test_batches_of_many_sizes_get_few_shapes(case: str) -> None:
    spec = case_config(case).graph_spec
    topologies = [topology_of(random_slabs(n_atoms, seed=seed), spec) for seed, n_atoms in enumerate(N_ATOMS)]
    assert len({tuple(shape_of(topology).values()) for topology in topologies}) == len(topologies)
    buckets = Buckets(most=3)
    filled = [buckets.pad(topology) for topology in topologies]
    assert 1 < len(buckets.shapes) <= 3
    for before, after in zip(topologies, filled, strict=True):
        # What no shape holds stays as it is.
        assert shape_of(after) in buckets.shapes if after is not before else after.padding is None
    assert any(after is not before for before, after in zip(topologies, filled, strict=True))
    again = [buckets.pad(topology) for topology in topologies]
    assert len(buckets.shapes) <= 3
    assert shape_of(again[0]) == shape_of(filled[0])


def test_filled_edges_are_still_sorted_and_closed_under_reversal() -> None:
    topology = topology_of(random_slabs((9, 5)), case_config("gemnet_OC").graph_spec)
    filled = padded(topology)
    edges, n_real = filled.main, topology.main.n_edges
    source, target = edges.edge_index
    back = edges.reverse_edge
    assert torch.equal(back[back], torch.arange(edges.n_edges))
    assert torch.equal(edges.cell_offsets[back], -edges.cell_offsets)
    assert torch.equal(source[back], target)
    assert (target.diff() >= 0).all()
    assert (edges.edge_index[:, :n_real] < topology.n_atoms).all()
    assert (edges.edge_index[:, n_real:] >= topology.n_atoms).all()
    for each in (filled.main, filled.atom_edge, filled.quadruplet, filled.atom_atom):
        assert each is not None
        assert each.edge_ptr.diff().max() <= each.max_degree
        assert each.slot.unique().numel() == each.n_edges
        assert int(each.n_edges_per_system.sum()) == each.n_edges


def test_tables_of_ghosts_read_ghosts_only() -> None:
    topology = topology_of(random_slabs((9, 5)), case_config("gemnet_OC").graph_spec)
    filled = fill(topology, shape_of(padded(topology)))
    before, after = topology.quadruplets, filled.quadruplets
    assert before is not None
    assert after is not None
    assert topology.quadruplet is not None
    for old, new in ((before.inner, after.inner), (before.outer, after.outer)):
        n_real = len(old.main_edge)
        assert torch.equal(new.main_edge[:n_real], old.main_edge)
        assert (new.main_edge[n_real:] >= topology.main.n_edges).all()
        assert (new.middle_edge[n_real:] >= topology.quadruplet.n_edges).all()
        assert new.slot.unique().numel() == new.main_slot.unique().numel() == len(new.main_edge)
