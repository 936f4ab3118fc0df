"""Interactions that start or end at atoms: atom to edge, edge to atom, atom to atom (GemNet-OC, section 4)."""

from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet, Topology
from ocpgem.models.gemnet.bases import TripletBasis
from ocpgem.models.gemnet.basis import self_product
from ocpgem.models.gemnet.config import AtomAtomConfig, AtomEdgeConfig, GemNetConfig
from ocpgem.models.gemnet.densities import density, read_degrees, read_together
from ocpgem.models.gemnet.edge_ops import (
    from_source,
    gather_sources,
    pad_by_target,
    stack,
    sum_to_target,
    unpad,
)
from ocpgem.models.gemnet.fit_counts import mixed_triplets_per_edge
from ocpgem.models.gemnet.layers import Dense, float32_region
from ocpgem.models.gemnet.products import product
from ocpgem.models.gemnet.triplets import Bilinear, EdgeMessages, EdgeUpdate


def mixed_angular_sum(
    x: Tensor,
    harmonics: Tensor,
    incoming: EdgeSet,
    readers: Tensor,
    outgoing: EdgeSet,
    common_incoming: Tensor,
    common_outgoing: Tensor,
    n_spherical: int,
) -> Tensor:
    """As `angular_sum`, where the edges that are summed and those that read are of two graphs.

    x: [n_incoming, channels]; harmonics, readers: of incoming and outgoing edges, padded by target. An edge that both
    graphs have (rows `common_*`) does not read itself. Returns [n_outgoing, n_spherical, channels].
    """
    summed = density(harmonics, pad_by_target(x, incoming))
    own = x.index_select(0, common_incoming)
    together = read_together(readers, summed)
    if together is not None:
        own_terms = own.unsqueeze(1) * x.new_tensor(self_product(n_spherical))[:, None]
        return unpad(together, outgoing.slot).index_add(0, common_outgoing, own_terms, alpha=-1)
    read = read_degrees(readers, summed, n_spherical)
    rows = [
        unpad(of_degree, outgoing.slot).index_add(0, common_outgoing, own, alpha=-value)
        for of_degree, value in zip(read, self_product(n_spherical), strict=True)
    ]
    return stack(rows, dim=1)


class AtomToEdgeInteraction(nn.Module):
    """Updates each edge c -> a from the atoms b around a."""

    def __init__(self, config: GemNetConfig, sizes: AtomEdgeConfig) -> None:
        super().__init__()
        self.n_spherical = config.n_spherical
        self.messages = EdgeMessages(config.atom_dim, config.radial_dim, sizes.in_dim)
        self.bilinear = Bilinear(sizes.in_dim, sizes.circular_dim, sizes.out_dim)
        self.update = EdgeUpdate(sizes.out_dim, config.edge_dim)

    def forward(
        self, h: Tensor, basis: TripletBasis, harmonics: Tensor, readers: Tensor, topology: Topology
    ) -> Tensor:
        """h [n_atoms, atom_dim] -> [n_edges, edge_dim]; harmonics of the atom-edge graph, readers of the main one."""
        incoming, common = topology.atom_edge, topology.common
        assert incoming is not None
        assert common is not None
        x = self.messages.weighted(
            from_source(gather_sources(self.messages.dense(h), incoming), incoming), basis.radial
        )
        with float32_region(x):
            summed = mixed_angular_sum(
                x.to(harmonics.dtype),
                harmonics,
                incoming,
                readers,
                topology.main,
                common.atom_edge,
                common.main,
                self.n_spherical,
            )
        observed = self.bilinear.scale_sum.is_observed
        times = mixed_triplets_per_edge(incoming, topology.main, common.atom_edge) if observed else None
        return self.update(self.bilinear.of_sums(basis.circular, summed, x, times), topology.main)


class EdgeToAtomInteraction(nn.Module):
    """Updates each atom a from the edges b -> a, seen from the atoms c around a."""

    def __init__(self, config: GemNetConfig, sizes: AtomEdgeConfig) -> None:
        super().__init__()
        self.n_spherical = config.n_spherical
        self.messages = EdgeMessages(config.edge_dim, config.radial_dim, sizes.in_dim)
        self.bilinear = Bilinear(sizes.in_dim, sizes.circular_dim, sizes.out_dim)
        self.up = Dense(sizes.out_dim, config.atom_dim, activation=True)

    def forward(
        self, m: Tensor, basis: TripletBasis, harmonics: Tensor, readers: Tensor, topology: Topology
    ) -> Tensor:
        """m [n_edges, edge_dim] -> [n_atoms, atom_dim]; harmonics of the main graph, readers of the atom-edge one."""
        outgoing, common = topology.atom_edge, topology.common
        assert outgoing is not None
        assert common is not None
        x = self.messages(m, basis.radial)
        with float32_region(x):
            summed = mixed_angular_sum(
                x.to(harmonics.dtype),
                harmonics,
                topology.main,
                readers,
                outgoing,
                common.main,
                common.atom_edge,
                self.n_spherical,
            )
        combined = product(basis.circular, summed).flatten(1)  # [n_outgoing, circular_dim * in_dim]
        of_atoms = sum_to_target(combined.to(basis.circular.dtype), outgoing)
        observed = self.bilinear.scale_sum.is_observed
        times = mixed_triplets_per_edge(topology.main, outgoing, common.main) if observed else None
        return self.up(self.bilinear(of_atoms, x, times))


class AtomAtomInteraction(nn.Module):
    """Updates each atom from the atoms around it, by distance alone."""

    def __init__(self, config: GemNetConfig, sizes: AtomAtomConfig) -> None:
        super().__init__()
        self.down = Dense(config.atom_dim, sizes.in_dim, activation=True)
        self.bilinear = Bilinear(sizes.in_dim, config.radial_dim, sizes.out_dim)
        self.up = Dense(sizes.out_dim, config.atom_dim, activation=True)

    def forward(self, h: Tensor, radial: Tensor, edges: EdgeSet) -> Tensor:
        """h [n_atoms, atom_dim], radial [n_atoms, max_degree, radial_dim] -> [n_atoms, atom_dim]."""
        x = from_source(gather_sources(self.down(h), edges), edges)  # [n_edges, in_dim]
        with float32_region(x):
            summed = density(radial, pad_by_target(x.to(radial.dtype), edges))
        return self.up(self.bilinear(summed, x))
