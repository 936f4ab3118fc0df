"""The interaction over triplets b -> a <- c, summed in O(edges) through densities (spec/density.md A)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.graph.topology import SymmetricEdgeSet
from ocpgem.models.gemnet.activation import scaled_silu, skip_activated
from ocpgem.models.gemnet.bases import TripletBasis
from ocpgem.models.gemnet.basis import self_product
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.densities import density, read_degrees, read_together
from ocpgem.models.gemnet.edge_ops import pad_by_target, reverse, stack, unpad
from ocpgem.models.gemnet.filters import filtered
from ocpgem.models.gemnet.fit_counts import triplets_per_edge
from ocpgem.models.gemnet.in_blocks import final_product
from ocpgem.models.gemnet.layers import (
    Dense,
    Frugal,
    ScaleFactor,
    float32_region,
    he_orthogonal_,
)
from ocpgem.models.gemnet.products import product


def angular_sum(x: Tensor, harmonics: Tensor, n_spherical: int) -> Tensor:
    """Sum over the other edges of the same target, weighted by the circular harmonics of the angle between them.

    H[a, e, l, c] = sum over f != e of Y_l0(angle(e, f)) x[a, f, c], where e and f are edges that end at atom a. The
    addition theorem splits the angle: edges are summed into a density per atom, which each edge then reads.

    x: [n_atoms, max_degree, channels], zero-padded; harmonics: [n_atoms, max_degree, n_spherical^2], zero-padded.
    Returns [n_atoms, max_degree, n_spherical, channels]; rows of the padding hold zeros.
    """
    summed = density(harmonics, x)
    together = read_together(harmonics, summed)
    if together is not None:
        own_terms = x.new_tensor(self_product(n_spherical))[:, None]
        return torch.addcmul(together, x.unsqueeze(2), own_terms, value=-1)
    read = read_degrees(harmonics, summed, n_spherical)
    per_degree = [
        torch.sub(of_degree, x, alpha=own)
        for of_degree, own in zip(read, self_product(n_spherical), strict=True)
    ]
    return stack(per_degree, dim=2)


class Bilinear(Frugal, nn.Module):
    """Sums weighted by a basis -> out_dim channels, with the scale factor of the sum.

    The weight is [in_dim, basis_dim, out_dim].
    """

    def __init__(self, in_dim: int, basis_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, basis_dim, out_dim))
        he_orthogonal_(self.weight)
        self.scale_sum = ScaleFactor()

    def forward(self, x: Tensor, reference: Tensor, times: Tensor | None = None) -> Tensor:
        """x: [n, basis_dim, in_dim]; reference, times: rows that were summed, how often each, for the scale factor."""
        return self.scale_sum.observe(F.linear(x.flatten(1), self._matrix()), reference, times)

    def of_sums(self, basis: Tensor, sums: Tensor, reference: Tensor, times: Tensor | None) -> Tensor:
        """As above for basis @ sums, [n, basis_dim, n_functions] @ [n, n_functions, in_dim], which is not kept."""
        found = self.by_rows(_bilinear_of_sums, (basis, sums), (self._matrix(),), observed=False)
        return self.scale_sum.observe(found, reference, times)

    def _matrix(self) -> Tensor:
        """The weight as [out_dim, basis_dim * in_dim]."""
        return self.scale_sum(self.weight).permute(2, 1, 0).flatten(1)


def _bilinear_of_sums(basis: Tensor, sums: Tensor, matrix: Tensor) -> Tensor:
    return final_product(product(basis, sums).flatten(1), matrix)


class EdgeMessages(Frugal, nn.Module):
    """Embeddings -> the few channels that are summed: a dense layer, the radial basis, a down-projection."""

    def __init__(self, dim: int, radial_dim: int, out_dim: int) -> None:
        super().__init__()
        self.dense = Dense(dim, dim, activation=True)
        self.radial = Dense(radial_dim, dim)
        self.scale_radial = ScaleFactor()
        self.down = Dense(dim, out_dim, activation=True)

    def weighted(self, x: Tensor, radial: Tensor) -> Tensor:
        """x, after the dense layer, times the radial basis: [n, dim], [n, radial_dim] -> [n, out_dim]."""
        return self._down(x, radial)

    def forward(self, x: Tensor, radial: Tensor) -> Tensor:
        return self._down(self.dense.product(x), radial, scaled_silu)

    def _down(
        self, x: Tensor, radial: Tensor, activation: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        def filtered_down(x: Tensor, radial: Tensor, filters: Tensor, down: Tensor) -> Tensor:
            x = x if activation is None else activation(x)
            return final_product(self.scale_radial.observe(filtered(x, radial, filters), x), down)

        weights = self.scale_radial(self.radial.weight), self.down.weight
        return scaled_silu(self.by_rows(filtered_down, (x, radial), weights, self.scale_radial.is_observed))


class EdgeUpdate(Frugal, nn.Module):
    """Few channels -> an update of each edge from itself and from its reverse."""

    def __init__(self, in_dim: int, edge_dim: int) -> None:
        super().__init__()
        self.up = Dense(in_dim, edge_dim, activation=True)
        self.up_reverse = Dense(in_dim, edge_dim, activation=True)

    def forward(self, y: Tensor, edges: SymmetricEdgeSet) -> Tensor:
        """[n_edges, in_dim] -> [n_edges, edge_dim]."""
        weights = self.up.weight, self.up_reverse.weight
        return self.by_rows(_sum_of_both, (y, reverse(y, edges)), weights, observed=False)


def _sum_of_both(y: Tensor, reversed_y: Tensor, up: Tensor, up_reverse: Tensor) -> Tensor:
    return skip_activated(scaled_silu(F.linear(y, up)), F.linear(reversed_y, up_reverse))


class TripletInteraction(nn.Module):
    """Updates each edge c -> a from the edges b -> a that share its target (GemNet eq. 10, one-hop form)."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        triplets = config.triplets
        self.n_spherical = config.n_spherical
        self.messages = EdgeMessages(config.edge_dim, config.radial_dim, triplets.in_dim)
        self.bilinear = Bilinear(triplets.in_dim, triplets.circular_dim, triplets.out_dim)
        self.update = EdgeUpdate(triplets.out_dim, config.edge_dim)

    def forward(self, m: Tensor, basis: TripletBasis, harmonics: Tensor, edges: SymmetricEdgeSet) -> Tensor:
        """m [n_edges, edge_dim] -> update of the same shape; harmonics: [n_atoms, max_degree, n_spherical^2]."""
        x = self.messages(m, basis.radial)  # [n_edges, in_dim]
        with float32_region(x):
            padded = pad_by_target(x.to(harmonics.dtype), edges)
            summed = angular_sum(padded, harmonics, self.n_spherical)
        summed = unpad(summed, edges.slot)  # [n_edges, n_spherical, in_dim]
        times = triplets_per_edge(edges) if self.bilinear.scale_sum.is_observed else None
        return self.update(self.bilinear.of_sums(basis.circular, summed, x, times), edges)
