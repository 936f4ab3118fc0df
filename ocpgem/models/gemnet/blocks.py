"""The interaction block and the pieces it shares with the output heads (GemNet, fig. 2)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet, SymmetricEdgeSet, Topology
from ocpgem.models.gemnet.activation import scaled_silu
from ocpgem.models.gemnet.atom_paths import AtomAtomInteraction, AtomToEdgeInteraction, EdgeToAtomInteraction
from ocpgem.models.gemnet.bases import Basis
from ocpgem.models.gemnet.chains import residual_stack, widening_stack
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import from_source, from_target, gather_sources, sum_to_target
from ocpgem.models.gemnet.filters import filtered
from ocpgem.models.gemnet.layers import (
    Dense,
    ScaleFactor,
    combine,
    he_orthogonal_,
    skip,
)
from ocpgem.models.gemnet.quadruplets import QuadrupletInteraction
from ocpgem.models.gemnet.triplets import TripletInteraction

Call = Callable[..., Any]
"""Calls the first argument with the others."""


def call_directly(part: Callable[..., Any], *args: Any) -> Any:
    """part(*args)."""
    return part(*args)


class AtomEmbedding(nn.Module):
    """A trainable vector per element, uniform in (-sqrt 3, sqrt 3) at the start.

    shared: the vector of an element is the sum of one that all elements share and one of its own, so that an element
    that training does not show need not have a random one (see `start_from_shared`).
    """

    def __init__(self, n_elements: int, atom_dim: int, shared: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_elements, atom_dim).uniform_(-(3**0.5), 3**0.5))
        self.shared = None
        if shared:  # two halves of the variance
            self.shared = nn.Parameter(torch.empty(atom_dim).uniform_(-(1.5**0.5), 1.5**0.5))
            with torch.no_grad():
                self.weight.mul_(0.5**0.5)

    def start_from_shared(self, elements: Iterable[int]) -> None:
        """Let all elements but these (atomic numbers) start with the shared vector alone."""
        shown = torch.zeros(len(self.weight), dtype=torch.bool)
        shown[torch.tensor(sorted(elements)) - 1] = True
        with torch.no_grad():
            self.weight[~shown] = 0

    def forward(self, atomic_numbers: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[n_atoms] -> [n_atoms, atom_dim]; hidden: [n_atoms], atoms that get the shared vector alone."""
        own = F.embedding(atomic_numbers - 1, self.weight)
        if self.shared is None:
            return own
        return self.shared + (own if hidden is None else own * (~hidden).unsqueeze(1))


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
        # h has fewer channels than its product with the weight, so that is computed where it is needed.
        of_sources = from_source(F.linear(gather_sources(h, edges), w_source), edges)
        of_atoms = of_sources + from_target(F.linear(h, w_target), edges)
        return scaled_silu(F.linear(x, w_x) + of_atoms)


class EdgesToAtoms(nn.Module):
    """Sums edge embeddings, weighted by a radial filter, to their target atoms, then applies dense layers."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        layers = config.layers
        self.radial = Dense(config.radial_dim, config.edge_dim)
        self.scale_sum = ScaleFactor()
        self.layers = widening_stack(config.edge_dim, config.atom_dim, layers.atom, layers.leading_dense)

    def forward(self, m: Tensor, radial: Tensor, edges: EdgeSet) -> Tensor:
        """m [n_edges, edge_dim], radial [n_edges, radial_dim] -> [n_atoms, atom_dim]."""
        filters = self.scale_sum(self.radial.weight)
        weighted = filtered(m, radial, filters)
        summed = sum_to_target(weighted.to(radial.dtype), edges)
        return self.layers(self.scale_sum.observe(summed, m))


class InteractionBlock(nn.Module):
    """One round of message passing. All interactions read the block's input."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        layers, edge_dim, path = config.layers, config.edge_dim, config.atom_edge
        self.dense = Dense(edge_dim, edge_dim, activation=True)
        self.triplets = TripletInteraction(config)
        self.quadruplets = QuadrupletInteraction(config, config.quadruplets) if config.quadruplets else None
        self.atom_to_edge = AtomToEdgeInteraction(config, path) if path and path.to_edges else None
        self.edge_to_atom = EdgeToAtomInteraction(config, path) if path and path.to_atoms else None
        self.atom_atom = AtomAtomInteraction(config, config.atom_atom) if config.atom_atom else None
        self.before_skip = residual_stack(edge_dim, layers.before_skip)
        self.after_skip = residual_stack(edge_dim, layers.after_skip)
        self.atom_layers = residual_stack(config.atom_dim, layers.atom_embedding)
        self.to_atoms = EdgesToAtoms(config)
        self.edge_update = EdgeEmbedding(config.atom_dim, edge_dim, edge_dim)
        self.after_edge_update = residual_stack(edge_dim, layers.concat)

    def forward(
        self, h: Tensor, m: Tensor, basis: Basis, topology: Topology, call: Call = call_directly
    ) -> tuple[Tensor, Tensor]:
        """h [n_atoms, atom_dim], m [n_edges, edge_dim] -> the same, updated.

        call: how each part is called; what is computed between the parts keeps nothing for the gradient.
        """
        x = combine(*self._edge_terms(h, m, basis, topology, call))
        h = call(self._interact_atoms, h, m, basis, topology)
        return call(self._update, x, h, m, basis, topology.main)

    def _edge_terms(self, h: Tensor, m: Tensor, basis: Basis, topology: Topology, call: Call) -> list[Tensor]:
        edges = topology.main
        terms = [call(self.dense, m), call(self.triplets, m, basis.triplets, basis.harmonics, edges)]
        if self.quadruplets is not None:
            terms.append(call(self.quadruplets, m, basis.quadruplets, topology))
        if self.atom_to_edge is not None:
            harmonics, readers = basis.atom_edge_harmonics, basis.harmonics
            terms.append(call(self.atom_to_edge, h, basis.atom_to_edge, harmonics, readers, topology))
        return terms

    def _interact_atoms(self, h: Tensor, m: Tensor, basis: Basis, topology: Topology) -> Tensor:
        """The atoms [n_atoms, atom_dim] after all interactions with them."""
        terms = [h]
        if self.edge_to_atom is not None:
            harmonics, readers = basis.harmonics, basis.atom_edge_harmonics
            terms.append(self.edge_to_atom(m, basis.edge_to_atom, harmonics, readers, topology))
        if self.atom_atom is not None:
            terms.append(self.atom_atom(h, basis.atom_atom, topology.atom_atom))
        return self.atom_layers(combine(*terms))

    def _update(
        self, x: Tensor, h: Tensor, m: Tensor, basis: Basis, edges: SymmetricEdgeSet
    ) -> tuple[Tensor, Tensor]:
        """The embeddings h and m after the block, from what the interactions gave and the edges `m` before it."""
        m = self.after_skip(skip(m, self.before_skip(x)))
        h = skip(h, self.to_atoms(m, basis.radial_atom, edges))
        m = skip(m, self.after_edge_update(self.edge_update(h, m, edges)))
        return h, m
