"""A model that speaks eV: a GemNet with the normalisation of its targets."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ocpgem.config import Section
from ocpgem.errors import RequestError
from ocpgem.graph.topology import GraphSpec, Topology
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.model import GemNet, Structures

MAX_ATOMIC_NUMBER = 118


class Normalization(Section):
    """Physical value = model value * std + mean, once per system for the energy, + the energies of its elements."""

    energy_mean: float = Field(0.0, description="eV")
    energy_std: float = Field(1.0, gt=0, description="eV")
    forces_std: float = Field(1.0, gt=0, description="eV/A")
    element_energies: dict[Annotated[int, Field(ge=1, le=MAX_ATOMIC_NUMBER)], float] = Field(
        default={}, description="eV by atomic number, added once per atom; an element left out adds nothing"
    )


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
    """

    _element_energies: Tensor | None
    """[MAX_ATOMIC_NUMBER + 1] in eV by atomic number; None if all are zero."""

    def __init__(self, model: GemNetConfig, normalization: Normalization) -> None:
        super().__init__()
        self.train_in_bf16 = False
        self.model = GemNet(model)
        self.register_buffer("_element_energies", None, persistent=False)
        self.normalization = normalization

    @property
    def normalization(self) -> Normalization:
        """How model values become eV and eV/A."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization: Normalization) -> None:
        self._normalization = normalization
        self._element_energies = None
        if normalization.element_energies:
            table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
            for number, energy in normalization.element_energies.items():
                table[number] = energy
            self._element_energies = table.to(self.model.atom_embedding.weight.device)

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
            energy, forces = self.model(structures, topology)
        norm = self.normalization
        if forces is not None:
            std = norm.energy_std if self.config.forces == "gradient" else norm.forces_std
            forces = forces * std
        return Predictions(self._physical_energy(energy.double(), batch, topology), forces)

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
            terms = self.model.atom_energies(self._structures(batch), topology).double()
        n_atoms = torch.bincount(topology.batch, minlength=topology.n_systems)
        shares = self.normalization.energy_mean / n_atoms.double()[topology.batch]
        energies = terms * self.normalization.energy_std + shares
        if self._element_energies is None:
            return energies
        return energies + self._element_energies.double()[batch.atomic_numbers]

    def _structures(self, batch: Any) -> Structures:
        dtype = self.model.atom_embedding.weight.dtype
        return Structures(
            batch.pos.to(dtype), batch.cell.to(dtype), batch.atomic_numbers, getattr(batch, "hidden", None)
        )

    def _physical_energy(self, energy: Tensor, batch: Any, topology: Topology) -> Tensor:
        """Undo the normalisation, in float64: total energies are thousands of eV, their differences meV."""
        energy = energy * self.normalization.energy_std + self.normalization.energy_mean
        if self._element_energies is None:
            return energy
        of_atoms = self._element_energies.double()[batch.atomic_numbers]
        return energy.index_add(0, topology.batch, of_atoms)


def n_parameters(module: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
