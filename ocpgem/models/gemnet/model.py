"""GemNet: one implementation of every variant (Gasteiger et al., NeurIPS 2021; GemNet-OC, TMLR 2022)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.graph.topology import EdgeSet, GraphSpec, Topology
from ocpgem.models.gemnet.basis import RadialBasis, scaled_harmonics
from ocpgem.models.gemnet.blocks import AtomEmbedding, EdgeEmbedding, InteractionBlock
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import pad, sum_to_target
from ocpgem.models.gemnet.geometry import EdgeBasis, EdgeGeometry, edge_geometry
from ocpgem.models.gemnet.heads import DirectForceHead, EnergyHead
from ocpgem.models.gemnet.layers import Dense, float32_region, he_orthogonal_


@dataclass
class Structures:
    """The tensors a model reads of a batch."""

    pos: Tensor
    """[n_atoms, 3] in A."""
    cell: Tensor
    """[n_systems, 3, 3] in A; rows are lattice vectors."""
    atomic_numbers: Tensor
    """[n_atoms], int64."""


class BasisProjection(nn.Module):
    """Evaluates the bases of the edges and projects them to the small sizes that all blocks share."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        n_radial = config.radial_basis.n_radial
        self.n_spherical = config.n_spherical
        self.radial_triplet = Dense(n_radial, config.radial_dim)
        self.radial_atom = Dense(n_radial, config.radial_dim)
        self.radial_output = Dense(n_radial, config.radial_dim)
        # [n_spherical, n_radial, circular_dim]
        self.circular = nn.Parameter(torch.empty(config.n_spherical, n_radial, config.triplets.circular_dim))
        he_orthogonal_(self.circular)

    def forward(
        self, radial: Tensor, radial_of_circular: Tensor, geometry: EdgeGeometry, edges: EdgeSet
    ) -> EdgeBasis:
        """radial, radial_of_circular: [n_edges, n_radial]."""
        circular = self.circular.permute(2, 0, 1)  # [circular_dim, n_spherical, n_radial]
        return EdgeBasis(
            radial_triplet=self.radial_triplet(radial),
            radial_atom=self.radial_atom(radial),
            radial_output=self.radial_output(radial),
            circular=F.linear(radial_of_circular, circular.flatten(0, 1)).unflatten(1, circular.shape[:2]),
            harmonics=pad(scaled_harmonics(geometry.direction, self.n_spherical), edges),
        )


class GemNet(nn.Module):
    """Structures and their topology -> energy and forces in the model's own (normalised) units."""

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.config = config
        self.graph_spec = GraphSpec(config.neighbors.cutoff, config.neighbors.max_neighbors)
        n_radial = config.radial_basis.n_radial
        self.radial_basis = RadialBasis(config.radial_basis, config.neighbors.cutoff)
        self.circular_radial_basis = (
            RadialBasis(config.radial_basis, config.neighbors.cutoff)
            if self.radial_basis.is_trainable
            else None
        )
        self.basis_projection = BasisProjection(config)
        self.atom_embedding = AtomEmbedding(config.n_elements, config.atom_dim)
        self.edge_embedding = EdgeEmbedding(config.atom_dim, n_radial, config.edge_dim)
        self.blocks = nn.ModuleList(InteractionBlock(config) for _ in range(config.n_blocks))
        self.energy_heads = nn.ModuleList(EnergyHead(config) for _ in range(config.n_blocks + 1))
        n_force_heads = config.n_blocks + 1 if config.forces == "direct" else 0
        self.force_heads = nn.ModuleList(DirectForceHead(config) for _ in range(n_force_heads))

    def forward(self, structures: Structures, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Energy [n_systems] and forces [n_atoms, 3] (None if the model has none)."""
        if self.config.forces != "gradient":
            return self._energy_and_direct_forces(structures, topology)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            pos = structures.pos.detach().requires_grad_(True)
            moved = Structures(pos, structures.cell, structures.atomic_numbers)
            energy, _ = self._energy_and_direct_forces(moved, topology)
            (gradient,) = torch.autograd.grad(energy.sum(), pos, create_graph=differentiable)
        return energy if differentiable else energy.detach(), -gradient

    def _energy_and_direct_forces(
        self, structures: Structures, topology: Topology
    ) -> tuple[Tensor, Tensor | None]:
        edges = topology.main
        with float32_region(structures.pos):
            geometry = edge_geometry(structures.pos, structures.cell, topology.batch, edges)
            radial = self.radial_basis(geometry.distance)
            radial_of_circular = radial
            if self.circular_radial_basis is not None:
                radial_of_circular = self.circular_radial_basis(geometry.distance)
            basis = self.basis_projection(radial, radial_of_circular, geometry, edges)
        h = self.atom_embedding(structures.atomic_numbers)
        m = self.edge_embedding(h, radial, edges)
        atom_energy = self.energy_heads[0](m, basis, edges)
        edge_force = self.force_heads[0](m, basis) if self.force_heads else None
        for index, block in enumerate(self.blocks, start=1):
            h, m = block(h, m, basis, edges)
            atom_energy = atom_energy + self.energy_heads[index](m, basis, edges)
            if edge_force is not None:
                edge_force = edge_force + self.force_heads[index](m, basis)
        energy = self._sum_over_atoms(atom_energy.squeeze(1), topology)
        forces = None if edge_force is None else sum_to_target(edge_force * geometry.direction, edges)
        return energy, forces

    def _sum_over_atoms(self, atom_energy: Tensor, topology: Topology) -> Tensor:
        energy = atom_energy.new_zeros(topology.n_systems).index_add(0, topology.batch, atom_energy)
        if self.config.extensive:
            return energy
        n_atoms = torch.zeros_like(energy).index_add(0, topology.batch, torch.ones_like(atom_energy))
        return energy / n_atoms
