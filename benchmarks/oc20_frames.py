"""What a run on the real OC20 frames reached, beside the simplest guesses: tables and its curve.

    python benchmarks/oc20_frames.py runs/gemnet_dT_small

Reads the run's metrics.jsonl and the data sets it names, evaluates its last checkpoint on every tenth training frame
and, system by system, on the unseen ones, and writes benchmarks/results/NAME_table.md and NAME.svg.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ocpgem.checkpoint import load_potential
from ocpgem.config import parse_config
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import Recipe
from ocpgem.data.open import open_dataset
from ocpgem.models.combined import Combined
from ocpgem.models.potential import Potential
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import open_training_set, open_validation_sets

mpl.use("Agg")
RESULTS = Path(__file__).parent / "results"
BATCH = 8


def guesses(dataset: Dataset, median_energy: float) -> tuple[float, float]:
    """Force MAE of predicting zero on the free atoms (eV/A), and energy MAE of the training median (eV)."""
    total, count, energies = 0.0, 0, []
    for index in range(len(dataset)):
        system = dataset[index]
        assert system.forces is not None
        free = system.forces[~system.fixed]
        total += float(np.abs(free, dtype=np.float64).sum())
        count += free.size
        energies.append(system.energy)
    return total / count, float(np.abs(np.array(energies, dtype=float) - median_energy).mean())


def read_validations(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The validation records of a run by split."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "val":
            found.setdefault(record["split"], []).append(record)
    return found


def last_model(run: Path) -> Potential:
    """The averaged weights of the last checkpoint."""
    return load_potential(run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip())


def draw(validations: dict[str, list[dict[str, Any]]], zero: dict[str, float], path: Path) -> None:
    """Force MAE over wall time, with that of predicting zero as dashed lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for split, records in validations.items():
        minutes = [record["seconds"] / 60 for record in records]
        (line,) = axes.plot(minutes, [record["forces_mae"] for record in records], marker="o", label=split)
        axes.axhline(zero[split], color=line.get_color(), linestyle="--", linewidth=1)
    axes.set_xlabel("wall time, minutes")
    axes.set_ylabel("force MAE, eV/Å")
    axes.set_title("dashed: predicting zero force")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def force_errors(
    potential: Potential | Combined, dataset: Dataset, step: int
) -> dict[int, NDArray[np.float64]]:
    """By system: sums over free force components of |error| and |force|, and their number; of every step-th frame."""
    recipe = Recipe(dataset, potential.graph_spec)
    sums: dict[int, NDArray[np.float64]] = {}
    indices = np.arange(0, len(dataset), step)
    for first in range(0, len(indices), BATCH):
        batch, topology = recipe.prepare(indices[first : first + BATCH])
        with torch.no_grad():
            predicted = potential(batch, topology).forces
        assert predicted is not None
        free = ~batch.fixed
        for sid in batch.sid.unique().tolist():
            mine = free & (batch.sid[batch.batch] == sid)
            error = float((predicted - batch.forces)[mine].abs().double().sum())
            size = float(batch.forces[mine].abs().double().sum())
            found = np.array([error, size, 3 * int(mine.sum())])
            sums[sid] = sums.get(sid, np.zeros(3)) + found
    return sums


def error_lines(potential: Potential | Combined, train_set: Dataset, unseen: Dataset) -> list[str]:
    """Tables of the force MAE on training frames and on each unseen system."""
    train = sum(force_errors(potential, train_set, step=10).values())
    lines = [
        "",
        "| last checkpoint | force MAE eV/A | predicting zero |",
        "|---|---:|---:|",
        f"| every tenth training frame | {train[0] / train[2]:.4f} | {train[1] / train[2]:.4f} |",
    ]
    by_system = force_errors(potential, unseen, step=1)
    for sid, (error, size, number) in sorted(by_system.items()):
        lines.append(f"| unseen system {sid} | {error / number:.4f} | {size / number:.4f} |")
    total = sum(by_system.values())
    lines.append(f"| all unseen systems | {total[0] / total[2]:.4f} | {total[1] / total[2]:.4f} |")
    return lines


def main() -> None:
    """Write the table and the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="oc20_frames", help="of the files that are written")
    args = parser.parse_args()
    run = args.run
    config = parse_config((run / "config.yaml").read_text(), TrainConfig, str(run / "config.yaml"))
    environment = json.loads((run / "environment.json").read_text())
    train_set = open_training_set(config.data)
    median = float(np.median([train_set[index].energy or 0.0 for index in range(len(train_set))]))
    of_split = {
        split: guesses(dataset, median) for split, dataset in open_validation_sets(config.data).items()
    }
    validations = read_validations(run)
    lines = [
        f"{config.steps} steps of {config.data.batch_size} systems, "
        f"{environment['ranks']} rank on a {platform.machine()} CPU, commit {environment['git_commit']}.",
        "",
        "| minutes | step | split | force MAE eV/A | predicting zero | cosine | energy MAE eV | training median |",
        "|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for split, records in validations.items():
        force_guess, energy_guess = of_split[split]
        lines += [
            f"| {record['seconds'] / 60:.0f} | {record['step']} | {split} "
            f"| {record['forces_mae']:.4f} | {force_guess:.4f} | {record['forces_cosine_similarity']:.3f} "
            f"| {record['energy_mae']:.3f} | {energy_guess:.3f} |"
            for record in records
        ]
    unseen = next(iter(config.data.val_sets.values())).path
    lines += error_lines(last_model(run), train_set, open_dataset(unseen))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{args.name}_table.md").write_text("\n".join(lines) + "\n")
    draw(validations, {split: guess[0] for split, guess in of_split.items()}, RESULTS / f"{args.name}.svg")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
