"""What a run on the real OC20 frames reached, beside the simplest guesses: a table and its curve.

    python benchmarks/oc20_frames.py runs/gemnet_dT_small

Reads the run's metrics.jsonl, the metrics of its best model (best/metrics.json) and the data sets it names, and writes
benchmarks/results/oc20_frames.md and .svg.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ocpgem.config import parse_config
from ocpgem.data.dataset import Dataset
from ocpgem.data.open import open_dataset
from ocpgem.train.config import TrainConfig

mpl.use("Agg")
RESULTS = Path(__file__).parent / "results"


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


def main() -> None:
    """Write the table and the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    config = parse_config((run / "config.yaml").read_text(), TrainConfig, str(run / "config.yaml"))
    environment = json.loads((run / "environment.json").read_text())
    train_set = open_dataset(config.data.train)
    median = float(np.median([train_set[index].energy or 0.0 for index in range(len(train_set))]))
    of_split = {split: guesses(open_dataset(path), median) for split, path in config.data.val.items()}
    validations = read_validations(run)
    lines = [
        f"Run of `configs/s2ef/oc20_frames/gemnet_dT_small.yml`, "
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
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "oc20_frames_table.md").write_text("\n".join(lines) + "\n")
    draw(validations, {split: guess[0] for split, guess in of_split.items()}, RESULTS / "oc20_frames.svg")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
