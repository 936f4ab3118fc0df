"""Sums over triplets of two graphs equal the explicit ones, in value, gradient and second gradient."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.topology import EdgeSet, Topology
from ocpgem.models.gemnet.atom_paths import AtomAtomInteraction, mixed_angular_sum
from ocpgem.models.gemnet.basis import scaled_harmonics
from ocpgem.models.gemnet.config import AtomAtomConfig
from ocpgem.models.gemnet.edge_ops import pad_by_target
from ocpgem.models.gemnet.geometry import edge_geometry
from tests.edge_lists import edge_rows
from tests.explicit_sums import assert_same_derivatives, sum_over_triplets
from tests.structures import molecule, random_slabs, small_config, topology_of

N_SPHERICAL = 5
SPECS = {
    "atom-edge graph larger": GraphSpec(3.8, 0, atom_edge=Limit(4.6, 0)),
    "atom-edge graph smaller": GraphSpec(4.6, 0, atom_edge=Limit(3.8, 0)),
    "both cut, neither within the other": GraphSpec(
        4.2, 5, atom_edge=Limit(4.6, 7), atom_atom=Limit(4.8, 30), self_images="positive"
    ),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_direction = pytest.mark.parametrize("to_edges", [True, False], ids=["atoms to edges", "edges to atoms"])


def small_cells() -> SimpleNamespace:
    """Cells smaller than the cutoffs, so that triplets meet images of their own atoms."""
    batch = random_slabs((4, 2, 3))
    batch.cell, batch.pos = batch.cell * 0.75, batch.pos * 0.75
    return batch


def graphs(topology: Topology, to_edges: bool) -> tuple[EdgeSet, EdgeSet, Tensor, Tensor]:
    """Incoming and outgoing edges, and the rows of either of those that both have."""
    main, other, common = topology.main, topology.atom_edge, topology.common
    if to_edges:
        return other, main, common.atom_edge, common.main
    return main, other, common.main, common.atom_edge


def forms(
    batch: SimpleNamespace, topology: Topology, to_edges: bool
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The sum by densities and the explicit one, of x [n_incoming, channels] and positions."""
    incoming, outgoing, common_incoming, common_outgoing = graphs(topology, to_edges)

    def directions(pos: Tensor) -> tuple[Tensor, Tensor]:
        of_both = [edge_geometry(pos, batch.cell, topology.batch, edges) for edges in (incoming, outgoing)]
        return of_both[0].direction, of_both[1].direction

    def by_densities(x: Tensor, pos: Tensor) -> Tensor:
        of_incoming, of_outgoing = directions(pos)
        return mixed_angular_sum(
            x,
            pad_by_target(scaled_harmonics(of_incoming, N_SPHERICAL), incoming),
            incoming,
            pad_by_target(scaled_harmonics(of_outgoing, N_SPHERICAL), outgoing),
            outgoing,
            common_incoming,
            common_outgoing,
            N_SPHERICAL,
        )

    rows_in, rows_out = torch.from_numpy(edge_rows(incoming)), torch.from_numpy(edge_rows(outgoing))
    same_target = rows_out[:, None, 1] == rows_in[None, :, 1]
    same_edge = (rows_out[:, None] == rows_in[None, :]).all(-1)
    out_edge, in_edge = torch.nonzero(same_target & ~same_edge, as_tuple=True)

    def explicit(x: Tensor, pos: Tensor) -> Tensor:
        of_incoming, of_outgoing = directions(pos)
        return sum_over_triplets(x, of_outgoing, of_incoming, out_edge, in_edge, N_SPHERICAL)

    return by_densities, explicit


def random_values(incoming: EdgeSet) -> Tensor:
    x = torch.randn(incoming.n_edges, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x.requires_grad_()


@each_spec
@each_direction
def test_sum_equals_the_explicit_one(spec: GraphSpec, to_edges: bool) -> None:
    batch = small_cells()
    topology = topology_of(batch, spec)
    incoming, outgoing, common, _ = graphs(topology, to_edges)
    assert 0 < len(common) < max(incoming.n_edges, outgoing.n_edges)
    by_densities, explicit = forms(batch, topology, to_edges)
    x = random_values(incoming)
    torch.testing.assert_close(by_densities(x, batch.pos), explicit(x, batch.pos), rtol=1e-12, atol=1e-12)


@each_spec
@each_direction
def test_gradients_and_second_gradients_equal_those_of_the_explicit_sum(
    spec: GraphSpec, to_edges: bool
) -> None:
    batch = small_cells()
    topology = topology_of(batch, spec)
    by_densities, explicit = forms(batch, topology, to_edges)
    x = random_values(graphs(topology, to_edges)[0])
    assert_same_derivatives(by_densities, explicit, x, batch.pos.clone().requires_grad_())


@each_direction
def test_two_atoms_have_no_triplet(to_edges: bool) -> None:
    batch = molecule([[0.0, 0, 0], [1.0, 0.5, 0]])
    topology = topology_of(batch, GraphSpec(3.0, 0, atom_edge=Limit(2.0, 0)))
    by_densities, _ = forms(batch, topology, to_edges)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert by_densities(x, batch.pos).abs().max() < 1e-15


def test_the_sum_over_atoms_equals_the_one_over_listed_edges() -> None:
    batch = random_slabs()
    topology = topology_of(batch, GraphSpec(3.0, 0, atom_atom=Limit(5.0, 0)))
    edges, config = topology.atom_atom, small_config("gemnet_dT")
    torch.manual_seed(0)
    layer = AtomAtomInteraction(config, AtomAtomConfig(in_dim=3, out_dim=4)).double()
    h = torch.randn(14, config.atom_dim, dtype=torch.float64)
    radial = torch.randn(edges.n_edges, config.radial_dim, dtype=torch.float64)
    source, target = edges.edge_index
    terms = radial[:, :, None] * layer.down(h)[source][:, None, :]
    summed = torch.zeros(14, config.radial_dim, 3, dtype=torch.float64).index_add(0, target, terms)
    expected = layer.up(torch.einsum("nrj,jro->no", summed, layer.bilinear.weight))
    torch.testing.assert_close(layer(h, pad_by_target(radial, edges), edges), expected)
