"""Relaxing from Python."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from ocpgem.data.dataset import Dataset
from ocpgem.data.system import System
from ocpgem.errors import RequestError
from ocpgem.evaluate.api import as_dataset
from ocpgem.evaluate.open_model import Model, graphs_of, require_model
from ocpgem.evaluate.relax.loop import Frame, Relaxation, Relaxed, RelaxSettings
from ocpgem.evaluate.relax.optimizers import OPTIMIZERS, FireSettings, LbfgsSettings
from ocpgem.evaluate.relax.surfaces import Member, PotentialSurface, Surface
from ocpgem.evaluate.relax.trajectories import to_atoms
from ocpgem.graph.system_edges import system_edges

if TYPE_CHECKING:
    from ase import Atoms

Optimizer = str | LbfgsSettings | FireSettings


@dataclass(frozen=True)
class RelaxedStructure:
    """A relaxed structure.

    atoms: the end, a copy of what was given with new positions, energy and forces; energy: eV; converged: whether no
    free atom feels more than fmax; n_steps: moves made; fmax: eV/A at the end; problem: why it could not go on, None if
    nothing was wrong; trajectory: the structures on the way, from the first to the last, if they were asked for.
    """

    atoms: "Atoms"
    energy: float
    converged: bool
    n_steps: int
    fmax: float
    problem: str | None = None
    trajectory: "list[Atoms]" = field(default_factory=list)


@overload
def relax(
    model: Model | Surface,
    structures: "Atoms",
    *,
    fmax: float = ...,
    steps: int = ...,
    optimizer: Optimizer = ...,
    trajectory: bool = ...,
) -> RelaxedStructure: ...
@overload
def relax(
    model: Model | Surface,
    structures: "Sequence[Atoms] | Dataset | str | Path",
    *,
    fmax: float = ...,
    steps: int = ...,
    optimizer: Optimizer = ...,
    batch_size: int = ...,
    max_edges: int | None = ...,
    trajectory: bool = ...,
) -> list[RelaxedStructure]: ...
def relax(
    model: Model | Surface,
    structures: "Atoms | Sequence[Atoms] | Dataset | str | Path",
    *,
    fmax: float = 0.02,
    steps: int = 300,
    optimizer: Optimizer = "lbfgs",
    batch_size: int = 32,
    max_edges: int | None = None,
    trajectory: bool = False,
) -> RelaxedStructure | list[RelaxedStructure]:
    """Relax structures, many at once; atoms held by `FixAtoms` stay to the bit.

    model: as `ocpgem.load` gives it, or anything that is called like a `Surface` (`AseSurface(EMT)`).
    structures: one `ase.Atoms` (gives one result), or several, a data set or its path (gives a list, in order).
    fmax: eV/A; steps: moves at most; optimizer: "lbfgs", "fire", or their settings; batch_size, max_edges: systems and
        edges of the model's graph at once, a smaller batch is taken by itself where memory runs out; trajectory: keep
        the structures on the way.
    Raises RequestError for a model that is not loaded, for values that mean nothing and for constraints other than
    FixAtoms, DataError for a structure that the model cannot take.
    """
    from ase import Atoms

    surface = _surface(model)
    one = isinstance(structures, Atoms)
    given = [structures] if one else structures
    systems, atoms = _systems(given)
    settings = RelaxSettings(fmax, steps, _settings(optimizer), record_every=int(trajectory))
    costs = _costs(model, systems) if max_edges is not None else [0] * len(systems)
    run = Relaxation(surface, settings, batch_size, max_edges)
    members = (Member(index, system, costs[index]) for index, system in enumerate(systems))
    found = {each.index: _structure(each, atoms[each.index]) for each in run.run(members)}
    results = [found[index] for index in range(len(systems))]
    return results[0] if one else results


def _surface(model: Model | Surface) -> Surface:
    if isinstance(model, Surface) and not isinstance(model, Model):
        return model
    return PotentialSurface(require_model(model))


def _settings(optimizer: Optimizer) -> LbfgsSettings | FireSettings:
    if isinstance(optimizer, LbfgsSettings | FireSettings):
        return optimizer
    if optimizer not in OPTIMIZERS:
        raise RequestError(f"the optimizer is {optimizer!r}; it must be one of {', '.join(OPTIMIZERS)}")
    return LbfgsSettings() if optimizer == "lbfgs" else FireSettings()


def _systems(given: "Sequence[Atoms] | Dataset | str | Path") -> "tuple[list[System], list[Atoms | None]]":
    """The systems, and the `ase.Atoms` they came from with all digits of their positions."""
    dataset = as_dataset(given)
    systems = [dataset[index] for index in range(len(dataset))]
    if isinstance(given, Dataset | str | Path):
        return systems, [None] * len(systems)
    for number, (system, atoms) in enumerate(zip(systems, given, strict=True)):
        _check_constraints(atoms, number)
        system.pos = np.array(atoms.positions, dtype=np.float64)
        system.cell = np.array(atoms.cell.array, dtype=np.float64)
    return systems, list(given)


def _check_constraints(atoms: "Atoms", number: int) -> None:
    from ase.constraints import FixAtoms

    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise RequestError(
                f"structure {number} has a constraint {type(constraint).__name__}, which the relaxation in batches "
                "does not know; use ocpgem.Calculator with an optimiser of ASE, or FixAtoms"
            )


def _costs(model: Model | Surface, systems: list[System]) -> list[int]:
    """The edges of the model's largest graph in each system."""
    if not isinstance(model, Model):
        raise RequestError("max_edges needs a model, whose edges it counts; leave it out")

    def edges(system: System) -> int:
        return max(
            len(system_edges(system.pos, system.cell, system.pbc, spec, system.tags).main)
            for spec in graphs_of(model)
        )

    return [edges(system) for system in systems]


def _structure(found: Relaxed, given: "Atoms | None") -> RelaxedStructure:
    from ase.calculators.singlepoint import SinglePointCalculator

    def atoms_of(frame: Frame) -> "Atoms":
        if given is None:
            return to_atoms(found.system, frame)
        atoms = given.copy()
        atoms.positions = frame.pos
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
        return atoms

    return RelaxedStructure(
        atoms=atoms_of(found.last),
        energy=found.last.energy,
        converged=found.converged,
        n_steps=found.n_steps,
        fmax=found.fmax,
        problem=found.problem,
        trajectory=[atoms_of(frame) for frame in found.frames],
    )
