"""An ensemble of small GemNet-dT on the real OC20 frames: each member and their mean, on seen and unseen systems.

    python benchmarks/oc20_ensemble.py --members 4

Trains the members (they differ by their seed), two at a time on a core each, and writes
benchmarks/results/oc20_ensemble_table.md: MAE of forces on free atoms in eV/A and of energies in eV. Members that are
trained already are taken as they are.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from oc20_frames import error_lines

from ocpgem.config import load_config
from ocpgem.data.dataset import Dataset, Subset
from ocpgem.data.open import open_dataset
from ocpgem.evaluate.api import score
from ocpgem.evaluate.open_model import Model, load
from ocpgem.evaluate.predict import Effort
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import open_training_set, open_validation_sets

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


def row(name: str, minutes: float, model: Model, sets: Sequence[Dataset]) -> str:
    """A line of the table: force and energy MAE on each data set."""
    cells = []
    for dataset in sets:
        found = score(model, dataset, Effort(batch_size=8, progress=False))
        cells += [f"{found['forces_mae']:.4f}", f"{found['energy_mae']:.2f}"]
    line = f"| {name} | {minutes:.0f} | {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def main() -> None:
    """Train what is missing, score, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "oc20_ensemble")
    args = parser.parse_args()
    runs = [args.folder / str(seed) for seed in range(1, args.members + 1)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(train, runs, range(1, args.members + 1)))
    config = load_config(CONFIG, (), TrainConfig)
    train_set = open_training_set(config.data)
    tenth = Subset(train_set, np.arange(0, len(train_set), 10))
    sets = [tenth, *open_validation_sets(config.data).values()]
    names = ["every tenth training frame", *open_validation_sets(config.data)]
    lines = [
        f"| | minutes | {' | '.join(f'{name}: forces | energy' for name in names)} |",
        f"|---|---:|{'---:|---:|' * len(names)}",
    ]
    unseen = next(iter(config.data.val_sets.values())).path
    minutes = [minutes_of(run) for run in runs]
    for number, run in enumerate(runs):
        lines.append(row(f"member {number + 1}", minutes[number], load(latest(run)), sets))
    for count in range(2, len(runs) + 1, 2):
        wall = sum(minutes[:count]) / AT_ONCE
        lines.append(row(f"{count} members", wall, load([latest(run) for run in runs[:count]]), sets))
    lines += error_lines(load([latest(run) for run in runs]), train_set, open_dataset(unseen))
    (RESULTS / "oc20_ensemble_table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
