"""The interaction block and the pieces it shares with the output heads (GemNet, fig. 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import from_source, from_target, sum_to_target
from ocpgem.models.gemnet.geometry import EdgeBasis
from ocpgem.models.gemnet.layers import (
    Dense,
    ScaleFactor,
    he_orthogonal_,
    residual_stack,
    scaled_silu,
    skip,
    widening_stack,
)
from ocpgem.models.gemnet.triplets import TripletInteraction


class AtomEmbedding(nn.Module):
    """A trainable vector per element, uniform in (-sqrt 3, sqrt 3) at the start."""

    def __init__(self, n_elements: int, atom_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_elements, atom_dim).uniform_(-(3**0.5), 3**0.5))

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """[n_atoms] -> [n_atoms, atom_dim]."""
        return F.embedding(atomic_numbers - 1, self.weight)


class EdgeEmbedding(nn.Module):
    """act(W concat(h_source, h_target, x)), with the atoms' parts multiplied once per atom instead of once per edge.

    The weight is [edge_dim, 2 * atom_dim + x_dim], in the order source, target, x.
    """

    def __init__(self, atom_dim: int, x_dim: int, edge_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(edge_dim, 2 * atom_dim + x_dim))
        he_orthogonal_(self.weight)
        self.sizes = [atom_dim, atom_dim, x_dim]

    def forward(self, h: Tensor, x: Tensor, edges: EdgeSet) -> Tensor:
        """h [n_atoms, atom_dim], x [n_edges, x_dim] -> [n_edges, edge_dim]."""
        w_source, w_target, w_x = self.weight.split(self.sizes, dim=1)
        of_atoms = from_source(F.linear(h, w_source), edges) + from_target(F.linear(h, w_target), edges)
        return scaled_silu(F.linear(x, w_x) + of_atoms)


class EdgesToAtoms(nn.Module):
    """Sums edge embeddings, weighted by a radial filter, to their target atoms, then applies dense layers."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.radial = Dense(config.radial_dim, config.edge_dim)
        self.scale_sum = ScaleFactor()
        self.layers = widening_stack(config.edge_dim, config.atom_dim, config.layers.atom)

    def forward(self, m: Tensor, radial: Tensor, edges: EdgeSet) -> Tensor:
        """m [n_edges, edge_dim], radial [n_edges, radial_dim] -> [n_atoms, atom_dim]."""
        weighted = m * (radial @ self.scale_sum(self.radial.weight).t())
        summed = self.scale_sum.observe(sum_to_target(weighted.to(radial.dtype), edges), m)
        return self.layers(summed)


class InteractionBlock(nn.Module):
    """One round of message passing. All interactions read the block's input."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        layers, edge_dim = config.layers, config.edge_dim
        self.dense = Dense(edge_dim, edge_dim, activation=True)
        self.triplets = TripletInteraction(config)
        self.before_skip = residual_stack(edge_dim, layers.before_skip)
        self.after_skip = residual_stack(edge_dim, layers.after_skip)
        self.to_atoms = EdgesToAtoms(config)
        self.edge_update = EdgeEmbedding(config.atom_dim, edge_dim, edge_dim)
        self.after_edge_update = residual_stack(edge_dim, layers.concat)

    def forward(self, h: Tensor, m: Tensor, basis: EdgeBasis, edges: EdgeSet) -> tuple[Tensor, Tensor]:
        """h [n_atoms, atom_dim], m [n_edges, edge_dim] -> the same, updated."""
        x = skip(self.dense(m), self.triplets(m, basis, edges))
        m = self.after_skip(skip(m, self.before_skip(x)))
        h = skip(h, self.to_atoms(m, basis.radial_atom, edges))
        m = skip(m, self.after_edge_update(self.edge_update(h, m, edges)))
        return h, m
