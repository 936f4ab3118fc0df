import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from ocpgem.data.convert import Options, convert_files
from ocpgem.data.lmdb_store import LmdbDataset
from ocpgem.data.screening import Limits
from ocpgem.errors import DataError, RequestError

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from ocpgem.data.convert import convert_files
if __name__ == "__main__":
    convert_files([{source!r}], {out!r}, workers=2)
"""


def copper(seed=0, element="Cu"):
    atoms = bulk(element, cubic=True)
    atoms.rattle(0.05, seed=seed)
    atoms.set_tags([0, 0, 1, 1])
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.calc = EMT()
    atoms.get_forces()
    return atoms


def labelled(atoms, energy=-1.5, forces=None):
    results = {"energy": energy, "forces": np.zeros((len(atoms), 3)) if forces is None else forces}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in results.items() if v is not False})
    return atoms


@pytest.fixture
def trajectories(tmp_path):
    """A folder of three files: 3 frames of Cu, 2 of Ag, and 2 of Cu and 1 of Ag in one."""
    folder = tmp_path / "runs"
    folder.mkdir()
    write(folder / "1.traj", [copper(seed) for seed in range(3)])
    write(folder / "2.traj", [copper(seed, "Ag") for seed in range(2)])
    write(folder / "10.traj", [copper(3), copper(4), copper(2, "Ag")])
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def test_a_folder_becomes_a_data_set(trajectories, tmp_path):
    said = []
    made = convert_files([trajectories], tmp_path / "out", workers=1, say=said.append)
    dataset = LmdbDataset(tmp_path / "out")
    assert dataset.sids.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert dataset.fids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert [chr(system.atomic_numbers[0] + 36) for system in dataset] == list("AAASSAAS")
    first = copper(0)
    assert dataset[0].energy == first.get_potential_energy()
    assert np.array_equal(dataset[0].forces, first.get_forces(apply_constraint=False).astype("f4"))
    assert dataset[0].fixed.tolist() == [True, True, False, False]
    assert dataset[0].tags.tolist() == [0, 0, 1, 1]
    assert (dataset.n_edges > 0).all()
    assert said == [
        f"energies in eV, forces in eV/A (ASE's readers return it): 3 files, the first is {trajectories}/1.traj"
    ]
    assert "8 frames of 4 systems in 1 shards" in str(made)
    assert "left out: none of 8 records" in str(made)
    assert "consecutive frames of a file" in str(made)
    assert set(contents(tmp_path / "out")) == {"data.0000.lmdb", "sizes.npy", "metadata.json"}


def test_workers_change_nothing(trajectories, tmp_path):
    convert_files([trajectories], tmp_path / "alone", workers=1)
    convert_files([trajectories], tmp_path / "together", workers=2)
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_energies_keep_all_their_digits(tmp_path):
    energy = -97091.69625356123
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        z=[6, 8],
        R=rng.normal(size=(1, 2, 3)),
        E=[energy],
        F=np.ones((1, 2, 3)),
        e_unit="kcal/mol",
    )
    convert_files([tmp_path / "x.npz"], tmp_path / "out", workers=1)
    (system,) = LmdbDataset(tmp_path / "out")
    assert system.energy == pytest.approx(energy * 0.0433641039, rel=1e-9)
    assert float(np.float32(system.energy)) != system.energy


def test_a_guessed_unit_is_said_and_kept_in_the_description(tmp_path):
    water = {"z": [8, 1, 1], "R": np.array([molecule("H2O").positions] * 2), "F": np.ones((2, 3, 3))}
    np.savez(tmp_path / "x.npz", E=np.array([-76.4, -76.3]), **water)
    said = []
    convert_files([tmp_path / "x.npz"], tmp_path / "out", workers=1, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("energies in hartree, forces in hartree/A (guessed: in it they are 1.004 times")
    dataset = LmdbDataset(tmp_path / "out")
    assert dataset.metadata["provenance"]["decisions"] == said
    assert dataset[0].energy == pytest.approx(-76.4 * 27.2114, rel=1e-5)
    assert dataset[0].forces[0, 0] == pytest.approx(27.2114, rel=1e-5)


def test_a_given_unit_is_used_without_a_guess(tmp_path):
    write(tmp_path / "x.extxyz", labelled(molecule("H2O"), -76.4))
    said = []
    convert_files([tmp_path / "x.extxyz"], tmp_path / "out", Options(units="hartree"), 1, said.append)
    assert "as --units says" in said[0]
    assert LmdbDataset(tmp_path / "out")[0].energy == pytest.approx(-76.4 * 27.2114, rel=1e-5)
    with pytest.raises(RequestError, match="look like hartree"):
        convert_files([tmp_path / "x.extxyz"], tmp_path / "again", workers=1)
    assert not (tmp_path / "again").exists()


def test_what_is_left_out_is_counted_with_the_first(tmp_path):
    pushed = np.zeros((3, 3))
    pushed[1] = 60
    images = [
        labelled(molecule("H2O")),
        molecule("H2O"),
        labelled(molecule("H2O"), float("nan")),
        labelled(molecule("H2O"), forces=False),
        labelled(molecule("H2O"), forces=pushed),
        labelled(molecule("H2O"), -900.0),
        labelled(molecule("H")),
        labelled(molecule("H2O"), forces=False),
        labelled(molecule("H2O"), -2.5),
    ]
    write(tmp_path / "x.traj", images)
    limits = Limits(max_force=50.0, max_energy_per_atom=100.0)
    made = convert_files([tmp_path / "x.traj"], tmp_path / "out", Options(limits=limits), 1)
    dataset = LmdbDataset(tmp_path / "out")
    assert [system.energy for system in dataset] == [-1.5, -2.5]
    assert dataset.fids.tolist() == [0, 8]
    place = f"{tmp_path / 'x.traj'}, record"
    expected = {
        "no energy": (1, f"{place} 1"),
        "energy that is not finite (NaN or infinity)": (1, f"{place} 2"),
        "no forces": (2, f"{place} 3"),
        "a force above 50 eV/A on a free atom": (1, f"{place} 4"),
        "an energy above 100 eV per atom": (1, f"{place} 5"),
        "no two atoms within 6 A": (1, f"{place} 6"),
    }
    assert made.report.left_out.entries == expected
    assert "left out: 7 of 9 records" in str(made)
    assert f"  2: no forces (first: {place} 3)" in str(made)
    again = convert_files([tmp_path / "x.traj"], tmp_path / "out", Options(limits=limits), 1)
    assert again.report.left_out.entries == expected


def test_where_nothing_is_left_the_reasons_are_told_and_nothing_stays(tmp_path):
    write(tmp_path / "x.traj", [molecule("H2O"), molecule("CO")])
    with pytest.raises(
        DataError,
        match=r"nothing can be converted; left out: 2 of 2 records; 2: no energy \(first: .*record 0\)",
    ):
        convert_files([tmp_path / "x.traj"], tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    options = Options(limits=Limits("nothing"))
    assert convert_files([tmp_path / "x.traj"], tmp_path / "out", options, 1).summary.n_frames == 2


def test_tags_can_be_assigned(trajectories, tmp_path):
    convert_files([trajectories / "1.traj"], tmp_path / "out", Options(tags="slab:Cu"), 1)
    assert LmdbDataset(tmp_path / "out")[0].tags.tolist() == [0, 0, 2, 2]


def test_boxed_molecules_are_remarked(tmp_path):
    write(tmp_path / "x.extxyz", [labelled(molecule("CO")) for _ in range(3)])
    made = convert_files([tmp_path / "x.extxyz"], tmp_path / "out", workers=1)
    assert "kept, but\n  3: got a cell" in str(made)
    (system, *_) = LmdbDataset(tmp_path / "out")
    assert not system.pbc.any()
    assert np.linalg.det(system.cell) > 1000


def test_a_file_that_cannot_be_read_stops_the_conversion_unless_skipped(trajectories, tmp_path):
    (trajectories / "3.traj").write_bytes((trajectories / "2.traj").read_bytes()[:900])
    (trajectories / "4.traj").write_bytes(b"")
    with pytest.raises(DataError, match=r"3.traj, record \d.*--skip-unreadable"):
        convert_files([trajectories], tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
    made = convert_files([trajectories], tmp_path / "out", Options(skip_unreadable=True), 1)
    assert made.report.files.entries["cannot be read to their end"][0] == 2
    assert "3.traj" in str(made)
    assert made.summary.n_frames >= 8


def test_a_damaged_archive_can_be_skipped(trajectories, tmp_path):
    bad = tmp_path / "x.npz"
    bad.write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(DataError, match=r"x.npz cannot be read as an npz archive"):
        convert_files([trajectories / "1.traj", bad], tmp_path / "out", workers=1)
    made = convert_files([trajectories / "1.traj", bad], tmp_path / "out", Options(skip_unreadable=True), 1)
    assert (made.summary.n_frames, made.report.files.total) == (3, 1)


def test_an_empty_file_is_reported(trajectories, tmp_path):
    np.savez(tmp_path / "x.npz", z=[8, 1, 1], R=np.zeros((0, 3, 3)), E=np.zeros(0), F=np.zeros((0, 3, 3)))
    made = convert_files([trajectories / "1.traj", tmp_path / "x.npz"], tmp_path / "out", workers=1)
    assert "files that\n  1: hold no records (first:" in str(made)


def test_many_files_become_few_parts_in_order(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        write(folder / f"{i}.extxyz", labelled(molecule("CO"), -i / 10))
    convert_files([folder], tmp_path / "out", workers=1)
    dataset = LmdbDataset(tmp_path / "out")
    assert [system.energy for system in dataset] == [-i / 10 for i in range(300)]
    assert dataset.sids.tolist() == list(range(300))


def test_coll_keeps_its_numbers(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "coll.npz",
        N=[2, 3],
        Z=[6, 8, 8, 1, 1],
        R=rng.normal(size=(5, 3)),
        E=[-8.0, -10.0],
        F=rng.normal(size=(5, 3)),
        id=[31, 30],
    )
    made = convert_files([tmp_path / "coll.npz"], tmp_path / "out", workers=1)
    dataset = LmdbDataset(tmp_path / "out")
    assert dataset.sids.tolist() == [31, 30]
    assert dataset.n_atoms.tolist() == [2, 3]
    assert made.numbering == "numbered as in the files"


def test_another_data_set_is_not_overwritten(trajectories, tmp_path):
    convert_files([trajectories], tmp_path / "out", workers=1)
    before = contents(tmp_path / "out")
    with pytest.raises(RequestError, match="already holds another data set"):
        convert_files([trajectories], tmp_path / "out", Options(tags="0"), 1)
    assert contents(tmp_path / "out") == before
    assert convert_files([trajectories], tmp_path / "out", workers=1).summary.n_frames == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(units="furlong"), "--units: 'furlong' is no unit"),
        (Options(tags="some"), "--tags some is no rule"),
        (Options(limits=Limits(max_energy_per_atom=0.0)), "--max-energy-per-atom is 0"),
    ],
)
def test_options_that_cannot_be_used_are_a_wrong_request(trajectories, tmp_path, options, message):
    with pytest.raises(RequestError, match=message):
        convert_files([trajectories], tmp_path / "out", options, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # starts a conversion with workers, kills it and converts twice: 7 s
def test_a_killed_conversion_goes_on_where_it_was(tmp_path):
    source, out = tmp_path / "runs", tmp_path / "out"
    source.mkdir()
    write(source / "0.extxyz", [labelled(copper(seed)) for seed in range(60)])
    for i in range(1, 12):
        shutil.copy(source / "0.extxyz", source / f"{i}.extxyz")
    script = tmp_path / "convert.py"
    script.write_text(PROGRAM.format(source=str(source), out=str(out)))
    process = subprocess.Popen([sys.executable, script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    while len(list((out / ".parts").glob("data.*.lmdb"))) < 3:
        assert process.poll() is None, "the conversion ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # its workers end by themselves
    finished = {path: path.stat().st_mtime_ns for path in (out / ".parts").glob("data.*.lmdb")}
    assert 3 <= len(finished) < 12
    with pytest.raises(DataError, match="interrupted or still runs: give the same command again"):
        LmdbDataset(out)
    with pytest.raises(RequestError, match="unfinished conversion of other files or with other options"):
        convert_files([source], out, Options(tags="0"), 1)
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert convert_files([source], out, workers=1).summary.n_frames == 720
    convert_files([source], tmp_path / "at_once", workers=1)
    assert contents(out) == contents(tmp_path / "at_once")


def test_real_ethanol_becomes_a_data_set(shared, tmp_path):
    path = shared / "data/md17/ethanol_ccsd_t_dev.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    made = convert_files([path], tmp_path / "out", workers=1)
    assert (made.summary.n_frames, made.summary.n_systems, made.report.left_out.total) == (800, 1, 0)
    energies = np.array([system.energy for system in LmdbDataset(tmp_path / "out")])
    assert energies.mean() == pytest.approx(-4210.0, abs=0.1)
    raw = np.load(path)
    assert np.allclose(energies, raw["E"][:, 0] * 0.043364103900593, rtol=1e-12)
    assert np.allclose(LmdbDataset(tmp_path / "out")[5].forces, raw["F"][5] * 0.0433641039, atol=1e-6)
