"""Evaluating and predicting whole data sets, and the files of every dialect."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stub import Linear, expected, make_dataset, make_systems

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import WorkerSettings
from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.predict import Effort, evaluate, predict
from ocpgem.evaluate.prediction_set import read_raw
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.potential import Normalization, Potential

QUIET = Effort(batch_size=4, progress=False)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize(
    "effort", [QUIET, Effort(1, None, WorkerSettings(), False), Effort(50, 400, progress=False)]
)
def test_a_score_does_not_depend_on_the_batches(effort: Effort) -> None:
    dataset = make_dataset()
    result = evaluate(Linear(), dataset, effort)
    systems = [dataset[i] for i in range(len(dataset))]
    energy, forces = expected(systems)
    free = ~np.concatenate([s.fixed for s in systems])
    true = np.concatenate([s.forces for s in systems])
    assert result["energy_mae"] == pytest.approx(
        np.abs(energy - [s.energy for s in systems]).mean(), rel=1e-6
    )
    assert result["forces_mae"] == pytest.approx(np.abs(forces - true)[free].mean(), rel=1e-6)


def test_worker_processes_change_nothing() -> None:
    dataset = make_dataset(9)
    assert evaluate(Linear(), dataset, replace(QUIET, settings=WorkerSettings(workers=2))) == evaluate(
        Linear(), dataset, QUIET
    )


def test_an_element_without_a_reference_energy_is_refused() -> None:
    model = {"variant": "gemnet_dT", "n_blocks": 1, "atom_dim": 8, "edge_dim": 8}
    dataset = make_dataset(5)
    present = sorted({number for i in range(5) for number in dataset[i].atomic_numbers.tolist()})
    energies = dict.fromkeys(present, -1.0)
    known = Potential(GemNetConfig.model_validate(model), Normalization(element_energies=energies))
    assert np.isfinite(evaluate(known, dataset, QUIET)["energy_mae"])
    del energies[present[0]]
    unknown = Potential(GemNetConfig.model_validate(model), Normalization(element_energies=energies))
    with pytest.raises(DataError, match="for which the model has no reference energy; it has them for"):
        evaluate(unknown, dataset, QUIET)


def test_the_potential_returns_to_training_mode() -> None:
    potential = Linear().train()
    evaluate(potential, make_dataset(3), QUIET)
    assert potential.training
    evaluate(potential.eval(), make_dataset(3), QUIET)
    assert not potential.training


def test_raw_holds_everything_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    dataset = make_dataset()
    systems = [dataset[i] for i in range(len(dataset))]
    report = predict(Linear(), dataset, tmp_path / "new" / "raw.npz", "raw", QUIET)
    assert report.metrics == evaluate(Linear(), dataset, QUIET)
    found = load(report.path)
    energy, forces = expected(systems)
    np.testing.assert_allclose(found["energy"], energy, rtol=1e-6)
    np.testing.assert_array_equal(found["forces"], forces)
    assert found["energy"].dtype == found["forces"].dtype == np.float32
    np.testing.assert_array_equal(found["ids"], [f"{s.sid}_{s.fid}" for s in systems])
    np.testing.assert_array_equal(found["natoms"], [s.n_atoms for s in systems])
    np.testing.assert_array_equal(found["fixed"], np.concatenate([s.fixed for s in systems]))
    np.testing.assert_array_equal(
        found["atomic_numbers"], np.concatenate([s.atomic_numbers for s in systems])
    )
    np.testing.assert_array_equal(found["energy_true"], [s.energy for s in systems])
    np.testing.assert_array_equal(found["forces_true"], np.concatenate([s.forces for s in systems]))
    pieces = np.split(found["forces"], found["chunk_idx"])
    assert [len(piece) for piece in pieces] == [s.n_atoms for s in systems]
    assert len(read_raw(report.path)) == len(systems)


def test_ocp_is_what_the_first_host_takes(tmp_path: Path) -> None:
    dataset = make_dataset()
    predict(Linear(), dataset, tmp_path / "ocp.npz", "ocp", QUIET)
    found = load(tmp_path / "ocp.npz")
    assert set(found) == {"ids", "energy", "forces", "chunk_idx"}
    by_id = {f"{s.sid}_{s.fid}": s for s in (dataset[i] for i in range(len(dataset)))}
    assert found["ids"].tolist() == sorted(by_id)
    systems = [by_id[name] for name in found["ids"]]
    energy, forces = expected(systems)
    free = ~np.concatenate([s.fixed for s in systems])
    assert found["energy"].dtype == found["forces"].dtype == np.float16
    np.testing.assert_allclose(found["energy"], energy, rtol=1e-3)
    np.testing.assert_array_equal(found["forces"], forces[free].astype(np.float16))
    counts = [int((~s.fixed).sum()) for s in systems]
    np.testing.assert_array_equal(found["chunk_idx"], np.cumsum(counts)[:-1])
    assert len(found["forces"]) == sum(counts)


def test_ocp_is_float32_for_oc22_and_rounds_no_total_energy(tmp_path: Path) -> None:
    dataset = make_dataset()
    for dialect in ("ocp", "hub"):
        predict(Linear(), dataset, tmp_path / f"{dialect}.npz", dialect, QUIET, benchmark="oc22")
    ocp, uncast = load(tmp_path / "ocp.npz"), load(tmp_path / "hub.npz")
    assert ocp["energy"].dtype == ocp["forces"].dtype == np.float32
    np.testing.assert_array_equal(ocp["energy"], uncast["energy"][np.argsort(uncast["ids"])])


def test_hub_keeps_all_atoms_uncast_in_order(tmp_path: Path) -> None:
    dataset = make_dataset()
    predict(Linear(), dataset, tmp_path / "hub.npz", "hub", QUIET)
    found = load(tmp_path / "hub.npz")
    systems = [dataset[i] for i in range(len(dataset))]
    assert set(found) == {"ids", "energy", "forces", "chunk_idx"}
    np.testing.assert_array_equal(found["forces"], expected(systems)[1])
    assert found["ids"].tolist() == [f"{s.sid}_{s.fid}" for s in systems]


def test_hub_ids_are_sids_where_these_are_unique(tmp_path: Path) -> None:
    systems = make_systems(6)[::2]
    predict(Linear(), InMemoryDataset(systems), tmp_path / "hub.npz", "hub", QUIET)
    assert load(tmp_path / "hub.npz")["ids"].tolist() == ["100", "99", "98"]


def test_energies_alone_are_named_by_sid(tmp_path: Path) -> None:
    systems = make_systems(6)[::2]
    predict(Linear(with_forces=False), InMemoryDataset(systems), tmp_path / "is2re.npz", "ocp", QUIET)
    found = load(tmp_path / "is2re.npz")
    assert set(found) == {"ids", "energy"}
    assert found["ids"].tolist() == ["100", "98", "99"]


def test_data_without_labels_are_predicted_but_not_scored(tmp_path: Path) -> None:
    dataset = make_dataset(5, labels=False)
    report = predict(Linear(), dataset, tmp_path / "raw.npz", "raw", QUIET)
    assert report.metrics is None
    assert "energy_true" not in load(report.path)
    with pytest.raises(DataError, match="no energy labels"):
        evaluate(Linear(), dataset, QUIET)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("absent", [None, float("nan")])
def test_labels_of_some_systems_change_no_prediction_and_are_not_scored(
    tmp_path: Path, absent: float | None, batch_size: int
) -> None:
    systems = make_systems(9)
    systems[5].energy = absent
    systems[7].energy_relaxed = -1.0
    effort = replace(QUIET, batch_size=batch_size)
    report = predict(Linear(), InMemoryDataset(systems), tmp_path / "some.npz", "raw", effort)
    bare = [replace(each, energy=None, forces=None, energy_relaxed=None) for each in systems]
    predict(Linear(), InMemoryDataset(bare), tmp_path / "none.npz", "raw", effort)
    some, none = load(tmp_path / "some.npz"), load(tmp_path / "none.npz")
    assert report.metrics is None
    assert set(some) - set(none) == {"forces_true"}
    for name, value in none.items():
        np.testing.assert_array_equal(some[name], value)
    with pytest.raises(DataError, match=r"sid 98, frame 1.*energy"):
        evaluate(Linear(), InMemoryDataset(systems[:7]), QUIET)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_forces_of_some_systems_leave_the_metrics_of_energies(tmp_path: Path, batch_size: int) -> None:
    systems = make_systems(9)
    whole = evaluate(Linear(), InMemoryDataset(systems), QUIET)
    systems[5] = replace(systems[5], forces=None)
    effort = replace(QUIET, batch_size=batch_size)
    report = predict(Linear(), InMemoryDataset(systems), tmp_path / "some.npz", "raw", effort)
    names = ("energy_mae", "energy_per_atom_mae", "energy_within_threshold")
    assert report.metrics == pytest.approx({name: whole[name] for name in names}, rel=1e-12)
    assert "forces_true" not in load(report.path)


def test_a_nan_prediction_names_the_system_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="predictions for sid 97, frame"):
        predict(Linear(bad=97), make_dataset(labels=False), tmp_path / "raw.npz", "raw", QUIET)
    with pytest.raises(DataError, match="predictions for sid 97, frame"):
        evaluate(Linear(bad=97), make_dataset(), QUIET)
    assert not list(tmp_path.iterdir())


def test_an_id_that_occurs_twice_is_refused_by_a_leaderboard_file(tmp_path: Path) -> None:
    systems = make_systems(4)
    dataset = InMemoryDataset([*systems, systems[1]])
    with pytest.raises(DataError, match="id 100_1 occurs 2 times"):
        predict(Linear(), dataset, tmp_path / "ocp.npz", "ocp", QUIET)
    assert not list(tmp_path.iterdir())
    predict(Linear(), dataset, tmp_path / "raw.npz", "raw", QUIET)


def test_energies_that_float16_spoils_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        predict(Linear(), make_dataset(6), tmp_path / "ocp.npz", "ocp", QUIET)
    assert "float16 loses more than a tenth of the 0.02 eV energy threshold on 6 of 6 energies" in caplog.text


def test_energies_beyond_float16_are_an_error(tmp_path: Path) -> None:
    systems = make_systems(4)
    systems[2].pos[0, 0] += 6e5
    with pytest.raises(DataError, match="beyond the range of float16"):
        predict(Linear(), InMemoryDataset(systems), tmp_path / "ocp.npz", "ocp", QUIET)


@pytest.mark.parametrize(
    ("name", "dialect", "message"),
    [
        ("a.npz", "evalai", "dialect is 'evalai'; it must be one of raw, ocp, hub"),
        ("a.txt", "ocp", "ending in .npz"),
        ("folder.npz", "ocp", "is a folder"),
        ("file/a.npz", "ocp", "cannot be made"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_first(
    tmp_path: Path, name: str, dialect: str, message: str
) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=message):
        predict(Linear(), make_dataset(2), tmp_path / name, dialect, QUIET)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OcpgemError, match=r"a\.npz cannot be written: No space left"):
        predict(Linear(), make_dataset(2), tmp_path / "a.npz", "raw", QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text", "ocp"])
def test_a_file_that_is_no_raw_prediction_is_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "a.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        predict(Linear(), make_dataset(2), path, content, QUIET)
    with pytest.raises(DataError, match=r"a\.npz"):
        read_raw(path)


@pytest.mark.parametrize("variant", ["gemnet_dT", "gemnet_T"])
def test_both_kinds_of_forces_are_predicted(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    small = {"n_blocks": 1, "atom_dim": 8, "edge_dim": 8, "radial_dim": 4, "n_spherical": 3}
    potential = Potential(GemNetConfig(variant=variant, **small), Normalization())
    found = load(predict(potential, make_dataset(4), tmp_path / "a.npz", "raw", QUIET).path)
    assert np.isfinite(found["forces"]).all()
    assert np.abs(found["forces"]).max() > 0


def test_the_bar_counts_systems_on_a_terminal_and_leaves_logs_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    evaluate(Linear(), make_dataset(5), replace(QUIET, progress=True), label="val_id")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    evaluate(Linear(), make_dataset(5), replace(QUIET, progress=True), label="val_id")
    shown = capsys.readouterr().err
    assert "val_id" in shown
    assert "5/5" in shown
    assert "systems/s" in shown
