"""What runs on the MD17@CCSD(T) ethanol frames reached: a table in meV/A, and the curves.

    python benchmarks/md17_ethanol.py runs/gemnet_T_ethanol

Reads the metrics.jsonl of each run and writes benchmarks/results/md17_ethanol_table.md and md17_ethanol.svg.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ocpgem.config import parse_config
from ocpgem.train.config import TrainConfig

mpl.use("Agg")
RESULTS = Path(__file__).parent / "results"


def read_run(run: Path) -> tuple[TrainConfig, dict[str, Any], list[dict[str, Any]]]:
    """Configuration, environment and validation records of a run."""
    config = parse_config((run / "config.yaml").read_text(), TrainConfig, str(run / "config.yaml"))
    environment = json.loads((run / "environment.json").read_text())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return config, environment, [record for record in records if record["kind"] == "val"]


def main() -> None:
    """Write the table and the curves."""
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    lines = [
        "| model | step | epochs | minutes | force MAE meV/A | energy MAE meV |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    notes = []
    for run in parser.parse_args().runs:
        config, environment, validations = read_run(run)
        variant = config.model.variant
        lines += [
            f"| {variant} | {record['step']} of {config.steps} | {record['epoch']:.0f} "
            f"| {record['seconds'] / 60:.0f} | {1000 * record['forces_mae']:.1f} "
            f"| {1000 * record['energy_mae']:.1f} |"
            for record in validations
        ]
        minutes = [record["seconds"] / 60 for record in validations]
        axes.plot(minutes, [1000 * record["forces_mae"] for record in validations], marker="o", label=variant)
        notes.append(
            f"{variant}: batches of {config.data.batch_size}, a {platform.machine()} CPU, "
            f"commit {environment['git_commit']}."
        )
    axes.set_xlabel("wall time, minutes")
    axes.set_ylabel("force MAE, meV/Å")
    axes.set_yscale("log")
    axes.legend()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "md17_ethanol_table.md").write_text("\n".join([*lines, "", *notes]) + "\n")
    figure.savefig(RESULTS / "md17_ethanol.svg", metadata={"Date": None})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
