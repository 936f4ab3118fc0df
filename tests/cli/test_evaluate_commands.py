"""`evaluate` and `predict` as a user calls them: tables in every format, tasks, kinds of data, several models."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import write

from ocpgem.checkpoint import save_potential
from ocpgem.cli import main
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.evaluate import predict as predict_module
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel import group
from tests.tiny_runs import TINY_MODEL, random_system, random_systems


def save_tiny(path: Path, seed: int = 0, **changes: object) -> Path:
    torch.manual_seed(seed)
    save_potential(Potential(GemNetConfig.model_validate(TINY_MODEL | changes), Normalization()), path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, one of energies only, and the same systems as LMDB, extxyz and db; IS2RE data."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_tiny(folder / "a.pt", 0)
    save_tiny(folder / "b.pt", 1)
    save_tiny(folder / "energy.pt", 2, variant="gemnet_T", forces="none")
    systems = list(random_systems(7))
    write_dataset(folder / "lmdb", systems)
    for name in ("set.extxyz", "set.traj", "set.db"):
        write(folder / name, [system.to_atoms() for system in systems])
    rng = np.random.default_rng(3)
    relaxed = [
        random_system(rng, sid, energy=5.0, forces=None, energy_relaxed=-1.0, pos_relaxed=None)
        for sid in range(5)
    ]
    write_dataset(folder / "is2re", relaxed)
    unlabelled = [random_system(rng, sid, energy=None, forces=None) for sid in range(5)]
    write_dataset(folder / "test", unlabelled)
    return folder


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one sets the variables of a rank; the next test starts without."""
    for name in group.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def run(*words: object) -> int:
    code = main([*map(str, words), *(["--workers", "0"] if words[0] in ("evaluate", "predict") else [])])
    group.shutdown()
    return code


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def test_the_metrics_are_written_in_every_format(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"metrics.{kind}" for kind in ("json", "csv", "markdown")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    data = ["--data", f"one={place / 'lmdb'}", "--data", f"two={place / 'set.extxyz'}"]
    assert run("evaluate", place / "a.pt", *data, *options) == 0
    found = json.loads(files["json"].read_text())
    one, two = found["splits"]["one"], found["splits"]["two"]
    assert one == pytest.approx(two, rel=1e-4)
    low, high = found["confidence"]["intervals"]["one"]["forces_mae"]
    assert low < one["forces_mae"] < high
    rows = list(csv.DictReader(files["csv"].open()))
    assert {row["split"] for row in rows} == {"one", "two", "average"}
    assert "| forces_mae | eV/Å |" in files["markdown"].read_text()
    shown = capsys.readouterr().out
    assert "forces_mae" in shown
    assert "bootstrap over systems" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())


@pytest.mark.parametrize("name", ["set.extxyz", "set.traj", "set.db"])
def test_files_of_ase_are_predicted_directly(place: Path, tmp_path: Path, name: str) -> None:
    assert (
        run(
            "predict", place / "a.pt", "--data", place / name, "--out", tmp_path / "p.npz", "--dialect", "raw"
        )
        == 0
    )
    assert (
        run(
            "predict",
            place / "a.pt",
            "--data",
            place / "lmdb",
            "--out",
            tmp_path / "q.npz",
            "--dialect",
            "raw",
        )
        == 0
    )
    one, other = load(tmp_path / "p.npz"), load(tmp_path / "q.npz")
    if name != "set.db":  # a database of ASE keeps no atoms.info, where sid and fid are
        np.testing.assert_array_equal(one["ids"], other["ids"])
    np.testing.assert_allclose(one["energy"], other["energy"], rtol=1e-4)
    np.testing.assert_allclose(one["energy_true"], other["energy_true"], rtol=1e-6)


