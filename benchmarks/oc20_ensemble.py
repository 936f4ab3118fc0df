"""An ensemble of small GemNet-dT on the real OC20 frames: each member and their mean, on seen and unseen systems.

    python benchmarks/oc20_ensemble.py --members 4

Trains the members (they differ by their seed), two at a time on a core each, and writes to benchmarks/results:
oc20_ensemble_table.md, MAE of forces on free atoms in eV/A and of energies in eV, and oc20_ensemble.svg, that of the
forces over wall time. Members that are trained already are taken as they are.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oc20_frames import error_lines, read_validations

from ocpgem.config import load_config
from ocpgem.data.dataset import Dataset, Subset
from ocpgem.data.open import open_dataset
from ocpgem.evaluate.api import score
from ocpgem.evaluate.open_model import Model, load
from ocpgem.evaluate.predict import Effort
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import open_training_set, open_validation_sets

mpl.use("Agg")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CONFIG = ROOT / "configs" / "s2ef" / "oc20_frames" / "gemnet_dT_small.yml"
AT_ONCE = 2


def train(run: Path, seed: int) -> None:
    """Train one member on one core."""
    words: list[str | Path] = [
        sys.executable,
        ROOT / "main.py",
        "train",
        CONFIG,
        "--run-dir",
        run,
        f"seed={seed}",
    ]
    subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def minutes_of(run: Path) -> float:
    """Wall time of a run by its own records, validations included."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["seconds"] for line in lines) / 60


def latest(run: Path) -> Path:
    """The last checkpoint of a run, with its averaged weights."""
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


@dataclass(frozen=True)
class Row:
    """A model after so many minutes on both cores, with its force (eV/A) and energy (eV) MAE on each data set."""

    name: str
    minutes: float
    forces: list[float]
    energies: list[float]

    def __str__(self) -> str:
        cells = [
            f"{force:.4f} | {energy:.2f}" for force, energy in zip(self.forces, self.energies, strict=True)
        ]
        return f"| {self.name} | {self.minutes:.0f} | {' | '.join(cells)} |"


def measure(name: str, minutes: float, model: Model, sets: Sequence[Dataset]) -> Row:
    found = [score(model, dataset, Effort(batch_size=8, progress=False)) for dataset in sets]
    row = Row(name, minutes, [one["forces_mae"] for one in found], [one["energy_mae"] for one in found])
    print(row, flush=True)
    return row


def draw(runs: Sequence[Path], means: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Force MAE of every member over wall time, two at a time; the means as diamonds."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    began = 0.0
    for first in range(0, len(runs), AT_ONCE):
        pair = runs[first : first + AT_ONCE]
        for run in pair:
            for number, name in enumerate(names):
                records = read_validations(run)[name]
                minutes = [began + record["seconds"] / 60 for record in records]
                errors = [record["forces_mae"] for record in records]
                axes.plot(
                    minutes,
                    errors,
                    color=f"C{number}",
                    alpha=0.6,
                    label=None if first or run != pair[0] else name,
                )
        began += max(map(minutes_of, pair))
    for number, name in enumerate(names):  # means[...].forces begins with the training frames
        errors = [row.forces[number + 1] for row in means]
        axes.plot(
            [row.minutes for row in means], errors, "D", color=f"C{number}", label=f"{name}, mean of members"
        )
    axes.set_xlabel("wall time on two cores, minutes")
    axes.set_ylabel("force MAE, eV/Å")
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train what is missing, score, write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "oc20_ensemble")
    args = parser.parse_args()
    runs = [args.folder / str(seed) for seed in range(1, args.members + 1)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(train, runs, range(1, args.members + 1)))
    config = load_config(CONFIG, (), TrainConfig)
    train_set, held_out = open_training_set(config.data), open_validation_sets(config.data)
    sets = [Subset(train_set, np.arange(0, len(train_set), 10)), *held_out.values()]
    minutes = [minutes_of(run) for run in runs]
    members = [
        measure(f"member {number}", minutes[number - 1], load(latest(run)), sets)
        for number, run in enumerate(runs, start=1)
    ]
    means = [
        measure(
            f"{count} members",
            sum(minutes[:count]) / AT_ONCE,
            load([latest(run) for run in runs[:count]]),
            sets,
        )
        for count in range(AT_ONCE, len(runs) + 1, AT_ONCE)
    ]
    unseen = next(iter(config.data.val_sets.values())).path
    heads = [f"{name}: forces | energy" for name in ("every tenth training frame", *held_out)]
    lines = [
        f"| | minutes | {' | '.join(heads)} |",
        f"|---|---:|{'---:|---:|' * len(sets)}",
        *map(str, (*members, *means)),
        *error_lines(load([latest(run) for run in runs]), train_set, open_dataset(unseen)),
    ]
    (RESULTS / "oc20_ensemble_table.md").write_text("\n".join(lines) + "\n")
    draw(runs, means, list(held_out), RESULTS / "oc20_ensemble.svg")


if __name__ == "__main__":
    main()
