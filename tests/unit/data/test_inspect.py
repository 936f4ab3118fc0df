import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ocpgem.data.convert import convert_files
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.inspect import describe, inspect, lines_of, summarize
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.evaluate.data_figure import data_figure
from ocpgem.evaluate.figures import LIGHT


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


def test_neighbours_and_edge_lengths_are_told(make_system):
    cell = np.diag([4.0, 4.0, 30.0]).astype("f4")
    one = make_system(1, pos=np.zeros((1, 3), "f4"), cell=cell)  # 4 neighbours at 4 A, 4 at 5.66 A
    lines = summarize(InMemoryDataset([one]))
    assert lines["neighbours within 6 A"].startswith(
        "8 to 8, median 8, mean 8.0 an atom (1 records); 0.0 % of"
    )
    assert lines["neighbours within 6 A"].endswith("0 have none")
    assert lines["edge lengths"] == "4.00 to 5.66, median 4.83, mean 4.83 A"
    dense = make_system(60, cell=np.diag([6.0, 6.0, 6.0]).astype("f4"))
    far = make_system(2, pos=np.array([[0, 0, 0], [50, 0, 0]], "f4"), pbc=np.zeros(3, bool))
    lines = summarize(InMemoryDataset([dense, far]))
    assert lines["neighbours within 6 A"].endswith("have more than the nearest 50; 2 have none")


def test_a_large_set_is_sampled_and_that_is_said(make_system, monkeypatch):
    monkeypatch.setattr("ocpgem.data.inspect.SAMPLE", 5)
    monkeypatch.setattr("ocpgem.data.inspect.EDGE_SAMPLE", 3)
    monkeypatch.setattr("ocpgem.data.inspect.TABLE_AT_ONCE", 4)
    found = inspect(InMemoryDataset([make_system(3 + i, sid=i, energy=float(i)) for i in range(9)]))
    assert [system.sid for system in found.sample] == [0, 2, 4, 6, 8]
    lines = lines_of(found)
    assert lines["records"] == "9"
    assert lines["atoms (of 3 records)"] == "3 to 11, median 7, mean 7.0"
    assert lines["sample"] == "the lines below describe 5 records, spread evenly"
    assert "(3 records)" in lines["neighbours within 6 A"]
    assert found.notice == "elements and labels of 5 of 9 records; sizes of 3 records; neighbours of 3"


def test_of_a_very_large_side_table_some_rows_are_looked_at(tmp_path, make_system, monkeypatch):
    write_dataset(tmp_path / "x", [make_system(3 + i, sid=i) for i in range(9)])
    monkeypatch.setattr("ocpgem.data.inspect.MOST_ROWS", 5)
    lines = summarize(open_dataset(tmp_path / "x"))
    assert lines["records"] == "9"
    assert lines["atoms (of 5 records)"] == "3 to 11, median 7, mean 7.0"
    assert lines["sample"] == "the lines below describe all records"


@pytest.mark.parametrize("kind", ["all labels", "relaxations", "no labels", "still", "gas"])
def test_every_kind_of_data_set_can_be_drawn(make_system, kind):
    changes = {
        "all labels": {},
        "relaxations": {"forces": None, "energy_relaxed": -1.0, "pos_relaxed": np.zeros((12, 3), "f4")},
        "no labels": {"energy": None, "forces": None},
        "still": {"forces": np.zeros((12, 3), "f4"), "energy": 0.0},
        "gas": {"pos": np.arange(36, dtype="f4").reshape(12, 3) * 50, "pbc": np.zeros(3, bool)},
    }[kind]
    png = data_figure(
        LIGHT, inspect(InMemoryDataset([make_system(seed=i, **changes) for i in range(3)])), kind
    )
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


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