def test_is2re_scores_the_relaxed_energy_and_is_the_default_of_models_without_forces(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ([], ["--task", "is2re"]):
        out = tmp_path / f"{len(options)}.npz"
        assert (
            run(
                "predict",
                place / "energy.pt",
                "--data",
                place / "is2re",
                "--out",
                out,
                "--dialect",
                "raw",
                *options,
            )
            == 0
        )
        assert load(out)["energy_true"].tolist() == [-1.0] * 5
    assert (
        run(
            "predict",
            place / "a.pt",
            "--data",
            place / "is2re",
            "--out",
            tmp_path / "f.npz",
            "--task",
            "is2re",
        )
        == 0
    )
    assert set(load(tmp_path / "f.npz")) == {"ids", "energy"}
    assert load(tmp_path / "f.npz")["ids"].tolist() == ["0", "1", "2", "3", "4"]
    assert run("evaluate", place / "energy.pt", "--data", place / "lmdb", "--task", "is2re") == 1
    assert "has an energy but no relaxed one" in capsys.readouterr().err


def test_data_without_labels_are_predicted_for_is2re(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "test.npz"
    assert run("predict", place / "energy.pt", "--data", place / "test", "--out", out, "--task", "is2re") == 0
    assert len(load(out)["ids"]) == 5


def test_is2re_is_predicted_where_only_other_energies_are_known(place: Path, tmp_path: Path) -> None:
    words = ("predict", place / "energy.pt", "--data", place / "lmdb", "--task", "is2re", "--dialect", "raw")
    assert run(*words, "--out", tmp_path / "a.npz") == 0
    found = load(tmp_path / "a.npz")
    assert len(found["energy"]) == 7
    assert not {"energy_true", "forces_true"} & set(found)


def test_the_benchmark_decides_the_type_of_a_leaderboard_file(place: Path, tmp_path: Path) -> None:
    for options, dtype in (([], np.float16), (["--benchmark", "oc22"], np.float32)):
        out = tmp_path / f"{np.dtype(dtype)}.npz"
        assert run("predict", place / "a.pt", "--data", place / "lmdb", "--out", out, *options) == 0
        found = load(out)
        assert found["energy"].dtype == found["forces"].dtype == dtype


def test_ensembles_and_hybrids_are_options(place: Path, tmp_path: Path) -> None:
    base = ("predict", place / "a.pt", "--data", place / "lmdb", "--dialect", "raw", "--out")
    assert run(*base, tmp_path / "a.npz") == 0
    assert run(*base, tmp_path / "both.npz", "--ensemble", place / "b.pt") == 0
    assert run(*base, tmp_path / "hybrid.npz", "--forces-from", place / "b.pt") == 0
    one, both, hybrid = (load(tmp_path / f"{name}.npz") for name in ("a", "both", "hybrid"))
    assert both["energy_spread"].shape == both["energy"].shape
    assert both["forces_spread"].shape == both["fixed"].shape
    np.testing.assert_allclose(hybrid["energy"], one["energy"], rtol=1e-6)
    np.testing.assert_allclose(both["forces"], (one["forces"] + hybrid["forces"]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "a.pt"], "say with --data what to score it on"),
        (["evaluate", "a.pt", "--data", "lmdb", "--csv", "nowhere/m.csv"], "nowhere is not a folder"),
        (
            ["predict", "a.pt", "--data", "lmdb", "--out", "p.npz", "--forces-from", "energy.pt"],
            "predicts none",
        ),
        (
            ["predict", "GemNet-dT-S2EF-OC20-2N", "--data", "lmdb", "--out", "p.npz"],
            "did you mean GemNet-dT-S2EF-OC20-2M",
        ),
    ],
)
def test_a_wrong_request_is_one_sentence(
    place: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (place / "p.npz").exists()


@pytest.mark.parametrize("kind", ["evaluate", "predict"])
def test_a_signal_ends_with_75_and_the_same_command_goes_on(
    kind: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.json" if kind == "evaluate" else tmp_path / "out.npz"
    option = "--json" if kind == "evaluate" else "--out"
    words = (kind, place / "a.pt", "--data", place / "lmdb", option, out, "--batch-size", 2)
    calls = signal_during(monkeypatch, call=2)
    assert run(*words) == 75
    said = capsys.readouterr()
    parts = tmp_path / (".out.json.lmdb.parts" if kind == "evaluate" else ".out.npz.parts")
    assert said.err.splitlines()[-1] == (
        f"error: SIGUSR1 arrived; what is done is kept in {parts}, and the same command goes on from there"
    )
    assert said.out == ""
    assert not out.exists()
    assert run(*words) == 0
    assert len(calls) == 4, "two batches of four before, two after"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert run(*words[:5], tmp_path / f"whole{out.suffix}") == 0
    if kind == "predict":
        found, expected = load(out), load(tmp_path / "whole.npz")
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    else:
        found, expected = (json.loads(each.read_text())["splits"]["lmdb"] for each in tmp_path.iterdir())
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_signal_to_an_evaluation_that_keeps_nothing_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_during(monkeypatch, call=1)
    assert run("evaluate", place / "a.pt", "--data", place / "lmdb") == 75
    assert capsys.readouterr().err == (
        "error: SIGUSR1 arrived; nothing is kept without --json, --csv or --markdown, so the same command begins anew\n"
    )


def signal_during(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """Let a scheduler's signal arrive while a batch is computed; the list gets an item for each batch."""
    calls: list[int] = []
    before = predict_module.apply

    def apply(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGUSR1)
        return before(*args)

    monkeypatch.setattr(predict_module, "apply", apply)
    return calls
