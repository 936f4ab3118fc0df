"""Output heads: what the embeddings contribute to the energy of the atoms and to the force along the edges."""

import torch
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.bases import Basis
from ocpgem.models.gemnet.blocks import EdgesToAtoms
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.layers import (
    Dense,
    Frugal,
    ScaleFactor,
    float32_region,
    residual_stack,
    skip,
    widening_stack,
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
    """The edge embeddings after one block -> features of each edge, [n_edges, edge_dim].

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

    def forward(self, m: Tensor, basis: Basis, energy_branch: EnergyBranch) -> Tensor:
        if self.radial is not None:
            return self._filtered(self.layers(m), basis, self.radial)
        return self.layers(self._filtered(m, basis, energy_branch.to_atoms.radial))

    def _filtered(self, x: Tensor, basis: Basis, filters: Dense) -> Tensor:
        def weighted(x: Tensor, radial: Tensor) -> Tensor:
            return x * (radial @ self.scale_radial(filters.weight).t())

        return self.scale_radial.observe(self.recomputed(weighted, x, basis.radial_output), x)


class SummingHead(nn.Module):
    """Every block's features give a number; the numbers are added up."""

    def __init__(self, config: GemNetConfig, dim: int) -> None:
        super().__init__()
        self.outputs = nn.ModuleList(ScalarOutput(config, dim) for _ in range(config.n_blocks + 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        """n_blocks + 1 tensors [n, dim] -> [n]."""
        total = torch.stack([output(x) for output, x in zip(self.outputs, features, strict=True)])
        return total.sum(0).squeeze(1)


class GlobalHead(nn.Module):
    """The features of all blocks are concatenated and give one number."""

    def __init__(self, config: GemNetConfig, dim: int, n_layers: int) -> None:
        super().__init__()
        self.layers = widening_stack((config.n_blocks + 1) * dim, dim, n_layers)
        self.output = ScalarOutput(config, dim)

    def forward(self, features: list[Tensor]) -> Tensor:
        """n_blocks + 1 tensors [n, dim] -> [n]."""
        return self.output(self.layers(torch.cat(features, dim=1))).squeeze(1)


def output_head(config: GemNetConfig, dim: int) -> nn.Module:
    """The head that turns the features of all blocks into numbers."""
    head = config.global_head
    return SummingHead(config, dim) if head is None else GlobalHead(config, dim, head.layers)
