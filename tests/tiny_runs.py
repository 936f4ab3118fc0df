"""Random labelled systems, the smallest possible training configuration, and the command line as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.system import System
from ocpgem.parallel.group import RANK_VARIABLES
from ocpgem.train.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]

TINY_MODEL: dict[str, Any] = {
    "variant": "gemnet_dT",
    "n_blocks": 1,
    "atom_dim": 8,
    "edge_dim": 8,
    "radial_dim": 4,
    "radial_basis": {"n_radial": 6},
    "triplets": {"in_dim": 4, "out_dim": 4, "circular_dim": 3},
    "neighbors": {"cutoff": 4.0, "max_neighbors": 20},
    "layers": {"atom": 1},
}


def random_system(rng: np.random.Generator, sid: int, **changes: Any) -> System:
    """Four to seven atoms of four elements in a periodic box, about a third of them fixed, with random labels."""
    n = int(rng.integers(4, 8))
    corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    cell = np.diag([5.0, 5.2, 5.4]).astype(np.float32)
    pos = (corners[rng.permutation(8)[:n]] / 2 + rng.uniform(-0.06, 0.06, (n, 3))) @ cell
    values: dict[str, Any] = {
        "pos": pos.astype(np.float32),
        "cell": cell,
        "pbc": np.array([True, True, True]),
        "atomic_numbers": rng.choice(np.array([1, 8, 29, 78], dtype=np.uint8), n),
        "tags": rng.integers(0, 3, n).astype(np.uint8),
        "fixed": rng.random(n) < 0.3,
        "energy": float(rng.normal() - 3.0),
        "forces": rng.normal(size=(n, 3)).astype(np.float32),
        "sid": sid,
        "fid": sid % 3,
    }
    return System(**(values | changes))


def random_systems(n: int, seed: int = 0) -> Iterator[System]:
    rng = np.random.default_rng(seed)
    for sid in range(n):
        yield random_system(rng, sid)


def tiny_settings(train: Path | str, val: Path | str | None = None, **changes: Any) -> dict[str, Any]:
    """A configuration as a map; `changes` replace whole sections, but `data`, `model` and `validation` are merged."""
    data = {"train": str(train), "batch_size": 4, "eval_batch_size": 3, "workers": 0}
    if val is not None:
        data["val"] = {"val": str(val)}
    settings = {
        "steps": 6,
        "log_every_steps": 2,
        "loss": {"energy": 1, "forces": 10},
        "checkpoint": {"every_steps": 4},
    } | {key: value for key, value in changes.items() if key not in {"data", "model", "validation"}}
    return settings | {
        "data": data | changes.get("data", {}),
        "model": TINY_MODEL | changes.get("model", {}),
        "validation": {"every_steps": 3, "parity_systems": 0} | changes.get("validation", {}),
    }


def tiny_config(train: Path | str = "train", val: Path | str | None = None, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate(tiny_settings(train, val, **changes))


def write_tiny_data(folder: Path, n_train: int = 11, n_val: int = 7) -> tuple[Path, Path]:
    """Two data sets, of sizes that no number of ranks and no batch size divides."""
    write_dataset(folder / "train", random_systems(n_train, 0))
    write_dataset(folder / "val", random_systems(n_val, 1))
    return folder / "train", folder / "val"


def write_settings(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def clean_environment() -> dict[str, str]:
    """The environment without a trace of ranks, one thread a process."""
    kept = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, str(ROOT / "main.py"), *map(str, words)]


def run_main(
    *words: object, cwd: Path | None = None, timeout: float = 250, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`python main.py WORDS...` in its own process."""
    return subprocess.run(
        command(*words),
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        **options,
    )


def listing(folder: Path) -> set[str]:
    """Every file and folder below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
