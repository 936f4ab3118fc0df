"""A leaderboard submission from real data, all the way: convert, train, predict, build, check.

    python benchmarks/leaderboard/rehearsal.py --source ../shared/data/oc20

trains four GemNet-dT (configs/s2ef/oc20_frames/gemnet_dT_small.yml, which differ by their seed) on the systems of
s2ef_train, two at a time on a core each, predicts the four unlabelled test splits with their mean, and writes
WORK/submission.npz with its provenance. It takes about an hour on two cores; members of benchmarks/oc20_ensemble.py
lie in the same place and are taken as they are. `--quick` goes the same way in a minute, with nothing learned.

All test systems are unseen in training, so what counts is the error on unseen systems: the four of s2ef_val_id decide
how far the forces are trusted. Leaving each of the four out of that fit tells what it is worth. The report goes to
benchmarks/results/leaderboard_table.md, that of --quick to WORK.

The rule: a force is the mean over the members times a * max(0, 1 - c s^2 / |F|^2), where s is the spread of the members
and |F| the length of the mean: forces that the members disagree on become zero. The energy is
m + b (E - m) / (1 + (s / w)^2), E the mean over the members, s their spread, m the median energy of the training
systems. b and w minimise the mean MAE of the calibration systems; a and c are the most cautious pair (smallest a,
largest c) with at least 90 % of the best pair's gain over zero force.

The script may be stopped at any time and started again; what is done is kept.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oc20_ensemble import AT_ONCE, CONFIG, latest

from ocpgem.data.open import open_dataset
from ocpgem.evaluate.prediction_set import (
    PredictionSet,
    read_provenance,
    read_raw,
    score,
    write_predictions,
)

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("id", "ood_ads", "ood_cat", "ood_both")
QUICK = ("steps=2", "model.atom_dim=16", "model.edge_dim=16", "scale_factors.batches=1", "data.batch_size=2")


@dataclass(frozen=True)
class Rule:
    """How far an ensemble is trusted; see above."""

    a: float
    c: float
    b: float
    w: float
    median_energy: float

    def forces(self, each: PredictionSet) -> NDArray[np.float64]:
        """Forces [N, 3] in eV/A."""
        assert each.forces is not None, "the models have forces"
        assert each.forces_spread is not None, "and there are several"
        mean = each.forces.astype(float)
        agreement = 1 - self.c * each.forces_spread**2 / np.maximum((mean**2).sum(axis=1), 1e-12)
        return self.a * np.maximum(agreement, 0)[:, None] * mean

    def energy(self, each: PredictionSet) -> NDArray[np.float64]:
        """Energies [n] in eV."""
        assert each.energy_spread is not None, "there are several models"
        trust = self.b / (1 + (each.energy_spread / self.w) ** 2)
        energy: NDArray[np.float64] = self.median_energy + trust * (each.energy - self.median_energy)
        return energy

    def apply(self, each: PredictionSet) -> PredictionSet:
        """The predictions of the rule."""
        return PredictionSet(**each.columns() | {"forces": self.forces(each), "energy": self.energy(each)})


def fit_rule(each: PredictionSet, median: float) -> Rule:
    """The rule for labelled predictions, every system counting the same."""
    pairs = {
        (a, c): force_error(Rule(a, c, 0.0, 1.0, median), each)
        for a in (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
        for c in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    }
    zero, best = pairs[0.0, 0.0], min(pairs.values())
    enough = [pair for pair, error in pairs.items() if error <= zero - 0.9 * (zero - best)]
    a, c = min(enough, key=lambda pair: (pair[0], -pair[1]))
    rules = [Rule(a, c, b, w, median) for b in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) for w in (0.1, 0.3, 1.0)]
    return min(rules, key=lambda rule: energy_error(rule, each))


def force_error(rule: Rule, each: PredictionSet) -> float:
    """Force MAE on free atoms in eV/A, its mean over systems."""
    assert each.forces_true is not None, "calibration needs labels"
    free = ~each.fixed
    system = np.repeat(each.sid, each.natoms)[free]
    error = np.abs(rule.forces(each) - each.forces_true)[free].mean(axis=1)
    return float(np.mean([error[system == sid].mean() for sid in np.unique(system)]))


def energy_error(rule: Rule, each: PredictionSet) -> float:
    """Energy MAE in eV, its mean over systems."""
    assert each.energy_true is not None, "calibration needs labels"
    error = np.abs(rule.energy(each) - each.energy_true)
    return float(np.mean([error[each.sid == sid].mean() for sid in np.unique(each.sid)]))


def run(*words: object) -> None:
    """`python main.py WORDS`, shown and timed; ends this script where it fails."""
    started = time.monotonic()
    print("$ python main.py", *words, flush=True)
    environ = os.environ | {"OMP_NUM_THREADS": "1"} if words[0] == "train" else None
    command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    done = subprocess.run(command, check=False, env=environ)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


def prepare(source: Path, data: Path) -> None:
    """The data sets of the configuration, under the names that it has for them, and the test sets."""
    sets: dict[str, list[object]] = {
        "train": [source / "s2ef_train", "--chunks", "0-3"],
        "val_seen": [source / "s2ef_train", "--chunks", "4"],
        "val_id": [source / "s2ef_val_id"],
        **{f"test_{split}": [source / f"s2ef_test_{split}"] for split in TESTS},
    }
    for name, words in sets.items():
        if not (data / name).exists():
            run("data", "convert", *words, "--out", data / name, "--workers", 1)


def train(args: argparse.Namespace) -> list[Path]:
    """The last checkpoints of the members, which differ by their seed."""
    settings = [
        f"data.train={args.data / 'train'}",
        *(f"data.val.{name}={args.data / name}" for name in ("val_id", "val_seen")),
        *(QUICK if args.quick else ()),
    ]
    runs = [args.members_in / str(seed) for seed in range(1, args.members + 1)]

    def train_one(seed: int, folder: Path) -> None:
        run("train", CONFIG, "--run-dir", folder, f"seed={seed}", *settings)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(train_one, range(1, args.members + 1), runs))
    return [latest(folder) for folder in runs]


def predict(members: list[Path], path: Path, out: Path) -> PredictionSet:
    """Raw predictions of the ensemble."""
    if not out.exists():
        others = [word for member in members[1:] for word in ("--ensemble", member)]
        run("predict", members[0], *others, "--data", path, "--out", out, "--dialect", "raw", "--workers", 0)
    return read_raw(out)


def of_systems(each: PredictionSet, sids: NDArray[np.int64]) -> PredictionSet:
    """The predictions of some systems."""
    return each.take(np.flatnonzero(np.isin(each.sid, sids)))


def by_system(each: PredictionSet, median_energy: float, rule: Rule) -> list[str]:
    """A Markdown table of the errors on every unseen system, and their means; the last column of each three is honest:

    the rule is fitted on the other systems.
    """
    lines = [
        "",
        "Force MAE in eV/A and energy MAE in eV on systems that no member has seen, and their means over systems:",
        "",
        "| system | zero force | members | rule | rule without it | median energy | members | rule | rule without it |",
        "|---|" + "---:|" * 8,
    ]
    rows = []
    sids = np.unique(each.sid)
    for sid in sids:
        mine = of_systems(each, sid)
        other = fit_rule(of_systems(each, np.setdiff1d(sids, sid)), median_energy)
        nothing = Rule(0.0, 0.0, 0.0, 1.0, median_energy)
        scores = [score(found) for found in (nothing.apply(mine), mine, rule.apply(mine), other.apply(mine))]
        rows.append([found["forces_mae"] for found in scores] + [found["energy_mae"] for found in scores])
        lines.append(f"| {sid} | {' | '.join(f'{value:.4f}' for value in rows[-1])} |")
    lines.append(f"| mean | {' | '.join(f'{value:.4f}' for value in np.mean(rows, axis=0))} |")
    return lines


def main() -> None:
    """Do what is missing, write the report and the submission."""
    args = parse_arguments()
    prepare(args.source, args.data)
    members = train(args)
    training = open_dataset(args.data / "train")
    energies = [training[index].energy for index in range(0, len(training), 4)]
    median = float(np.median(np.array(energies, dtype=float)))
    args.work.mkdir(parents=True, exist_ok=True)
    each = predict(members, args.data / "val_id", args.work / f"val_id_mean_of_{len(members)}.npz")
    rule = fit_rule(each, median)
    lines = [
        "# A leaderboard submission from real data",
        "",
        "    python benchmarks/leaderboard/rehearsal.py",
        "",
        f"wrote this file: {args.members} members, trained on the systems of s2ef_train.",
        f"The rule: {json.dumps(asdict(rule))}.",
        *by_system(each, median, rule),
    ]
    args.report.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    submit(args, members, rule)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, default=ROOT.parent / "shared" / "data" / "oc20")
    parser.add_argument("--work", type=Path, default=Path("runs/leaderboard"))
    parser.add_argument("--data", type=Path, default=Path("data/oc20"))
    parser.add_argument("--members", type=int, help="default: 4; 2 with --quick")
    parser.add_argument("--members-in", type=Path, default=Path("runs/oc20_ensemble"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="narrow models, two steps, everything in --work")
    args = parser.parse_args()
    args.members = args.members or (2 if args.quick else 4)
    if args.members < 2:
        parser.error("--members must be at least 2: the rule needs their spread")
    args.report = ROOT / "benchmarks" / "results" / "leaderboard_table.md"
    if args.quick:
        args.data, args.members_in = args.work / "data", args.work / "members"
        args.report = args.work / "table.md"
    return args


def submit(args: argparse.Namespace, members: list[Path], rule: Rule) -> None:
    """Predict the test splits, apply the rule, build and check the submission."""
    files = []
    for split in TESTS:
        raw = args.work / f"test_{split}_mean_of_{len(members)}.npz"
        each = predict(members, args.data / f"test_{split}", raw)
        out = args.work / f"test_{split}.npz"
        write_predictions(rule.apply(each), out, "raw", {"rule": asdict(rule), "mean": read_provenance(raw)})
        files.append(f"{split}={out}")
    sets = [word for split in TESTS for word in ("--data", f"{split}={args.data / f'test_{split}'}")]
    run("leaderboard", "build", *files, *sets, "--out", args.work / "submission.npz")
    run("leaderboard", "check", args.work / "submission.npz", *sets)


if __name__ == "__main__":
    main()
