"""`main.py relax` as a user meets it: its table and files, what it refuses, and that nothing is half done."""

import csv
from pathlib import Path

import numpy as np
import pytest

from ocpgem.checkpoint import save_potential
from ocpgem.cli import main
from ocpgem.data.lmdb_store import write_dataset
from tests.structures import small_potential
from tests.tiny_runs import listing, random_system


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and a data set with relaxed labels."""
    model = small_potential("gemnet_T", n_blocks=1)
    model.normalization = model.normalization.model_copy(update={"energy_std": 0.1})
    save_potential(model.float(), tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    systems = []
    for sid in range(5):
        system = random_system(rng, sid, fid=0, energy=None, forces=None, energy_relaxed=float(sid))
        system.pos_relaxed = system.pos + np.float32(0.01)
        systems.append(system)
    write_dataset(tmp_path / "is2re", systems)
    return tmp_path / "model.pt", tmp_path / "is2re"


def relax(*words: object) -> int:
    return main(["relax", *map(str, words)])


def test_relax_prints_the_scores_and_writes_the_results(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = files
    out = tmp_path / "out"
    words = (model, "--data", data, "--out", out, "--steps", 4, "--trajectories", "traj", "--every", 2)
    assert relax(*words) == 0
    said = capsys.readouterr().out
    assert "energy_mae" in said
    assert "average_distance_within_threshold" in said
    assert "5 systems relaxed: " in said
    found = listing(out)
    assert {"relaxed.npz", "systems.csv", "request.json", "trajectories/3_0.traj"} <= found
    assert not [name for name in found if "partial" in name]
    with np.load(out / "relaxed.npz") as file:
        assert file["ids"].tolist() == [f"{sid}_0" for sid in range(5)]
        assert file["pos"].shape == file["pos_true"].shape == file["forces"].shape
    with (out / "systems.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 5
    assert relax(*words) == 0
    assert "5 systems relaxed, 5 of them by an earlier call" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--fmax", "0"), "fmax is 0.0 eV/A; it must be a positive number"),
        (("--fmax", "nan"), "fmax is nan"),
        (("--maxstep", "-1"), "maxstep is -1.0; it must be a positive number"),
        (("--optimizer", "fire", "--memory", "3"), "--memory belongs to L-BFGS"),
        (("--max-edges", "1"), "more than max_edges 1"),
        (("--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_leaves_nothing(
    files: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    model, data = files
    assert relax(model, "--data", data, "--out", tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_without_forces_is_refused(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_potential(small_potential("gemnet_T", forces="none"), tmp_path / "energies.pt")
    assert relax(tmp_path / "energies.pt", "--data", files[1], "--out", tmp_path / "out") == 2
    assert "needs a model with forces" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
