"""A model as an ASE calculator: optimisers, molecular dynamics, bands, vibrations and whatever else ASE offers."""

import copy
import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from numpy.typing import NDArray

from ocpgem.data.batch import collate
from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import RequestError
from ocpgem.evaluate.metrics import check_finite
from ocpgem.evaluate.open_model import (
    Model,
    apply,
    device_of,
    graphs_of,
    has_forces,
    heaviest_element,
    load,
    referenced_elements,
    require_model,
)
from ocpgem.graph.skin import DEFAULT_SKIN, SkinLists
from ocpgem.graph.system_edges import select_edges
from ocpgem.graph.topology import Topology, concat
from ocpgem.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms
    from torch_geometric.data import Batch

_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_IGNORED = {"initial_charges", "initial_magmoms"}


class Calculator(AseCalculator):
    """Energies and forces of a model for ASE.

    Properties: `energy` and `free_energy` (the same number, eV), `forces` (eV/A, of all atoms), `energies` of the atoms
    (eV) where the energy of the model is a sum over them, and `charges`, which are zero, as the model has none; initial
    charges and magnetic moments are ignored. An ensemble adds `energy_spread` and `forces_spread` to `results`.

    Neighbours are searched when an atom has moved half the skin; the numbers are those of a search at every call. One
    calculator may be shared by structures (the images of a band) and by threads; threads with a calculator each, of the
    same model, compute at the same time.
    """

    ignored_changes = _IGNORED

    def __init__(self, model: Model, *, skin: float = DEFAULT_SKIN, precision: str | None = None) -> None:
        """model: as `ocpgem.load` gives it (`from_checkpoint` takes its path); it is put into evaluation mode.

        skin: A, 0 for a search at every call; precision: "float32" or "float64", by default that of the model. In
        float64 molecular dynamics and finite differences are free of rounding, at two to three times the cost on a CPU.
        Raises RequestError for a model that is not loaded and for values that mean nothing.
        """
        super().__init__()
        self.model = _in_precision(require_model(model), precision).eval()
        self.implemented_properties = _properties(self.model)
        self._skin = skin
        self._make_lists()

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path | Sequence[str | Path],
        *,
        forces_from: str | Path | Sequence[str | Path] | None = None,
        device: str | torch.device | None = None,
        skin: float = DEFAULT_SKIN,
        precision: str | None = None,
    ) -> Self:
        """The calculator of a run directory, a model file, a released checkpoint, or a name of the catalogue.

        A name is looked up in the cache of `ocpgem.load` (`~/.cache/ocpgem/models`) and downloaded to it the first
        time. Several sources make an ensemble.
        """
        return cls(load(source, forces_from=forces_from, device=device), skin=skin, precision=precision)

    @property
    def n_searches(self) -> int:
        """How many neighbour searches were needed so far."""
        return sum(lists.n_searches for lists in self._lists)

    def get_property(
        self, name: str, atoms: "Atoms | None" = None, allow_calculation: bool = True
    ) -> float | NDArray[np.float64] | None:
        """As in ASE; what one thread asks for is not mixed with the structure of another."""
        with self._lock:
            value: float | NDArray[np.float64] | None = super().get_property(name, atoms, allow_calculation)
            return value

    def check_state(self, atoms: "Atoms", tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; tags count, as models may choose quadruplets by them."""
        changes = list(super().check_state(atoms, tol))
        if (
            self.atoms is not None
            and not changes
            and not np.array_equal(self.atoms.get_tags(), atoms.get_tags())
        ):
            changes.append("tags")
        return changes

    def calculate(
        self,
        atoms: "Atoms | None" = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute energy and forces, and the energies of atoms if they are asked for.

        Raises DataError for a structure that the model cannot take or for which it gives NaN.
        """
        with self._lock:
            super().calculate(atoms, list(properties), list(system_changes))
            batch, topologies = self._prepare(self.atoms)
            predictions = apply(self.model, batch, topologies)
            check_finite(predictions.energy, predictions.forces, batch, "predictions")
            energy = float(predictions.energy[0])
            self.results = {
                "energy": energy,
                "free_energy": energy,
                "charges": np.zeros(len(self.atoms)),
            }
            for name in ("forces", "energy_spread", "forces_spread"):
                value = getattr(predictions, name)
                if value is not None:
                    array = value.detach().double().cpu().numpy()
                    self.results[name] = float(array[0]) if name == "energy_spread" else array
            if "energies" in properties and isinstance(self.model, Potential):
                self.results["energies"] = self.model.atom_energies(batch, topologies[0]).cpu().numpy()

    def _prepare(self, atoms: "Atoms") -> "tuple[Batch, list[Topology]]":
        system = self._system(atoms)
        batch = collate([system], heaviest_element(self.model), elements=referenced_elements(self.model))
        device = device_of(self.model)
        topologies = []
        for spec, lists in zip(graphs_of(self.model), self._lists, strict=True):
            found = lists.neighbors(system.pos, system.cell, system.pbc)
            edges = select_edges(found, system.n_atoms, spec, system.tags)
            topologies.append(concat([edges]).to(device))
        return batch.to(device), topologies

    def _system(self, atoms: "Atoms") -> System:
        """The structure alone, as precise as the model sees it."""
        system = system_from_atoms(atoms, source="the structure of the calculator")
        system = dataclasses.replace(system, energy=None, forces=None, energy_relaxed=None, pos_relaxed=None)
        if next(self.model.parameters()).dtype == torch.float64:
            system.pos = np.array(atoms.positions, dtype=np.float64)
            system.cell = np.array(atoms.cell.array, dtype=np.float64)
        return system

    def _make_lists(self) -> None:
        self._lock = threading.RLock()
        self._lists = [SkinLists(spec.parent.cutoff, self._skin) for spec in graphs_of(self.model)]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_lists")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_lists()


def _in_precision(model: Model, precision: str | None) -> Model:
    """The model itself, or a copy in another precision."""
    if precision is None:
        return model
    if precision not in _PRECISIONS:
        raise RequestError(f"precision is {precision!r}; it must be float32 or float64")
    if next(model.parameters()).dtype == _PRECISIONS[precision]:
        return model
    return copy.deepcopy(model).to(_PRECISIONS[precision])


def _properties(model: Model) -> list[str]:
    names = ["energy", "free_energy", "charges"]
    if has_forces(model):
        names.append("forces")
    if isinstance(model, Potential) and model.config.extensive:
        names.append("energies")
    return names
