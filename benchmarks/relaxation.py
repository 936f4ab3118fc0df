"""The batched relaxation beside ASE's optimisers, on the same potential and from the same structures.

    python datasets/demo.py --out data/demo
    python benchmarks/relaxation.py minima                # 100 demo systems, EMT behind the same interface
    python benchmarks/relaxation.py throughput            # one system after another with ASE, and batches; a GemNet
    python benchmarks/relaxation.py skin                  # neighbour lists along relaxations
    python benchmarks/relaxation.py table                 # write results/relaxation_table.md from what was measured

`minima` relaxes the first 100 demo relaxations (data/demo/is2re/train) to 0.01 eV/A with ASE's LBFGS, BFGSLineSearch
and FIRE and with ours, compares the energies they end at, and counts force calls and seconds. What is done is kept in
--work, so that an interrupted run goes on. `throughput` computes a fixed number of L-BFGS steps of systems of three
sizes with a GemNet-dT of the size of configs/quickstart.yml (random weights: the speed does not depend on them), with
the ASE calculator one by one and with batches of 1 to 32. `skin` times the neighbour lists (6 A) of a hundred steps of
EMT relaxations for several skins. Everything runs on one core.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from ase.calculators.emt import EMT
from ase.optimize import FIRE, LBFGS, BFGSLineSearch
from ase.optimize.optimize import Optimizer as AseOptimizer

from ocpgem.data.open import open_dataset
from ocpgem.data.system import System
from ocpgem.evaluate.relax.loop import Relaxation, RelaxSettings
from ocpgem.evaluate.relax.optimizers import FireSettings, LbfgsSettings
from ocpgem.evaluate.relax.surfaces import AseSurface, Member, PotentialSurface
from ocpgem.graph.skin import SkinList
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential

RESULTS = Path(__file__).parent / "results"
FMAX, MOST_STEPS = 0.01, 600
MEV = 1e-3

ASE_OPTIMIZERS: dict[str, Callable[[Any], AseOptimizer]] = {
    "ASE LBFGS": lambda atoms: LBFGS(atoms, logfile=None, memory=50, alpha=70.0),
    "ASE BFGSLineSearch": lambda atoms: BFGSLineSearch(atoms, logfile=None),
    "ASE FIRE": lambda atoms: FIRE(atoms, logfile=None),
}
OURS = {"ours, L-BFGS": LbfgsSettings(), "ours, FIRE": FireSettings()}

QUICKSTART = {
    "variant": "gemnet_dT",
    "atom_dim": 64,
    "edge_dim": 64,
    "n_blocks": 2,
    "radial_basis": {"n_radial": 32},
    "neighbors": {"cutoff": 5.0, "max_neighbors": 50},
    "triplets": {"in_dim": 16, "out_dim": 16, "circular_dim": 8},
    "layers": {"atom": 2},
}


def relax_with_ase(system: System, make: Callable[[Any], AseOptimizer]) -> dict[str, float]:
    """One relaxation with EMT; force calls are counted where they are computed."""
    atoms = system.to_atoms()
    atoms.calc = EMT()
    calls = [0]
    inner = atoms.calc.calculate

    def counted(*args: Any, **kwargs: Any) -> None:
        calls[0] += 1
        inner(*args, **kwargs)

    atoms.calc.calculate = counted
    started = time.process_time()
    try:
        converged = bool(make(atoms).run(fmax=FMAX, steps=MOST_STEPS))
    except RuntimeError:  # the line search gives up
        converged = False
    energy = float(atoms.get_potential_energy())
    return {
        "energy": energy,
        "calls": calls[0],
        "seconds": time.process_time() - started,
        "converged": converged,
    }


def relax_with_ours(systems: Sequence[System], settings: Any) -> list[dict[str, float]]:
    started = time.process_time()
    run = Relaxation(AseSurface(EMT), RelaxSettings(FMAX, MOST_STEPS, settings), batch_size=32)
    found = sorted(run.run(Member(i, s) for i, s in enumerate(systems)), key=lambda each: each.index)
    seconds = (time.process_time() - started) / len(found)
    return [
        {
            "energy": each.last.energy,
            "calls": each.n_steps + 1,
            "seconds": seconds,
            "converged": each.converged,
        }
        for each in found
    ]


def measure_minima(args: argparse.Namespace) -> None:
    dataset = open_dataset(args.data, args.systems)
    systems = [dataset[index] for index in range(len(dataset))]
    for name, make in ASE_OPTIMIZERS.items():
        done = [relax_with_ase(system, make) for system in systems] if not kept(args, name) else None
        keep(args, name, done)
    for name, settings in OURS.items():
        keep(args, name, relax_with_ours(systems, settings) if not kept(args, name) else None)


def kept(args: argparse.Namespace, name: str) -> Any:
    path = args.work / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def keep(args: argparse.Namespace, name: str, found: Any) -> None:
    if found is not None:
        args.work.mkdir(parents=True, exist_ok=True)
        (args.work / f"{name}.json").write_text(json.dumps(found))
        print(f"{name}: done", flush=True)


def enlarged(system: System, repeat: tuple[int, int, int], seed: int) -> System:
    """A supercell with rattled atoms, so that no two systems are alike."""
    from ocpgem.data.system import system_from_atoms

    atoms = replace(system, energy_relaxed=None, pos_relaxed=None).to_atoms().repeat(repeat)
    atoms.rattle(0.05, seed=seed)
    return system_from_atoms(atoms, sid=seed)


def measure_throughput(args: argparse.Namespace) -> None:
    """Force evaluations per second of one by one and of batches, alternating, medians of several rounds."""
    from ocpgem import Calculator

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Potential(GemNetConfig.model_validate(QUICKSTART), Normalization(forces_std=0.1)).eval()
    dataset = open_dataset(args.data, 32)
    rows = []
    for label, repeat in (("molecule-sized", None), ("demo", (1, 1, 1)), ("OC20-sized", (2, 1, 1))):
        if repeat is None:
            systems = [small_cluster(seed) for seed in range(32)]
        else:
            systems = [enlarged(dataset[index], repeat, index) for index in range(32)]
        n_steps = 3
        settings = RelaxSettings(fmax=1e-9, steps=n_steps)
        times: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            one_by_one = systems[:4]
            started = time.process_time()
            for system in one_by_one:
                atoms = system.to_atoms()
                atoms.calc = Calculator(model, skin=0.0)
                LBFGS(atoms, logfile=None, alpha=70.0).run(fmax=1e-9, steps=n_steps)
            times.setdefault("ASE, one by one", []).append((time.process_time() - started) / len(one_by_one))
            for size in (1, 8, 32):
                chosen = systems[: max(4, size)]
                started = time.process_time()
                run = Relaxation(PotentialSurface(model), settings, batch_size=size)
                list(run.run(Member(i, s) for i, s in enumerate(chosen)))
                times.setdefault(f"batch {size}", []).append((time.process_time() - started) / len(chosen))
        medians = {name: statistics.median(values) / (n_steps + 1) for name, values in times.items()}
        n_atoms = float(np.mean([system.n_atoms for system in systems]))
        rows.append({"systems": label, "atoms": n_atoms, "seconds": medians})
        print(json.dumps(rows[-1]), flush=True)
    keep(args, "throughput", rows)


def measure_skin(args: argparse.Namespace) -> None:
    """Milliseconds per step of the neighbours along the ways of some relaxations."""
    dataset = open_dataset(args.data, 8)
    run = Relaxation(AseSurface(EMT), RelaxSettings(1e-3, 100, record_every=1))
    ways = list(run.run(Member(i, dataset[i]) for i in range(len(dataset))))
    rows = []
    for skin in (0.0, 0.3, 0.6, 1.0, 1.5):
        seconds, searches, steps = 0.0, 0, 0
        for way in ways:
            lists = SkinList(6.0, skin)
            started = time.process_time()
            for frame in way.frames:
                lists.neighbors(frame.pos, way.system.cell, way.system.pbc)
            seconds += time.process_time() - started
            searches += lists.n_searches
            steps += len(way.frames)
        rows.append({"skin": skin, "ms": 1000 * seconds / steps, "searches": searches / steps})
    keep(args, "skin", rows)


def small_cluster(seed: int) -> System:
    """Nine atoms without periodic images."""
    from ase.build import molecule

    from ocpgem.data.system import system_from_atoms

    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return system_from_atoms(atoms, sid=seed)


def write_table(args: argparse.Namespace) -> None:
    minima = {name: kept(args, name) for name in (*ASE_OPTIMIZERS, *OURS)}
    lines = [
        "# Batched relaxation beside ASE", "",
        "Made by `benchmarks/relaxation.py` (see there for the commands and what is measured).", "",
        f"{platform.processor() or platform.machine()}, one core shared with other work; seconds are CPU seconds.", "",
        f"## {len(minima['ASE LBFGS'])} demo systems to {FMAX} eV/A with EMT", "",
        "| optimiser | converged | mean calls | median | CPU s | minimum of ASE LBFGS | of BFGSLineSearch |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, found in minima.items():
        calls = [each["calls"] for each in found]
        lines.append(
            f"| {name} | {sum(each['converged'] for each in found)} | {statistics.mean(calls):.1f} | "
            f"{statistics.median(calls):.0f} | {statistics.mean(each['seconds'] for each in found):.2f} | "
            f"{agreement(found, minima['ASE LBFGS'])} | {agreement(found, minima['ASE BFGSLineSearch'])} |"
        )
    lines += ["", f"Same minimum: energies that differ by less than 1 meV; at {FMAX} eV/A.", ""]
    rows = kept(args, "throughput")
    if rows:
        names = list(rows[0]["seconds"])
        lines += [
            "## Milliseconds per system and force evaluation, GemNet-dT of configs/quickstart.yml", "",
            "| systems | atoms | " + " | ".join(names) + " | batch 32 against one by one |",
            "|---" * (len(names) + 3) + "|",
        ]  # fmt: skip
        for row in rows:
            cells = " | ".join(f"{1000 * row['seconds'][name]:.1f}" for name in names)
            gain = row["seconds"]["ASE, one by one"] / row["seconds"]["batch 32"]
            lines.append(f"| {row['systems']} | {row['atoms']:.0f} | {cells} | {gain:.1f} |")
        lines.append("")
    skins = kept(args, "skin")
    if skins:
        lines += [
            "## Neighbours within 6 A along EMT relaxations of 100 steps", "",
            "| skin, A | ms per step | searches per step |", "|---|---|---|",
        ]  # fmt: skip
        lines += [f"| {row['skin']} | {row['ms']:.2f} | {row['searches']:.2f} |" for row in skins]
        lines.append("")
    text = "\n".join(lines)
    (RESULTS / "relaxation_table.md").write_text(text)
    print(text)


def agreement(one: list[dict[str, float]], other: list[dict[str, float]]) -> str:
    same = sum(abs(a["energy"] - b["energy"]) < MEV for a, b in zip(one, other, strict=True))
    return f"{100 * same / len(one):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["minima", "throughput", "skin", "table"])
    parser.add_argument("--data", type=Path, default=Path("data/demo/is2re/train"))
    parser.add_argument("--systems", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("data/relaxation_benchmark"))
    args = parser.parse_args()
    work = {
        "minima": measure_minima,
        "throughput": measure_throughput,
        "skin": measure_skin,
        "table": write_table,
    }
    work[args.what](args)


if __name__ == "__main__":
    main()
