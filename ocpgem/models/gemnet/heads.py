"""Output heads: what each block contributes to the energy of the atoms and to the force along the edges."""

from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet
from ocpgem.models.gemnet.blocks import EdgesToAtoms
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.geometry import EdgeBasis
from ocpgem.models.gemnet.layers import Dense, ScaleFactor, float32_region, widening_stack


def _output_layer(config: GemNetConfig, dim: int) -> Dense:
    layer = Dense(dim, 1)
    if config.output_init == "zeros":
        nn.init.zeros_(layer.weight)
    return layer


class EnergyHead(nn.Module):
    """Edge embeddings -> a contribution to the energy of each atom, [n_atoms, 1]."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.to_atoms = EdgesToAtoms(config)
        self.out = _output_layer(config, config.atom_dim)

    def forward(self, m: Tensor, basis: EdgeBasis, edges: EdgeSet) -> Tensor:
        x = self.to_atoms(m, basis.radial_output, edges)
        with float32_region(x):
            return self.out(x.to(self.out.weight.dtype))


class DirectForceHead(nn.Module):
    """Edge embeddings -> the force of each edge along its direction, [n_edges, 1]."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.layers = widening_stack(config.edge_dim, config.edge_dim, config.layers.atom)
        self.radial = Dense(config.radial_dim, config.edge_dim)
        self.scale_radial = ScaleFactor()
        self.out = _output_layer(config, config.edge_dim)

    def forward(self, m: Tensor, basis: EdgeBasis) -> Tensor:
        x = self.layers(m)
        weighted = x * (basis.radial_output @ self.scale_radial(self.radial.weight).t())
        weighted = self.scale_radial.observe(weighted, x)
        with float32_region(weighted):
            return self.out(weighted.to(self.out.weight.dtype))
