import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ocpgem.data.convert import convert_files
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.inspect import describe, summarize
from ocpgem.data.open import open_dataset


def test_counts_elements_labels_and_edges_are_told(make_system):
    fixed = np.array([True, False, False])
    forces = np.array([[9, 9, 9], [3, 0, 4], [0, 0, 0]], dtype="f4")
    systems = [
        make_system(
            3,
            seed=i,
            sid=i // 2,
            fid=i,
            atomic_numbers=np.array([29, 29, 8], dtype=np.uint8),
            forces=forces,
            fixed=fixed,
            energy=-3.0 - i,
            tags=np.array([0, 1, 2], dtype=np.uint8),
        )
        for i in range(4)
    ]
    systems[3].atomic_numbers = np.array([29, 29, 29], dtype=np.uint8)
    lines = summarize(InMemoryDataset(systems))
    assert lines["records"] == "4 of 2 systems"
    assert lines["frames of a system"] == "2 to 2, median 2, mean 2.0"
    assert lines["free atoms"] == "2 to 2, median 2, mean 2.0"
    assert "mean" in lines["edges (6 A, nearest 50)"]
    assert "mean" in lines["edges per atom"]
    assert lines["elements"].splitlines()[1:] == [
        "Cu  75.0 % 100.0 % " + 40 * "#",
        "O   25.0 %  75.0 % " + 13 * "#",
    ]
    assert lines["tags"] == "0: 33 %, 1: 33 %, 2: 33 %"
    assert lines["periodic"] == "TTT: 100 %"
    assert lines["energy"] == "mean -4.5000, std 1.1180, -6.0000 to -3.0000 eV"
    assert lines["energy per atom"] == "mean -1.5000, std 0.3727, -2.0000 to -1.0000 eV"
    assert "norm mean 2.5000, 99 % below 5.00, largest 5.00 eV/A" in lines["forces"]
    assert lines["energy_relaxed"] == lines["pos_relaxed"] == "none"


def test_labels_that_only_some_records_have_are_told(make_system):
    systems = [make_system(), make_system(seed=1, energy=None, forces=None)]
    lines = summarize(InMemoryDataset(systems))
    assert lines["energy"].endswith("; in 1 of 2 records")
    assert lines["forces"].endswith("; in 1 of 2 records")


def test_the_origin_of_a_data_set_is_told(tmp_path, capsys):
    images = [molecule("H2O") for _ in range(3)]
    for atoms in images[1:]:
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    write(tmp_path / "x.traj", images)
    convert_files([tmp_path / "x.traj"], tmp_path / "out", workers=1)
    lines = summarize(open_dataset(tmp_path / "out"))
    assert lines["made from"] == "files"
    assert lines["left out then"] == "1: no energy"
    assert lines["shards"].startswith("1, ")
    describe(tmp_path / "out")
    assert "left out then" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.traj"])
def test_a_file_that_ase_reads_can_be_described(tmp_path, capsys, name):
    write(tmp_path / name, molecule("H2O"))
    describe(tmp_path / name)
    assert "H   66.7 %" in capsys.readouterr().out
