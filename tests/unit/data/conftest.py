import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ocpgem.data.system import System
from tests.released_records import GENERATIONS, write_shards
from tests.tiny_runs import random_systems

MakeSystem = Callable[..., System]

SHARED = Path(__file__).resolve().parents[4] / "shared"


@pytest.fixture
def make_system() -> MakeSystem:
    """Builds a random periodic system with all labels; keyword arguments replace fields."""

    def build(n_atoms: int = 12, seed: int = 0, **fields: object) -> System:
        rng = np.random.default_rng([n_atoms, seed])
        values: dict[str, object] = {
            "pos": rng.uniform(0, 6, (n_atoms, 3)).astype(np.float32),
            "cell": np.diag([6.0, 6.5, 15.0]).astype(np.float32),
            "pbc": np.array([True, True, True]),
            "atomic_numbers": rng.integers(1, 80, n_atoms).astype(np.uint8),
            "tags": rng.integers(0, 3, n_atoms).astype(np.uint8),
            "fixed": rng.random(n_atoms) < 0.4,
            "energy": float(rng.normal()),
            "forces": rng.normal(size=(n_atoms, 3)).astype(np.float32),
            "sid": 1000 + seed,
            "fid": seed % 7,
        }
        return System(**(values | fields))  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="module")
def released_systems() -> list[System]:
    """What the shards of `released_folder` hold."""
    return list(random_systems(7))


@pytest.fixture(params=GENERATIONS)
def released_folder(request: pytest.FixtureRequest, released_systems: list[System], tmp_path: Path) -> Path:
    """Two released LMDBs of 4 and 3 records, of each generation."""
    return write_shards(tmp_path / "s2ef", released_systems, request.param)


@pytest.fixture
def sigchld_as_before() -> Iterator[None]:
    """For tests with a DataLoader of torch, whose handler of dying workers would stay for the tests after them."""
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference files beside the project, which a clone need not have."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    return SHARED
