"""Relaxing a data set into a folder: what is written, what is not done twice, what is refused."""

import csv
import os
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.system import System, system_from_atoms
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.prediction_set import read_raw
from ocpgem.evaluate.relax.dataset import RelaxTask, relax_dataset
from ocpgem.evaluate.relax.loop import RelaxSettings
from ocpgem.evaluate.relax.scores import ADWT, relaxed_scores
from ocpgem.evaluate.relax.surfaces import AseSurface
from ocpgem.parallel.signals import StoppedError, StopRequest
from tests.structures import small_potential

TASK = RelaxTask(RelaxSettings(fmax=0.1, steps=12), batch_size=3, progress=False)
MODEL = small_potential("gemnet_T")  # only its weights count, as the name of the request


@cache
def dataset(n: int = 7) -> InMemoryDataset:
    """Adsorbed oxygen, with labels that are right for the energy and a tenth of an A off for one coordinate."""
    systems: list[System] = []
    for number in range(n):
        atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
        add_adsorbate(atoms, "O", 1.3, ("ontop", "bridge", "fcc", "hcp")[number % 4])
        atoms.pbc = True
        atoms.rattle(0.05, seed=number)
        atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
        system = system_from_atoms(atoms, sid=50 - number)
        systems.append(
            replace(system, energy_relaxed=1.0 + number, pos_relaxed=system.pos + np.float32(0.02))
        )
    return InMemoryDataset(systems, "the slabs")


class Counting(AseSurface):
    """EMT that counts what it computes, by index."""

    def __init__(self) -> None:
        super().__init__(EMT)
        self.computed: dict[int, int] = {}

    def __call__(self, members, pos):
        for member in members:
            self.computed[member.index] = self.computed.get(member.index, 0) + 1
        return super().__call__(members, pos)


