"""A model that speaks eV: a GemNet with the normalisation of its targets."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.errors import RequestError
from ocpgem.graph.topology import GraphSpec, Padding, Topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet, Structures
from ocpgem.models.normalization import MAX_ATOMIC_NUMBER, Normalization, PhysicalUnits

__all__ = ["MAX_ATOMIC_NUMBER", "Normalization", "Potential", "Predictions", "n_parameters"]

_GHOST_DISTANCE = 1000.0
"""How far the ghosts of a batch that is filled up are from their images, in A."""


@dataclass
class Predictions:
    """What a model returns, in physical units."""

    energy: Tensor
    """[n_systems] in eV, float64."""
    forces: Tensor | None
    """[n_atoms, 3] in eV/A; None for a model of energies only."""
    energy_spread: Tensor | None = None
    """[n_systems] in eV: how far the members of an ensemble lie from their mean; None for a single model."""
    forces_spread: Tensor | None = None
    """[n_atoms] in eV/A: likewise, of the force vectors."""


class Potential(nn.Module):
    """A batch and its topology -> energies and forces in eV and eV/A.

    Forces that are gradients are computed inside `forward`, whether or not the caller records gradients.

    train_in_bf16: in training mode, compute the dense layers in bfloat16. It is entered here and not around the call,
    because DeepSpeed turns off an autocast that it finds around its engine on a GPU.

    compiled: what computes the model's part for batches that are filled up, as `model` if None.
    """

    def __init__(self, model: GemNetConfig, normalization: Normalization) -> None:
        super().__init__()
        self.train_in_bf16 = False
        self.compiled: Callable[[Structures, Topology], tuple[Tensor, Tensor | None]] | None = None
        self.model = GemNet(model)
        self.normalization = normalization

    @property
    def normalization(self) -> Normalization:
        """How model values become eV and eV/A."""
        return self._units.normalization

    @normalization.setter
    def normalization(self, normalization: Normalization) -> None:
        self._units = PhysicalUnits(normalization)

    @property
    def config(self) -> GemNetConfig:
        return self.model.config

    @property
    def graph_spec(self) -> GraphSpec:
        """The edges that the model needs."""
        return self.model.graph_spec

    def forward(self, batch: Any, topology: Topology) -> Predictions:
        """batch: a PyG batch of `AtomicData`; topology: built with `graph_spec` for the same systems."""
        structures = self._structures(batch)
        with torch.autocast(
            batch.pos.device.type, torch.bfloat16, enabled=self.train_in_bf16 and self.training
        ):
            if topology.padding is None:
                energy, forces = self.model(structures, topology)
            else:
                energy, forces = self._padded(structures, topology, topology.padding)
        of_atoms = topology.batch[: len(batch.pos)]
        if forces is not None:
            forces = self._units.forces(forces, self.config.forces == "gradient")
        return Predictions(self._units.energy(energy, batch.atomic_numbers, of_atoms), forces)

    def _padded(
        self, structures: Structures, topology: Topology, real: Padding
    ) -> tuple[Tensor, Tensor | None]:
        """What the model says of the real systems and atoms; ghosts are hydrogen in a cell wider than every cutoff."""
        atoms, systems = topology.n_atoms - real.n_atoms, topology.n_systems - real.n_systems
        cell = torch.eye(3, dtype=structures.cell.dtype, device=structures.cell.device) * _GHOST_DISTANCE
        filled = Structures(
            F.pad(structures.pos, (0, 0, 0, atoms)),
            torch.cat([structures.cell, cell.expand(systems, 3, 3)]),
            F.pad(structures.atomic_numbers, (0, atoms), value=1),
            None if structures.hidden is None else F.pad(structures.hidden, (0, atoms)),
        )
        # Without `padding`, so that all the model is given repeats with the sizes.
        call = self.model if self.compiled is None else self.compiled
        energy, forces = call(filled, dataclasses.replace(topology, padding=None))
        return energy[: real.n_systems], None if forces is None else forces[: real.n_atoms]

    def atom_energies(self, batch: Any, topology: Topology) -> Tensor:
        """How the energies are made up of atoms, [n_atoms] in eV, float64: they sum to those of `forward`.

        The mean of the normalisation is shared equally. Raises RequestError for a model that is not extensive, whose
        energy is a mean over atoms.
        """
        if not self.config.extensive:
            raise RequestError(
                "the energy of this model is a mean over atoms (extensive: false); it has no energies of atoms"
            )
        with torch.no_grad():
            terms = self.model.atom_energies(self._structures(batch), topology)
        return self._units.atom_energies(terms, batch.atomic_numbers, topology.batch)

    def _structures(self, batch: Any) -> Structures:
        dtype = self.model.atom_embedding.weight.dtype
        return Structures(
            batch.pos.to(dtype), batch.cell.to(dtype), batch.atomic_numbers, getattr(batch, "hidden", None)
        )


def n_parameters(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
