"""What `train --dry-run` says a run needs, beside what the run then takes.

    python benchmarks/memory_estimate.py        (some minutes)

Three models at small widths on the slabs of `records.py` (75 atoms; 6 A, nearest 50): GemNet-dT (direct forces),
GemNet-Q (gradient forces, quadruplets) and GemNet-OC. Each is estimated in a process of its own and then trained for
three steps, one thread, three times: measured is the peak of the resident memory of the whole process (`ru_maxrss`),
of which the middle one of the three counts.

Writes benchmarks/results/memory_estimate.md.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from records import slab

from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.system import System

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "memory_estimate.md"
RUNS = 3
BATCH = 3

MODELS: dict[str, dict[str, Any]] = {
    "GemNet-dT": {"variant": "gemnet_dT", "atom_dim": 128, "edge_dim": 128, "n_blocks": 2},
    "GemNet-Q": {
        "variant": "gemnet_Q",
        "atom_dim": 32,
        "edge_dim": 32,
        "n_blocks": 1,
        "neighbors": {"cutoff": 4.0, "max_neighbors": 12},
        "quadruplets": {"cutoff": 3.5, "max_neighbors": 6},
    },
    "GemNet-OC": {"variant": "gemnet_OC", "atom_dim": 64, "edge_dim": 64, "n_blocks": 1},
}


def peak_of(words: list[str]) -> tuple[int, str]:
    """Bytes that `main.py WORDS` held at most, and what it said.

    It is started from a small process, for a child begins with the peak of its parent.
    """
    small = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True)\n"
        "sys.stdout.write(done.stdout)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    program = [sys.executable, "-c", small, sys.executable, str(ROOT / "main.py"), *words]
    done = subprocess.run(
        program, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    said, _, peak = done.stdout.rstrip("\n").rpartition("\n")
    return int(peak) * 1024, said


def estimated(config: Path) -> float:
    """GB."""
    _, said = peak_of(["train", str(config), "--dry-run"])
    found = re.search(r"total +([0-9.]+) GB", said)
    assert found is not None, said
    return float(found[1])


def measure(name: str, folder: Path) -> str:
    """The row of a model."""
    settings = {
        "steps": 3,
        "log_every_steps": 1,
        "data": {"train": str(folder / "train"), "val": {"val": str(folder / "val")}, "batch_size": BATCH,
                 "eval_batch_size": BATCH, "workers": 0},
        "model": MODELS[name],
        "scale_factors": {"batches": 1},
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": 3},
    }  # fmt: skip
    config = folder / f"{name}.yml"
    config.write_text(yaml.safe_dump(settings))
    said = estimated(config)
    peaks = []
    for number in range(RUNS):
        run = folder / f"{name}-{number}"
        peaks.append(peak_of(["train", str(config), "--run-dir", str(run)])[0] / 1e9)
    middle = statistics.median(peaks)
    return f"| {name} | {said:.3f} | {middle:.3f} | {min(peaks):.3f} - {max(peaks):.3f} | {said / middle - 1:+.1%} |"


def systems(first: int, count: int) -> list[System]:
    return [slab(seed) for seed in range(first, first + count)]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "train", systems(0, 24))
        write_dataset(folder / "val", systems(24, 8))
        # One after another: beside other runs the threads of a run interleave differently, and so do the heap's gaps.
        rows = [measure(model, folder) for model in MODELS]
    lines = [
        "# Estimated and measured memory of a run",
        "",
        f"`python benchmarks/memory_estimate.py`; {BATCH} systems of 75 atoms a step, one thread, {RUNS} runs of each; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "",
        "| model | estimate, GB | measured, GB | all runs | estimate / measured |",
        "|---|---|---|---|---|",
        *rows,
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