def columns(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def test_the_file_holds_every_system_in_the_order_of_the_data(tmp_path: Path) -> None:
    report = relax_dataset(MODEL, dataset(), tmp_path / "out", TASK, AseSurface(EMT))
    assert report is not None
    found = read_raw(report.path)
    systems = [dataset()[i] for i in range(len(dataset()))]
    assert found.sid.tolist() == [system.sid for system in systems]
    fixed = np.concatenate([system.fixed for system in systems])
    before = np.concatenate([system.pos for system in systems])
    assert found.pos is not None
    assert (found.pos[fixed].astype(np.float32).tobytes()) == before[fixed].tobytes()
    assert np.abs(found.pos[~fixed] - before[~fixed]).max() > 0.01
    np.testing.assert_array_equal(found.energy_true, [system.energy_relaxed for system in systems])
    first = systems[0].to_atoms()
    first.positions, first.calc = found.pos[: len(first)], EMT()
    assert first.get_potential_energy() == pytest.approx(found.energy[0], abs=1e-9)
    with (tmp_path / "out" / "systems.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["sid"]) for row in rows] == found.sid.tolist()
    assert report.n_converged == sum(row["converged"] == "yes" for row in rows) > 0
    assert all((float(row["fmax"]) < 0.1) == (row["converged"] == "yes") for row in rows)
    assert report.mean_steps == np.mean([int(row["n_steps"]) for row in rows])


@pytest.mark.parametrize("kind", ["traj", "extxyz"])
def test_trajectories_begin_at_the_structure_and_end_at_the_result(tmp_path: Path, kind: str) -> None:
    task = replace(TASK, trajectories=kind, settings=replace(TASK.settings, record_every=1))
    report = relax_dataset(MODEL, dataset(3), tmp_path, task, AseSurface(EMT))
    assert report is not None
    names = {path.name for path in (tmp_path / "trajectories").iterdir()}
    assert names == {f"{sid}_0.{kind}" for sid in (50, 49, 48)}
    path = read(tmp_path / "trajectories" / f"50_0.{kind}", index=":")
    assert report.predictions.n_steps is not None
    assert report.predictions.pos is not None
    assert len(path) == report.predictions.n_steps[0] + 1
    np.testing.assert_allclose(path[0].positions, dataset(3)[0].pos, atol=1e-7)
    np.testing.assert_allclose(path[-1].positions, report.predictions.pos[: len(path[0])], atol=1e-7)
    assert path[-1].get_potential_energy() == pytest.approx(report.predictions.energy[0], abs=1e-6)
    assert path[0].constraints[0].index.tolist() == np.flatnonzero(dataset(3)[0].fixed).tolist()


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    """A stop in the middle, then two more calls: one that finishes and one with nothing left to do."""
    whole = relax_dataset(MODEL, dataset(), tmp_path / "whole", TASK, AseSurface(EMT))
    assert whole is not None
    stop = StopRequest()
    one_by_one = replace(TASK, batch_size=1, stop=stop)
    with (
        stop.listening(),
        pytest.raises(StoppedError, match="SIGTERM arrived; what is finished is kept") as stopped,
    ):
        relax_dataset(MODEL, dataset(), tmp_path / "out", one_by_one, Signalled())
    assert stopped.value.exit_code == 75
    assert not (tmp_path / "out" / "relaxed.npz").exists()
    second = Counting()
    report = relax_dataset(MODEL, dataset(), tmp_path / "out", TASK, second)
    assert report is not None
    assert report.n_earlier == 2
    assert len(second.computed) == len(dataset()) - 2
    third = Counting()
    again = relax_dataset(MODEL, dataset(), tmp_path / "out", TASK, third)
    assert again is not None
    assert (again.n_earlier, third.computed) == (len(dataset()), {})
    expected = columns(whole.path)
    for name, value in columns(again.path).items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, expected[name], atol=1e-6)
        else:
            np.testing.assert_array_equal(value, expected[name])


class Signalled(Counting):
    """Gets a signal from outside while it computes the third system."""

    def __call__(self, members, pos):
        found = super().__call__(members, pos)
        if len(self.computed) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return found


def test_another_request_is_refused_in_the_same_folder(tmp_path: Path) -> None:
    relax_dataset(MODEL, dataset(2), tmp_path, TASK, AseSurface(EMT))
    other = replace(TASK, settings=replace(TASK.settings, fmax=0.2))
    with pytest.raises(RequestError, match=r"fmax was 0\.1 and is now 0\.2"):
        relax_dataset(MODEL, dataset(2), tmp_path, other, AseSurface(EMT))
    with pytest.raises(RequestError, match="model was"):
        relax_dataset(small_potential("gemnet_dT"), dataset(2), tmp_path, TASK, AseSurface(EMT))
    with pytest.raises(RequestError, match="data was"):
        relax_dataset(MODEL, dataset(3), tmp_path, TASK, AseSurface(EMT))


def test_a_folder_with_other_things_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds no relaxation"):
        relax_dataset(MODEL, dataset(2), tmp_path, TASK, AseSurface(EMT))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(RequestError, match="is a file"):
        relax_dataset(MODEL, dataset(2), tmp_path / "notes.txt", TASK, AseSurface(EMT))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    relax_dataset(MODEL, dataset(2), tmp_path, TASK, AseSurface(EMT))
    part = next((tmp_path / "parts").iterdir())  # on a slow machine there are several
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{part.name} is damaged .* remove it"):
        relax_dataset(MODEL, dataset(2), tmp_path, TASK, AseSurface(EMT))


def test_scores_compare_with_the_relaxed_labels_by_the_nearest_image() -> None:
    report_like = dataset(2)
    systems = [report_like[i] for i in range(2)]
    from ocpgem.evaluate.prediction_set import PredictionSet

    shift = np.array([[0.3, 0, 0]]) + systems[0].cell[0]  # a whole cell away, and 0.3 A
    pos_true = np.concatenate([system.pos for system in systems])
    found = PredictionSet(
        sid=np.array([1, 2]),
        fid=np.zeros(2, dtype=int),
        natoms=np.array([system.n_atoms for system in systems]),
        energy=np.array([1.01, 2.5]),
        fixed=np.concatenate([system.fixed for system in systems]),
        atomic_numbers=np.concatenate([system.atomic_numbers for system in systems]),
        energy_true=np.array([1.0, 2.0]),
        pos=np.concatenate((systems[0].pos + shift, systems[1].pos)),
        pos_true=pos_true,
        cell=np.stack([system.cell for system in systems]),
        pbc=np.stack([system.pbc for system in systems]),
    )
    scores = relaxed_scores(found)
    assert scores["energy_mae"] == pytest.approx(0.255)
    assert scores["energy_within_threshold"] == 0.5
    # of the 490 thresholds 0.010, ..., 0.499 all hold for the second and those above 0.3 for the first
    assert scores[ADWT] == pytest.approx((490 + 199) / 980, abs=2 / 980)
    only_positions = relaxed_scores(replace(found, energy_true=None))
    assert only_positions == {ADWT: pytest.approx(scores[ADWT])}
    assert relaxed_scores(replace(found, energy_true=None, pos_true=None)) == {}
