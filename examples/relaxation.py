"""Relax an adsorbate on every high-symmetry site of a surface, all in one batch, and rank the sites.

    python examples/relaxation.py CHECKPOINT [--metal Pt] [--adsorbate O]

CHECKPOINT is a run directory, a model file, a released checkpoint or its name. With a model trained on OC20 the
energies are adsorption energies.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ocpgem

SITES = ("ontop", "bridge", "fcc", "hcp")


def adsorbed(metal: str, adsorbate: str, site: str) -> Atoms:
    """An atom 1.5 A above a site of a (111) slab whose lower layers are fixed; tags as in OC20."""
    atoms = fcc111(metal, size=(2, 2, 3), vacuum=8.0)
    add_adsorbate(atoms, adsorbate, height=1.5, position=site)
    atoms.pbc = True
    layer = atoms.get_tags()
    atoms.set_constraint(FixAtoms(mask=layer > 1))
    atoms.set_tags([2 if number == 0 else int(number == 1) for number in layer])
    return atoms


def main(arguments: Sequence[str] | None = None) -> None:
    """Relax and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--metal", default="Pt")
    parser.add_argument("--adsorbate", default="O")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(arguments)
    model = ocpgem.load(args.checkpoint)
    structures = [adsorbed(args.metal, args.adsorbate, site) for site in SITES]
    results = ocpgem.relax(model, structures, fmax=0.03, steps=args.steps)
    for energy, site, result in sorted(
        (result.energy, site, result) for site, result in zip(SITES, results, strict=True)
    ):
        state = "converged" if result.converged else f"longest force {result.fmax:.2f} eV/A"
        print(f"{site:7s} {energy:9.4f} eV after {result.n_steps} steps, {state}")


if __name__ == "__main__":
    main()
