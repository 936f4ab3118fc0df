"""Loss curves of float32 and bfloat16 side by side: the same small model and data in both precisions.

python benchmarks/precision.py [--data data/demo] [--steps 200] [--out benchmarks/results]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("highest", "bf16")


def train(precision: str, data: Path, steps: int, run: Path) -> tuple[list[float], dict[str, float]]:
    """The loss after every step and the last validation (in float32 for both)."""
    settings = [
        f"data.train={data}/s2ef/train",
        f"data.val.val_id={{path: {data}/s2ef/val_id, subset: {{first: 50}}}}",
        f"steps={steps}",
        f"validation.every_steps={steps}",
        f"checkpoint.every_steps={steps}",
        f"precision={precision}",
        "model.n_blocks=1",
        "model.atom_dim=32",
        "model.edge_dim=32",
        "data.batch_size=2",
        "log_every_steps=1",
        "scale_factors.batches=1",
        "optim.lr=1e-3",
        "seed=3",
    ]
    command = [sys.executable, "main.py", "train", "configs/quickstart.yml", *settings, "--run-dir", str(run)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    return losses, next(record for record in reversed(records) if record["kind"] == "val")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: train(name, args.data.resolve(), args.steps, Path(folder) / name) for name in PRECISIONS
        }
    lines = [
        "# Loss curves of float32 and bfloat16",
        "",
        f"`python benchmarks/precision.py --steps {args.steps}`: a GemNet-dT with one block of width 32, demo data, "
        "2 systems a step, on one CPU core. The loss is the mean over the steps of each row.",
        "",
        "| steps | highest | bf16 | difference |",
        "|---|---|---|---|",
    ]
    width = max(1, args.steps // 10)
    for first in range(0, args.steps, width):
        means = [float(np.mean(found[name][0][first : first + width])) for name in PRECISIONS]
        lines.append(
            f"| {first + 1} to {min(args.steps, first + width)} | {means[0]:.3f} | {means[1]:.3f} "
            f"| {means[1] / means[0] - 1:+.2%} |"
        )
    for name in ("energy_mae", "forces_mae"):
        values = [found[precision][1][name] for precision in PRECISIONS]
        lines.append(
            f"| {name} at the end | {values[0]:.4f} | {values[1]:.4f} | {values[1] / values[0] - 1:+.2%} |"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "precision.md").write_text("\n".join(lines) + "\n")
    curves = {name: losses for name, (losses, _) in found.items()}
    (args.out / "precision.json").write_text(json.dumps(curves) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
