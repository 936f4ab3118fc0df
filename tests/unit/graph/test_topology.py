"""Topology of a batch: consistent indices, independent systems, clear refusals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, bulk, fcc111

from ocpgem.errors import DataError, RequestError
from ocpgem.graph.system_edges import system_edges
from ocpgem.graph.topology import GraphSpec, Topology, build_topology, concat

SPEC = GraphSpec(cutoff=6.0, max_neighbors=20)


@pytest.fixture(scope="module")
def systems() -> list:
    slab = fcc111("Cu", (2, 2, 3), vacuum=7.0, periodic=True)
    add_adsorbate(slab, "O", 1.2, "fcc")
    made = [slab, bulk("Pt"), fcc111("Al", (3, 2, 4), vacuum=5.0, periodic=True)]
    for seed, atoms in enumerate(made):
        atoms.rattle(0.1, seed=seed)
    return made


def as_batch(systems: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor(np.concatenate([atoms.positions for atoms in systems]), dtype=torch.float32),
        torch.tensor(np.stack([atoms.cell.array for atoms in systems]), dtype=torch.float32),
        torch.tensor(np.stack([atoms.pbc for atoms in systems])),
        torch.tensor([len(atoms) for atoms in systems]),
    )


@pytest.fixture(scope="module")
def topology(systems) -> Topology:
    return build_topology(*as_batch(systems), SPEC)


def test_edges_are_sorted_by_target_and_point_to_consistent_rows(topology: Topology):
    edges = topology.main
    source, target = edges.edge_index
    assert (target.diff() >= 0).all()
    assert edges.edge_ptr.shape == (topology.n_atoms + 1,)
    assert torch.equal(edges.edge_ptr.diff(), torch.bincount(target, minlength=topology.n_atoms))
    assert edges.max_degree == int(edges.edge_ptr.diff().max())
    assert torch.equal(topology.batch[source], topology.batch[target])
    assert torch.equal(torch.bincount(topology.batch[target]), edges.n_edges_per_system)
    assert edges.n_edges == len(target)


def test_reverse_edges_are_opposite_and_in_the_same_system(topology: Topology):
    edges = topology.main
    back = edges.reverse_edge
    assert torch.equal(back[back], torch.arange(edges.n_edges))
    assert torch.equal(edges.edge_index[:, back], edges.edge_index.flip(0))
    assert torch.equal(edges.cell_offsets[back], -edges.cell_offsets)


def test_slots_are_the_places_of_a_padded_table(topology: Topology):
    edges = topology.main
    assert len(edges.slot.unique()) == edges.n_edges
    assert torch.equal(edges.slot // edges.max_degree, edges.edge_index[1])
    first = edges.edge_ptr[:-1][edges.edge_ptr.diff() > 0]
    assert (edges.slot[first] % edges.max_degree == 0).all()


def test_vectors_are_no_longer_than_the_cutoff(topology: Topology, systems):
    pos, cell, _, _ = (t.double() for t in as_batch(systems))
    source, target = topology.main.edge_index
    shift = torch.einsum("ei,eij->ej", topology.main.cell_offsets.double(), cell[topology.batch[target]])
    distance = (pos[target] - (pos[source] + shift)).norm(dim=1)
    assert distance.min() > 0.01
    assert distance.max() <= SPEC.cutoff + 1e-6


def test_a_batch_is_its_systems_one_after_another(topology: Topology, systems):
    first_atom = first_edge = 0
    for index, atoms in enumerate(systems):
        alone = build_topology(*as_batch([atoms]), SPEC).main
        part = slice(first_edge, first_edge + alone.n_edges)
        assert torch.equal(topology.main.edge_index[:, part] - first_atom, alone.edge_index)
        assert torch.equal(topology.main.cell_offsets[part], alone.cell_offsets)
        assert torch.equal(topology.main.reverse_edge[part] - first_edge, alone.reverse_edge)
        assert (topology.batch[first_atom : first_atom + len(atoms)] == index).all()
        first_atom, first_edge = first_atom + len(atoms), first_edge + alone.n_edges
    assert topology.n_systems == 3
    assert (topology.n_atoms, topology.main.n_edges) == (first_atom, first_edge)


def test_edges_made_apart_join_to_the_same_topology(topology: Topology, systems):
    parts = [system_edges(a.positions.astype("f4"), a.cell.array.astype("f4"), a.pbc, SPEC) for a in systems]
    joined = concat(pickle.loads(pickle.dumps(parts)))
    for name in ("edge_index", "cell_offsets", "reverse_edge", "edge_ptr", "slot", "n_edges_per_system"):
        assert torch.equal(getattr(joined.main, name), getattr(topology.main, name)), name
    assert torch.equal(joined.batch, topology.batch)


def test_an_isolated_atom_beside_bound_ones_has_no_edges_but_a_row():
    pos = torch.tensor([[0.0, 0, 0], [9.0, 9, 9], [1.5, 0, 0]])
    topology = build_topology(
        pos, torch.eye(3)[None] * 30, torch.ones(1, 3, dtype=torch.bool), torch.tensor([3]), SPEC
    )
    assert topology.main.edge_ptr.tolist() == [0, 1, 1, 2]
    assert topology.main.max_degree == 1


def test_a_system_without_neighbours_is_named(systems):
    lone = systems[1].copy()
    lone.set_cell(np.eye(3) * 20)
    batch = as_batch([systems[0], lone])
    with pytest.raises(DataError, match=r"^system 1 of the batch: no two of its 1 atoms are within 6.0 A"):
        build_topology(*batch, SPEC)
    with pytest.raises(DataError, match=r"^sid 7, frame 2: no two"):
        build_topology(*batch, SPEC, names=["sid 5, frame 1", "sid 7, frame 2"])


def test_a_system_with_a_position_that_is_not_a_number_is_named(systems):
    broken = systems[0].copy()
    broken.positions[3, 1] = np.nan
    with pytest.raises(DataError, match=r"^system 2 of the batch: atom 3 is at"):
        build_topology(*as_batch([systems[0], systems[1], broken]), SPEC)


def test_counts_that_do_not_fit_the_positions_are_refused(systems):
    pos, cell, pbc, n_atoms = as_batch(systems)
    with pytest.raises(DataError, match="n_atoms adds up to"):
        build_topology(pos, cell, pbc, n_atoms + 1, SPEC)
    with pytest.raises(DataError, match="3 systems"):
        build_topology(pos, cell[:2], pbc, n_atoms, SPEC)


@pytest.mark.parametrize(("cutoff", "max_neighbors"), [(0.0, 20), (-1.0, 20), (float("nan"), 20), (6.0, -1)])
def test_a_graph_that_cannot_be_is_refused(cutoff: float, max_neighbors: int):
    with pytest.raises(RequestError):
        GraphSpec(cutoff, max_neighbors)


def test_no_limit_keeps_every_neighbour(systems):
    everything = build_topology(*as_batch(systems), GraphSpec(6.0, 0)).main
    assert everything.n_edges > build_topology(*as_batch(systems), SPEC).main.n_edges


def test_moving_to_a_device_moves_every_tensor(topology: Topology):
    moved = topology.to("meta")
    assert all(tensor.is_meta for tensor in (moved.main.edge_index, moved.main.slot, moved.batch))
    assert moved.main.max_degree == topology.main.max_degree
    assert topology.batch.device.type == "cpu"
    assert torch.equal(copy.copy(topology).to("cpu").main.slot, topology.main.slot)
