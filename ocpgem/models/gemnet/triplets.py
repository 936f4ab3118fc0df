"""The interaction over triplets b -> a <- c, summed in O(edges) through densities (spec/density.md A)."""

import torch
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.basis import self_product
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import pad, reverse, unpad
from ocpgem.models.gemnet.geometry import EdgeBasis
from ocpgem.models.gemnet.layers import Dense, ScaleFactor, float32_region, he_orthogonal_, skip


def angular_sum(x: Tensor, harmonics: Tensor, n_spherical: int) -> Tensor:
    """Sum over the other edges of the same target, weighted by the circular harmonics of the angle between them.

    H[a, e, l, c] = sum over f != e of Y_l0(angle(e, f)) x[a, f, c], where e and f are edges that end at atom a. The
    addition theorem splits the angle: edges are summed into a density per atom, which each edge then reads.

    x: [n_atoms, max_degree, channels], zero-padded; harmonics: [n_atoms, max_degree, n_spherical^2], zero-padded.
    Returns [n_atoms, max_degree, n_spherical, channels]; rows of the padding hold zeros.
    """
    density = harmonics.transpose(1, 2) @ x  # [n_atoms, n_spherical^2, channels]
    per_degree = []
    for degree, excluded in enumerate(self_product(n_spherical)):
        columns = slice(degree**2, (degree + 1) ** 2)
        read = harmonics[:, :, columns] @ density[:, columns]
        per_degree.append(torch.sub(read, x, alpha=excluded))
    return torch.stack(per_degree, dim=2)


class TripletInteraction(nn.Module):
    """Updates each edge c -> a from the edges b -> a that share its target (GemNet eq. 10, one-hop form)."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        edge_dim, triplets = config.edge_dim, config.triplets
        self.n_spherical = config.n_spherical
        self.dense_in = Dense(edge_dim, edge_dim, activation=True)
        self.radial = Dense(config.radial_dim, edge_dim)
        self.scale_radial = ScaleFactor()
        self.down = Dense(edge_dim, triplets.in_dim, activation=True)
        # [in_dim, circular_dim, out_dim]
        self.bilinear = nn.Parameter(torch.empty(triplets.in_dim, triplets.circular_dim, triplets.out_dim))
        he_orthogonal_(self.bilinear)
        self.scale_sum = ScaleFactor()
        self.up = Dense(triplets.out_dim, edge_dim, activation=True)
        self.up_reverse = Dense(triplets.out_dim, edge_dim, activation=True)

    def forward(self, m: Tensor, basis: EdgeBasis, edges: EdgeSet) -> Tensor:
        """m [n_edges, edge_dim] -> update of the same shape."""
        x = self.dense_in(m)
        projected = x * (basis.radial_triplet @ self.scale_radial(self.radial.weight).t())
        incoming = self.down(self.scale_radial.observe(projected, x))  # [n_edges, in_dim]
        y = self._sum_triplets(incoming, basis, edges)  # [n_edges, out_dim]
        y = self.scale_sum.observe(y, incoming)
        return skip(self.up(y), self.up_reverse(reverse(y, edges)))

    def _sum_triplets(self, x: Tensor, basis: EdgeBasis, edges: EdgeSet) -> Tensor:
        with float32_region(x):
            summed = angular_sum(pad(x.to(basis.harmonics.dtype), edges), basis.harmonics, self.n_spherical)
        summed = unpad(summed, edges)  # [n_edges, n_spherical, in_dim]
        combined = (basis.circular @ summed).flatten(1)  # [n_edges, circular_dim * in_dim]
        weight = (
            self.scale_sum(self.bilinear).transpose(0, 1).flatten(0, 1)
        )  # [circular_dim * in_dim, out_dim]
        return combined @ weight
