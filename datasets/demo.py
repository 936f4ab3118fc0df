"""The demo data set: small adsorbates on slabs of EMT metals, in OC20's terms, made in about a minute.

    python datasets/demo.py --out DIR [--seed 0] [--frames 4000] [--workers N]

writes DIR/s2ef/<split> and DIR/is2re/<split> for the splits train, val_id, val_ood_ads, val_ood_cat and
val_ood_both. The same seed makes the same bytes, whatever the number of workers. See datasets/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by numpy in the workers; 30 atoms need no threads

import numpy as np
from ase import Atoms, units
from ase.build import fcc100, fcc110, fcc111, fcc211, molecule
from ase.calculators.emt import EMT, beta, parameters
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, covalent_radii
from ase.formula import Formula
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE, LBFGS

from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.system import System
from ocpgem.data.workers import Counter, available_cores, run_jobs
from ocpgem.errors import OcpgemError, RequestError

TRAIN_ADSORBATES = ("H", "C", "N", "O", "CO", "OH", "NH2", "CH3")
OOD_ADSORBATES = ("NO", "CH", "NH", "H2O")
# As in OC20, unseen catalysts are new compositions of elements that occur in training.
TRAIN_CATALYSTS = ("Al", "Cu", "Ag", "Ni", "Pd", "Cu3Au", "Ni3Pt", "Pd3Ag", "Au3Pt", "Pt3Cu")
OOD_CATALYSTS = ("Au", "Pt", "Cu3Pd", "Ag3Ni", "Pt3Al")
SPLITS = {
    "train": (TRAIN_CATALYSTS, TRAIN_ADSORBATES),
    "val_id": (TRAIN_CATALYSTS, TRAIN_ADSORBATES),
    "val_ood_ads": (TRAIN_CATALYSTS, OOD_ADSORBATES),
    "val_ood_cat": (OOD_CATALYSTS, TRAIN_ADSORBATES),
    "val_ood_both": (OOD_CATALYSTS, OOD_ADSORBATES),
}
SURFACES = {
    "111": (fcc111, (3, 3, 3)),
    "111-thick": (fcc111, (3, 3, 4)),
    "100": (fcc100, (3, 3, 3)),
    "110": (fcc110, (2, 3, 4)),
    "211": (fcc211, (3, 3, 3)),
}

RELAXATION_FRAMES, RATTLED_FRAMES, DYNAMICS_FRAMES = 12, 5, 3
FRAMES_PER_SYSTEM = RELAXATION_FRAMES + RATTLED_FRAMES + DYNAMICS_FRAMES
FREE_DEPTH = 3.0  # A below the highest metal atom; deeper atoms are fixed and tagged 0
LARGEST_FORCE = 30.0  # eV/A; frames beyond it are left out
CONVERGED, MOST_STEPS = 0.05, 60
BONDED = 1.1  # first distance of an adsorbate, over the sum of covalent radii


@dataclass(frozen=True)
class SystemPlan:
    """One relaxation: its number (`sid`), what is adsorbed where, and the split it belongs to."""

    sid: int
    split: str
    catalyst: str
    surface: str
    adsorbate: str


@dataclass(frozen=True)
class CleanSlab:
    """A relaxed slab without adsorbate and its energy in eV."""

    atoms: Atoms
    energy: float


@dataclass(frozen=True)
class Labelled:
    """The records of one system, and how many of its frames were left out."""

    frames: list[System]
    pair: System | None
    n_dropped: int


def plan_systems(frames: int, seed: int) -> list[SystemPlan]:
    """Which systems to make for about `frames` training frames and a tenth of it per validation split."""
    rng = np.random.default_rng([seed, 0])
    plans: list[SystemPlan] = []
    for split, (catalysts, adsorbates) in SPLITS.items():
        wanted = frames if split == "train" else frames / 10
        pairs = rng.permutation(list(itertools.product(catalysts, adsorbates)))
        for number in range(max(1, round(wanted / FRAMES_PER_SYSTEM))):
            catalyst, adsorbate = pairs[number % len(pairs)]
            surface = str(rng.choice(list(SURFACES)))
            plans.append(SystemPlan(len(plans), split, str(catalyst), surface, str(adsorbate)))
    return plans


def gas_references() -> dict[str, float]:
    """Energies in eV of H, C, N, O taken from relaxed H2, H2O, CO and N2, as OC20 does."""
    energy = {}
    for name in ("H2", "H2O", "CO", "N2"):
        atoms = molecule(name)
        atoms.calc = EMT()
        FIRE(atoms, logfile=None).run(fmax=0.001, steps=2000)
        energy[name] = float(atoms.get_potential_energy())
    oxygen = energy["H2O"] - energy["H2"]
    return {"H": energy["H2"] / 2, "N": energy["N2"] / 2, "O": oxygen, "C": energy["CO"] - oxygen}


def clean_slab(catalyst: str, surface: str, seed: int) -> CleanSlab:
    """The relaxed slab of a metal or of a randomly mixed alloy, its lower part fixed."""
    share = Formula(catalyst).count()
    build, size = SURFACES[surface]
    lattice = sum(n * parameters[metal][1] for metal, n in share.items()) / sum(share.values())
    atoms = build(next(iter(share)), size, a=lattice * units.Bohr * beta * np.sqrt(2), vacuum=9.0)
    atoms.pbc = True
    rng = np.random.default_rng([seed, 1, sum(catalyst.encode()), sum(surface.encode())])
    mixture = np.repeat([atomic_numbers[m] for m in share], list(share.values()))
    atoms.numbers = rng.permutation(np.resize(mixture, len(atoms)))
    deep = atoms.positions[:, 2] < atoms.positions[:, 2].max() - FREE_DEPTH
    atoms.set_tags(np.where(deep, 0, 1))
    atoms.set_constraint(FixAtoms(mask=deep))
    atoms.calc = EMT()
    LBFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    energy = float(atoms.get_potential_energy())
    atoms.calc = None
    return CleanSlab(atoms, energy)


def make_slabs(keys: tuple[int, Sequence[tuple[str, str]]], done: Counter) -> list[CleanSlab]:
    """The slabs of some (catalyst, surface) pairs for a seed: a job for `run_jobs`."""
    seed, pairs = keys
    slabs = []
    for catalyst, surface in pairs:
        slabs.append(clean_slab(catalyst, surface, seed))
        done.add(1)
    return slabs


def place(slab: Atoms, adsorbate: str, rng: np.random.Generator) -> Atoms:
    """The adsorbate, randomly turned, over a random point of the surface, at bonding distance."""
    ads = Atoms(adsorbate) if adsorbate in parameters else molecule(adsorbate)
    ads.rotate(rng.uniform(0, 360), "z")
    ads.rotate(rng.uniform(0, 180), "x")
    ads.rotate(rng.uniform(0, 360), "z")
    ads.set_tags(2)
    height = slab.positions[:, 2].max() - ads.positions[:, 2].min()
    ads.positions += rng.random(2) @ slab.cell.array[:2] + [0, 0, height]
    radii = covalent_radii[ads.numbers][:, None] + covalent_radii[slab.numbers]
    both = slab + ads
    first, pairs = len(slab), (slice(len(slab), None), slice(0, len(slab)))
    while (both.get_all_distances(mic=True)[pairs] < BONDED * radii).any():
        both.positions[first:, 2] += 0.1
    return both


@dataclass(frozen=True)
class SystemJob:
    """A system to compute, with what it needs."""

    plan: SystemPlan
    slab: CleanSlab
    references: dict[str, float]
    seed: int


def label_system(job: SystemJob, done: Counter) -> Labelled:
    """Relax one system, then rattle and heat it; every kept structure becomes a labelled frame."""
    rng = np.random.default_rng([job.seed, 2, job.plan.sid])
    atoms = place(job.slab.atoms, job.plan.adsorbate, rng)
    atoms.calc = EMT()
    path: list[Atoms] = []
    optimizer = LBFGS(atoms, logfile=None)
    optimizer.attach(lambda: path.append(snapshot(atoms)))
    converged = bool(optimizer.run(fmax=CONVERGED, steps=MOST_STEPS))
    chosen = np.unique(np.linspace(0, len(path) - 1, RELAXATION_FRAMES).round().astype(int))
    images = [path[index] for index in chosen]
    images += rattled(path, RATTLED_FRAMES, rng)
    images += heated(path[-1], DYNAMICS_FRAMES, rng)
    kept = [image for image in images if np.abs(image.arrays["forces"]).max() <= LARGEST_FORCE]
    frames = [to_system(image, job, fid) for fid, image in enumerate(kept)]
    pair = relaxation_pair(path, job) if converged else None
    done.add(1)
    return Labelled(frames, pair, len(images) - len(kept))


def snapshot(atoms: Atoms) -> Atoms:
    """A copy with its energy and the forces on all atoms, fixed ones included."""
    image = atoms.copy()
    image.info["energy"] = float(atoms.get_potential_energy())
    image.arrays["forces"] = atoms.get_forces(apply_constraint=False)
    return image


def rattled(path: list[Atoms], count: int, rng: np.random.Generator) -> list[Atoms]:
    """Structures of a relaxation with their free atoms displaced at random."""
    images = []
    for _ in range(count):
        atoms = path[rng.integers(len(path))].copy()
        shift = rng.normal(0, rng.choice([0.03, 0.06, 0.12]), (len(atoms), 3))
        atoms.positions += np.where(atoms.get_tags()[:, None] > 0, shift, 0)
        atoms.calc = EMT()
        images.append(snapshot(atoms))
    return images


def heated(start: Atoms, count: int, rng: np.random.Generator) -> list[Atoms]:
    """Frames 6 fs apart of molecular dynamics from a structure at 300 to 1000 K."""
    atoms = start.copy()
    atoms.calc = EMT()
    thermal = np.sqrt(
        atoms.get_masses() * units.kB * 2 * rng.uniform(300, 1000)
    )  # half of it turns potential
    atoms.set_momenta(thermal[:, None] * rng.normal(size=(len(atoms), 3)))  # none for fixed atoms
    dynamics = VelocityVerlet(atoms, timestep=2 * units.fs)
    images = []
    for _ in range(count):
        dynamics.run(3)
        images.append(snapshot(atoms))
    return images


def adsorption_energy(total: float, slab: CleanSlab, adsorbate: str, references: dict[str, float]) -> float:
    """Energy minus that of the relaxed clean slab and of the adsorbate's atoms in the gas phase, eV."""
    gas = sum(n * references[element] for element, n in Formula(adsorbate).count().items())
    return total - slab.energy - gas


