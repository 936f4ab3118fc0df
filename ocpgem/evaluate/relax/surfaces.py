"""Where the energies and forces of a relaxation come from: one interface, a GemNet or any ASE calculator behind it."""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ocpgem.data.batch import collate
from ocpgem.data.system import System
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.open_model import (
    Model,
    apply,
    device_of,
    graphs_of,
    has_forces,
    heaviest_element,
    referenced_elements,
)
from ocpgem.graph.skin import DEFAULT_SKIN, SkinList
from ocpgem.graph.system_edges import SystemEdges, select_edges
from ocpgem.graph.topology import concat

if TYPE_CHECKING:
    from torch_geometric.data import Batch


@dataclass(eq=False)
class Member:
    """A system on its way through a relaxation.

    index: its number in the data set; cost: what it adds to a batch, in edges; cache: whatever the surface wants to
    keep for it from one step to the next.
    """

    index: int
    system: System
    cost: int = 0
    cache: Any = None


class BrokenSystemError(DataError):
    """One system of a batch cannot be computed; the others can."""

    def __init__(self, place: int, reason: str) -> None:
        """place: its position in the batch."""
        super().__init__(reason)
        self.place = place


@runtime_checkable
class Surface(Protocol):
    """Energies and forces of a batch of systems at given positions."""

    device: torch.device
    """Where positions are taken and forces returned."""

    def __call__(self, members: Sequence[Member], pos: Tensor) -> tuple[Tensor, Tensor]:
        """Energies [B] in eV and forces [N, 3] in eV/A, both float64, of all atoms at pos [N, 3] in A, float64.

        Raises BrokenSystemError where a system has no energy.
        """


class PotentialSurface:
    """A potential (or an ensemble), computed in one batch where its parameters are.

    Neighbours are searched on the CPU, mostly by a list with a skin (A), at the positions as the model sees them
    (rounded to its precision).
    """

    def __init__(self, model: Model, skin: float = DEFAULT_SKIN) -> None:
        """skin: A. Raises RequestError for a model without forces."""
        if not has_forces(model):
            raise RequestError("this model predicts energies only; a relaxation needs a model with forces")
        self._model = model.eval()
        self._skin = skin
        self._specs = graphs_of(model)
        self._members: list[Member] = []
        self._batch: Batch
        self.device, self._dtype = device_of(model), next(model.parameters()).dtype

    def __call__(self, members: Sequence[Member], pos: Tensor) -> tuple[Tensor, Tensor]:
        """As `Surface`."""
        if len(members) != len(self._members) or any(map(operator.is_not, members, self._members)):
            bare = [_without_labels(member.system) for member in members]
            self._batch = collate(
                bare, heaviest_element(self._model), elements=referenced_elements(self._model)
            ).to(self.device)
            self._members = list(members)
        seen = pos.to(self._dtype)
        edges = self._edges(members, seen)  # of each system, for each graph
        topologies = [concat(each).to(self.device, non_blocking=True) for each in zip(*edges, strict=True)]
        self._batch.pos = seen
        predictions = apply(self._model, self._batch, topologies)
        assert predictions.forces is not None, "the model has forces"
        return predictions.energy.double(), predictions.forces.detach().double()

    def _edges(self, members: Sequence[Member], pos: Tensor) -> list[list[SystemEdges]]:
        positions = pos.cpu().numpy().astype(np.float64)
        edges, first = [], 0
        for place, member in enumerate(members):
            system = member.system
            mine = positions[first : first + system.n_atoms]
            first += system.n_atoms
            if member.cache is None:
                member.cache = [SkinList(spec.parent.cutoff, self._skin) for spec in self._specs]
            try:
                edges.append(
                    [
                        select_edges(
                            skin.neighbors(mine, system.cell, system.pbc), len(mine), spec, system.tags
                        )
                        for skin, spec in zip(member.cache, self._specs, strict=True)
                    ]
                )
            except DataError as error:
                raise BrokenSystemError(place, f"{system.where}: {error}") from None
        return edges


def _without_labels(system: System) -> System:
    """The structure alone: a batch is refused if only some of its systems have labels."""
    return dataclasses.replace(system, energy=None, forces=None, energy_relaxed=None, pos_relaxed=None)


class AseSurface:
    """An ASE calculator for each system, one after another on the CPU: EMT, DFT, or another potential.

    make: called once for every system, as `EMT`.
    """

    device = torch.device("cpu")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self, members: Sequence[Member], pos: Tensor) -> tuple[Tensor, Tensor]:
        """As `Surface`."""
        energies, forces, first = [], [], 0
        for place, member in enumerate(members):
            if member.cache is None:
                member.cache = member.system.to_atoms()
                member.cache.calc = self._make()
            atoms = member.cache
            atoms.positions = pos[first : first + len(atoms)].numpy()
            first += len(atoms)
            try:
                energies.append(float(atoms.get_potential_energy()))
                forces.append(atoms.get_forces(apply_constraint=False))
            except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
                raise BrokenSystemError(place, f"{member.system.where}: {error}") from error
        return torch.tensor(energies, dtype=torch.float64), torch.from_numpy(np.concatenate(forces))
