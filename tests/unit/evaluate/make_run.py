"""A run directory as training and prediction leave it, made up."""

import json
from pathlib import Path

import numpy as np

from ocpgem.evaluate.prediction_set import PredictionSet, write_predictions


def make_predictions(
    n: int, seed: int = 0, error: float = 0.05, elements: tuple[int, ...] = (1, 6, 8, 13, 29, 78)
) -> PredictionSet:
    rng = np.random.default_rng(seed)
    natoms = rng.integers(8, 20, n)
    total = int(natoms.sum())
    numbers = rng.choice(np.array(elements, dtype=np.uint8), total)
    forces = (rng.laplace(size=(total, 3)) * 0.4 * (1 + numbers[:, None] % 5)).astype(np.float32)
    energy = rng.choice([-2.0, -0.6, 0.9], n) + rng.normal(size=n) * 0.4
    return PredictionSet(
        sid=np.arange(n) // 4,
        fid=np.arange(n) % 4,
        natoms=natoms,
        energy=(0.9 * energy + rng.normal(size=n) * 4 * error).astype(np.float32),
        fixed=rng.random(total) < 0.5,
        atomic_numbers=numbers,
        forces=(0.85 * forces + rng.normal(size=forces.shape) * 2 * error).astype(np.float32),
        energy_true=energy,
        forces_true=forces,
        tags=np.where(np.arange(total) % 5 == 0, 2, 1).astype(np.uint8),
    )


def make_records(n_steps: int = 1200, splits: tuple[str, ...] = ("val_id", "val_ood_ads")) -> list[dict]:
    rng = np.random.default_rng(1)
    records = []
    for step in range(10, n_steps + 1, 10):
        decay = np.exp(-step / (0.3 * n_steps))
        common = {"step": step, "epoch": step / 100, "seconds": step * 0.31}
        loss = (0.6 + 5 * decay) * np.exp(rng.normal() * 0.15)
        lr = 0.5e-3 * (1 + np.cos(np.pi * step / n_steps))
        records.append(
            {"kind": "train", **common, "loss": loss, "lr": lr, "systems_per_second": 25 + rng.normal()}
        )
        if step % (n_steps // 10) == 0:
            for number, split in enumerate(splits):
                forces = 0.05 * (1 + 0.2 * number) + 0.3 * decay
                numbers = {
                    "energy_mae": 0.2 + 2 * decay,
                    "energy_within_threshold": 0.05 * (1 - decay),
                    "forces_mae": forces,
                }
                records.append({"kind": "val", **common, "split": split, **numbers})
    return records


def make_run(folder: Path, n_systems: int = 60, splits: tuple[str, ...] = ("val_id", "val_ood_ads")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) for record in make_records(splits=splits)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text("model:\n  variant: gemnet_dT  # <small>\n")
    environment = {
        "ocpgem": "0.1.0",
        "packages": {"torch": "2.13.0", "torch-scatter": None},
        "command": ["main.py", "train"],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "predictions").mkdir(exist_ok=True)
    for number, split in enumerate(splits):
        write_predictions(make_predictions(n_systems, number), folder / "predictions" / f"{split}.npz", "raw")
    return folder
