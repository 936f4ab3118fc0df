"""A relaxation as a file that ASE reads, whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.data.system import System
from ocpgem.evaluate.relax.loop import Frame, Relaxed

if TYPE_CHECKING:
    from ase import Atoms

KINDS = ("none", "traj", "extxyz")


def to_atoms(system: System, frame: Frame) -> "Atoms":
    """A structure on the way as `ase.Atoms`, with its predicted energy and forces (of all atoms)."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = system.to_atoms()
    atoms.calc = None
    for name in ("energy_relaxed", "pos_relaxed"):  # labels, which are no property of this structure
        atoms.info.pop(name, None)
        atoms.arrays.pop(name, None)
    atoms.positions = frame.pos
    atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    return atoms


def write_trajectory(found: Relaxed, folder: Path, name: str, kind: str) -> Path:
    """Write the frames of a relaxation to folder/name.kind and return that path."""
    from ase.io import write

    path = folder / f"{name}.{kind}"
    partial = folder / f".{name}.partial.{kind}"
    try:
        write(partial, [to_atoms(found.system, frame) for frame in found.frames], format=kind)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
