"""Molecular dynamics at constant energy, and how well a model conserves it.

    python examples/molecular_dynamics.py CHECKPOINT [--structure FILE] [--steps 2000] [--traj OUT.traj]

Without a structure an ethanol molecule is taken, as in MD17. It is relaxed, gets velocities of 2 x TEMPERATURE (half of
which becomes potential energy) and then moves by the velocity Verlet rule. Forces that are gradients of the energy
conserve it up to the error of the time step; direct forces do not.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import Trajectory, read
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ocpgem


@dataclass(frozen=True)
class Drift:
    """How far the total energy went, per atom. drift: meV over the whole run, by a straight line; wobble: meV, the
    standard deviation around it; temperature: K, mean.
    """

    drift: float
    wobble: float
    temperature: float


def run(atoms: Atoms, steps: int, timestep: float, path: str | None = None) -> Drift:
    """Move `atoms` (which have a calculator and velocities) and follow the total energy; timestep in fs."""
    dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
    energies, temperatures = [], []

    def follow() -> None:
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())

    dynamics.attach(follow)
    if path is not None:
        dynamics.attach(Trajectory(path, "w", atoms), interval=10)
    dynamics.run(steps)
    per_atom = 1000 * (np.array(energies) - energies[0]) / len(atoms)
    place = np.linspace(0, 1, len(per_atom))
    slope, start = np.polyfit(place, per_atom, 1)
    return Drift(float(slope), float(np.std(per_atom - slope * place - start)), float(np.mean(temperatures)))


def main(arguments: Sequence[str] | None = None) -> Drift:
    """Relax, heat, move, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--structure", help="any file that ASE reads (default: ethanol)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--precision", choices=["float32", "float64"], help="default: that of the model")
    parser.add_argument("--traj", help="write the way to this file")
    args = parser.parse_args(arguments)

    model = ocpgem.load(args.checkpoint)
    atoms = read(args.structure) if args.structure else molecule("CH3CH2OH")
    atoms = ocpgem.relax(model, atoms, fmax=0.01, steps=200).atoms
    atoms.calc = ocpgem.Calculator(model, precision=args.precision)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * args.temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)
    found = run(atoms, args.steps, args.timestep, args.traj)
    print(
        f"{len(atoms)} atoms, {args.steps} steps of {args.timestep} fs, {found.temperature:.0f} K on average"
    )
    print(f"drift of the total energy {found.drift:+.4f} meV/atom, wobble {found.wobble:.4f} meV/atom")
    print(f"{atoms.calc.n_searches} neighbour searches")
    return found


if __name__ == "__main__":
    main()
