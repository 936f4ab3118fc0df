"""The barrier for an adsorbed atom to hop from one hollow of a surface to the next, by a climbing nudged elastic band.

    python examples/neb.py CHECKPOINT [--metal Pt] [--adsorbate O] [--images 5]

Both ends are relaxed in one batch; the images share one calculator.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ase.mep import NEB
from ase.optimize import FIRE

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ocpgem
from examples.relaxation import adsorbed


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Relax the ends, then the band; prints and returns the energies along it, relative to the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--metal", default="Pt")
    parser.add_argument("--adsorbate", default="O")
    parser.add_argument("--images", type=int, default=5, help="between the ends")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(arguments)

    model = ocpgem.load(args.checkpoint)
    ends = ocpgem.relax(
        model,
        [adsorbed(args.metal, args.adsorbate, site) for site in ("fcc", "hcp")],
        fmax=0.03,
        steps=args.steps,
    )
    first, last = (end.atoms for end in ends)
    calculator = ocpgem.Calculator(model)
    images = [first, *(first.copy() for _ in range(args.images)), last]
    for image in images:
        image.calc = calculator
    band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=True)
    band.interpolate("idpp", mic=True)
    FIRE(band, logfile=None).run(fmax=0.05, steps=args.steps)
    energies = [image.get_potential_energy() - images[0].get_potential_energy() for image in images]
    print("energies along the band (eV):", " ".join(f"{energy:.3f}" for energy in energies))
    print(f"barrier {max(energies):.3f} eV")
    return energies


if __name__ == "__main__":
    main()