def to_system(image: Atoms, job: SystemJob, fid: int) -> System:
    """The record of a labelled structure."""
    tags = image.get_tags()
    return System(
        pos=image.positions.astype(np.float32),
        cell=image.cell.array.astype(np.float32),
        pbc=np.ones(3, dtype=bool),
        atomic_numbers=image.numbers.astype(np.uint8),
        tags=tags.astype(np.uint8),
        fixed=tags == 0,
        energy=adsorption_energy(image.info["energy"], job.slab, job.plan.adsorbate, job.references),
        forces=image.arrays["forces"].astype(np.float32),
        sid=job.plan.sid,
        fid=fid,
    )


def relaxation_pair(path: list[Atoms], job: SystemJob) -> System:
    """The IS2RE record: the first structure of a relaxation and what became of it."""
    first, last = to_system(path[0], job, 0), to_system(path[-1], job, 0)
    first.forces = None
    first.energy_relaxed, first.pos_relaxed = last.energy, last.pos
    return first


def build(out: Path, seed: int, frames: int, workers: int) -> dict[str, Any]:
    """Make the whole data set in `out`; returns the counts that it also writes to demo.json."""
    plans = plan_systems(frames, seed)
    references = gas_references()
    keys = sorted({(plan.catalyst, plan.surface) for plan in plans})
    slab_jobs = [(seed, [key]) for key in keys]
    slab_lists = run_jobs(make_slabs, slab_jobs, workers, len(keys), "clean slabs    ")
    slabs = dict(zip(keys, itertools.chain.from_iterable(slab_lists), strict=True))
    jobs = [SystemJob(plan, slabs[plan.catalyst, plan.surface], references, seed) for plan in plans]
    labelled = run_jobs(label_system, jobs, workers, len(jobs), "adsorbed systems")
    counts: dict[str, Any] = {"seed": seed, "frames": frames, "references_eV": references, "splits": {}}
    for split in SPLITS:
        mine = [result for plan, result in zip(plans, labelled, strict=True) if plan.split == split]
        images = [frame for result in mine for frame in result.frames]
        pairs = [result.pair for result in mine if result.pair is not None]
        note = {"kind": "ocpgem demo", "split": split, "seed": seed, "frames": frames}
        write_dataset(out / "s2ef" / split, images, note)
        if pairs:
            write_dataset(out / "is2re" / split, pairs, note)
        counts["splits"][split] = {
            "systems": len(mine),
            "s2ef": len(images),
            "is2re": len(pairs),
            "left_out": sum(result.n_dropped for result in mine),
        }
    (out / "demo.json").write_text(json.dumps(counts, indent=2) + "\n")
    return counts


def make(out: Path, seed: int = 0, frames: int = 4000, workers: int | None = None) -> dict[str, Any]:
    """Make the data set unless `out` has it already; raises RequestError where `out` is something else."""
    if frames < 1 or seed < 0:
        raise RequestError(f"frames is {frames} and seed {seed}; they must be at least 1 and 0")
    if (out / "demo.json").exists():
        present: dict[str, Any] = json.loads((out / "demo.json").read_text())
        if (present["seed"], present["frames"]) == (seed, frames):
            return present
    if out.exists():
        raise RequestError(f"{out} exists already; remove it or choose another folder")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        counts = build(partial, seed, frames, available_cores() if workers is None else workers)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(out)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the demo data set: adsorbates on EMT metals.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=4000, help="training frames, about (default 4000)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    args = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        counts = make(args.out, args.seed, args.frames, args.workers)
    except OcpgemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for split, count in counts["splits"].items():
        print(
            "{:13s} {s2ef:5d} frames of {systems:4d} systems, {is2re:4d} relaxations".format(split, **count)
        )
    left_out = sum(count["left_out"] for count in counts["splits"].values())
    print(f"{left_out} frames with a force above {LARGEST_FORCE:.0f} eV/A were left out")
    print(f"{args.out} is ready ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
