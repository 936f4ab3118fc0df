"""GemNet: one implementation of every variant (Gasteiger et al., NeurIPS 2021; GemNet-OC, TMLR 2022)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ocpgem.graph.topology import EdgeSet, Topology
from ocpgem.models.gemnet.bases import Bases, Basis
from ocpgem.models.gemnet.blocks import AtomEmbedding, EdgeEmbedding, InteractionBlock, call_directly
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.edge_ops import reverse, sum_to_target
from ocpgem.models.gemnet.element_pairs import ElementPairs
from ocpgem.models.gemnet.geometry import all_geometry
from ocpgem.models.gemnet.heads import EnergyBranch, ForceBranch, Total, head_term, output_head
from ocpgem.models.gemnet.layers import ForceGradient, Frugal, float32_region
from ocpgem.parallel.graph import reduce, shard, unshard


@dataclass
class Structures:
    """The tensors a model reads of a batch."""

    pos: Tensor
    """[n_atoms, 3] in A. Where they want a gradient, energies and forces are differentiable functions of them."""
    cell: Tensor
    """[n_systems, 3, 3] in A; rows are lattice vectors."""
    atomic_numbers: Tensor
    """[n_atoms], int64."""
    hidden: Tensor | None = None
    """[n_atoms] bool, atoms whose element the embedding is not told; None: it is told all."""


class GemNet(nn.Module):
    """Structures and their topology -> energy and forces in the model's own (normalised) units.

    checkpoint_activations: in training mode, keep only what goes into the parts of each block and into each head, and
    compute what lies within again for the gradient: less memory for about a third more work, the same numbers.
    """

    def __init__(self, config: GemNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        self.graph_spec = config.graph_spec
        n_outputs = config.n_blocks + 1
        self.bases = Bases(config)
        self.atom_embedding = AtomEmbedding(config.n_elements, config.atom_dim, config.shared_embedding)
        self.edge_embedding = EdgeEmbedding(config.atom_dim, config.radial_basis.n_radial, config.edge_dim)
        self.blocks = nn.ModuleList(InteractionBlock(config) for _ in range(config.n_blocks))
        self.energy_branches = nn.ModuleList(EnergyBranch(config) for _ in range(n_outputs))
        self.energy_head = output_head(config, config.atom_dim)
        if config.has_direct_forces:
            self.force_branches = nn.ModuleList(ForceBranch(config) for _ in range(n_outputs))
            self.force_head = output_head(config, config.edge_dim)
        self.element_pairs = ElementPairs(config.n_elements) if config.unseen_pairs == "damp" else None
        self._force_gradient = ForceGradient()
        for part in self.modules():
            if isinstance(part, Frugal):
                part.forces = self._force_gradient if config.forces == "gradient" else None

    def forward(self, structures: Structures, topology: Topology) -> tuple[Tensor, Tensor | None]:
        """Energy [n_systems] and forces [n_atoms, 3] (None if the model has none)."""
        if self.config.forces != "gradient":
            atom_energy, forces = self._atom_energies_and_direct_forces(structures, topology)
            energy = reduce(self._sum_over_atoms(atom_energy, topology), topology.part)
            return energy, None if forces is None else unshard(forces, topology.part, topology.n_atoms)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            # Those of a caller who differentiates by them, so that forces have derivatives by them as well.
            wanted = structures.pos.requires_grad
            pos = structures.pos if wanted else structures.pos.detach().requires_grad_(True)
            moved = dataclasses.replace(structures, pos=pos)
            # One of its own, as other threads may compute with this model.
            own_forces = ForceGradient()
            only_for = None if wanted or structures.cell.requires_grad else own_forces
            atom_energy, _ = self._atom_energies_and_direct_forces(moved, topology, only_for)
            energy = self._sum_over_atoms(atom_energy, topology)
            # Where ranks share the batch, this is the gradient of all their energies by this rank's positions.
            with self._force_gradient.taken(), own_forces.taken():
                (own,) = torch.autograd.grad(energy.sum(), pos, create_graph=differentiable)
            gradient, energy = reduce(own, topology.part), reduce(energy, topology.part)
            if not differentiable:
                gradient = gradient.detach()
        return energy if differentiable else energy.detach(), -gradient

    def atom_energies(self, structures: Structures, topology: Topology) -> Tensor:
        """The terms [n_atoms] whose sum (or mean, unless extensive) over a system is its energy."""
        own = self._atom_energies_and_direct_forces(structures, topology)[0]
        return unshard(own, topology.part, topology.n_atoms)

    def _atom_energies_and_direct_forces(
        self, structures: Structures, topology: Topology, only_for: ForceGradient | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Of the atoms of this rank; only_for: see `Geometry`."""
        edges, part = topology.main, topology.part
        with float32_region(structures.pos):
            radii = None if self.bases.radii is None else self.bases.radii[structures.atomic_numbers]
            geometry = all_geometry(structures.pos, structures.cell, topology, radii, only_for)
            basis, radial = self.bases(geometry, topology)
        hidden = None if structures.hidden is None else shard(structures.hidden, part)
        h = self.atom_embedding(shard(structures.atomic_numbers, part), hidden)
        m = self.edge_embedding(h, radial, edges)
        energy_terms, force_terms = Total(), Total()
        energy_weights = self.energy_head.weights()
        force_weights = self.force_head.weights() if self.config.has_direct_forces else ()
        # torch.compile sees through what is called directly.
        call = self._call if self.checkpoint_activations else call_directly
        for index, branch in enumerate(self.energy_branches):
            if index > 0:
                h, m = self.blocks[index - 1](h, m, basis, topology, call)
            energy_terms.add(self._call(self._energy_term, branch, energy_weights[index], h, m, basis, edges))
            if self.config.has_direct_forces:
                force_terms.add(
                    self._call(self.force_branches[index], m, basis, branch, force_weights[index])
                )
        atom_energy = self._call(self.energy_head, energy_terms.value)
        if not self.config.has_direct_forces:
            return atom_energy, None
        force = self._call(self.force_head, force_terms.value)
        if self.config.forces == "direct_coupled":
            force = (force + reverse(force, edges)) / 2
        forces = sum_to_target(force.unsqueeze(1) * geometry.main.direction, edges)
        if self.element_pairs is not None:
            forces = forces * self.element_pairs.share_known(structures.atomic_numbers, edges)
        return atom_energy, forces

    def _energy_term(
        self, branch: EnergyBranch, weight: Tensor, h: Tensor, m: Tensor, basis: Basis, edges: EdgeSet
    ) -> Tensor:
        """What the energy head adds up of the embeddings after a block."""
        return head_term(branch(h, m, basis, edges), weight)

    def _call(self, part: Callable[..., Any], *args: Any) -> Any:
        """part(*args), of which only the arguments are kept for the gradient where activations are checkpointed.

        Only the non-reentrant form can be differentiated twice, as gradient forces are. Nothing here is random.
        """
        if self.checkpoint_activations and self.training and torch.is_grad_enabled():
            return checkpoint(part, *args, use_reentrant=False, preserve_rng_state=False)
        return part(*args)

    def _sum_over_atoms(self, atom_energy: Tensor, topology: Topology) -> Tensor:
        batch = shard(topology.batch, topology.part)
        energy = atom_energy.new_zeros(topology.n_systems).index_add(0, batch, atom_energy)
        if self.config.extensive:
            return energy
        n_atoms = torch.zeros_like(energy)
        return energy / n_atoms.index_add(0, topology.batch, energy.new_ones(topology.n_atoms))
