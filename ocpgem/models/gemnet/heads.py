"""Output heads: what the embeddings contribute to the energy of the atoms and to the force along the edges."""

from typing import cast

import torch
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.bases import Basis
from ocpgem.models.gemnet.blocks import EdgesToAtoms
from ocpgem.models.gemnet.chains import residual_stack, widening_stack
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.filters import filtered
from ocpgem.models.gemnet.in_blocks import final_product
from ocpgem.models.gemnet.layers import (
    Dense,
    Frugal,
    ScaleFactor,
    float32_region,
    skip,
)


class ScalarOutput(nn.Module):
    """The last layer, [n, dim] -> [n, 1], in the precision of the weights."""

    def __init__(self, config: GemNetConfig, dim: int) -> None:
        super().__init__()
        self.dense = Dense(dim, 1)
        if config.output_init == "zeros":
            nn.init.zeros_(self.dense.weight)

    def forward(self, x: Tensor) -> Tensor:
        with float32_region(x):
            return self.dense(x.to(self.dense.weight.dtype))


class EnergyBranch(nn.Module):
    """The embeddings after one block -> features of each atom, [n_atoms, atom_dim]."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.to_atoms = EdgesToAtoms(config)
        head = config.global_head
        self.adds_atoms = head is not None and head.after_atom > 0
        self.after_atom = residual_stack(config.atom_dim, head.after_atom if head else 0)

    def forward(self, h: Tensor, m: Tensor, basis: Basis, edges: EdgeSet) -> Tensor:
        x = self.to_atoms(m, basis.radial_output, edges)
        return self.after_atom(skip(x, h)) if self.adds_atoms else x


class ForceBranch(Frugal, nn.Module):
    """The edge embeddings after one block -> what the head adds up of the features of each edge.

    The radial basis is multiplied after the layers, or before them by the map of the energy branch.
    """

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        layers = config.layers
        self.layers = widening_stack(config.edge_dim, config.edge_dim, layers.atom, layers.leading_dense)
        self.radial = (
            Dense(config.radial_dim, config.edge_dim) if config.force_radial == "after_layers" else None
        )
        self.scale_radial = ScaleFactor()

    def forward(self, m: Tensor, basis: Basis, energy_branch: EnergyBranch, weight: Tensor) -> Tensor:
        """weight: [out_dim, edge_dim], of the head; returns its term for this block, [n_edges, out_dim]."""
        radial = basis.radial_output
        if self.radial is None:
            filters = self.scale_radial(energy_branch.to_atoms.radial.weight)
            x = self.scale_radial.observe(filtered(m, radial, filters), m)
            return head_term(self.layers(x), weight)

        def term(x: Tensor, radial: Tensor, filters: Tensor, weight: Tensor) -> Tensor:
            return head_term(self.scale_radial.observe(filtered(x, radial, filters), x), weight)

        x, filters = self.layers(m), self.scale_radial(self.radial.weight)
        return self.by_rows(term, (x, radial), (filters, weight), self.scale_radial.is_observed)


def head_term(x: Tensor, weight: Tensor) -> Tensor:
    """What a head adds up, [n, dim], [out_dim, dim] -> [n, out_dim]; a result has the precision of the weights."""
    if weight.shape[0] > 1:
        return final_product(x, weight)
    with float32_region(x):
        return final_product(x.to(weight.dtype), weight)


class Total:
    """The terms of a head, added up in float32 or better."""

    value: Tensor

    def __init__(self) -> None:
        self._n = 0

    def add(self, term: Tensor) -> None:
        """Add a term, [n, out_dim]."""
        term = term.to(torch.promote_types(term.dtype, torch.float32))
        self.value = self.value + term if self._n else term
        self._n += 1


class SummingHead(nn.Module):
    """Every block's features give a number; the numbers are added up."""

    def __init__(self, config: GemNetConfig, dim: int) -> None:
        super().__init__()
        self.outputs = nn.ModuleList(ScalarOutput(config, dim) for _ in range(config.n_blocks + 1))

    def weights(self) -> list[Tensor]:
        """That of each block, [1, dim]: see `head_term`."""
        return [cast(ScalarOutput, output).dense.weight for output in self.outputs]

    def forward(self, total: Tensor) -> Tensor:
        """The sum of the terms of all blocks, [n, 1] -> [n]."""
        return total.squeeze(1)


class GlobalHead(nn.Module):
    """The features of all blocks are concatenated and give one number; the first product is summed over the blocks."""

    def __init__(self, config: GemNetConfig, dim: int, n_layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = widening_stack((config.n_blocks + 1) * dim, dim, n_layers)
        self.output = ScalarOutput(config, dim)

    def weights(self) -> tuple[Tensor, ...]:
        """That of each block's features in the first layer, [dim, dim]: see `head_term`."""
        first = self.layers[0]
        assert isinstance(first, Dense)
        return first.weight.split(self.dim, dim=1)

    def forward(self, total: Tensor) -> Tensor:
        """The sum of the terms of all blocks, [n, dim] -> [n]."""
        return self.output(self.layers.after_first_product(total)).squeeze(1)


def output_head(config: GemNetConfig, dim: int) -> SummingHead | GlobalHead:
    """The head that turns the features of all blocks into numbers."""
    head = config.global_head
    return SummingHead(config, dim) if head is None else GlobalHead(config, dim, head.layers)
