import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import write

from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.open import open_dataset
from ocpgem.errors import DataError, RequestError


@pytest.fixture
def frames():
    images = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.05, seed=seed)
        atoms.set_tags([0] * 4 + [1] * 4)
        atoms.set_constraint(FixAtoms([0, 1]))
        atoms.calc = EMT()
        atoms.get_forces()
        images.append(atoms)
    return images


@pytest.mark.parametrize("name", ["x.extxyz", "x.extxyz.xz", "x.traj", "x.db"])
def test_whatever_ase_reads_opens(tmp_path, frames, name):
    write(tmp_path / name, frames)
    dataset = open_dataset(tmp_path / name)
    assert len(dataset) == 3
    assert dataset.n_atoms.tolist() == [8, 8, 8]
    for system, atoms in zip(dataset, frames, strict=True):
        assert system.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        free = ~system.fixed
        assert np.allclose(system.forces[free], atoms.get_forces()[free], atol=1e-6)
        assert system.fixed.tolist() == [True, True] + 6 * [False]
        assert system.tags.tolist() == [0] * 4 + [1] * 4


def test_the_limit_takes_the_first_systems(tmp_path, frames, make_system):
    write(tmp_path / "x.extxyz", frames)
    assert len(open_dataset(tmp_path / "x.extxyz", limit=2)) == 2
    write_dataset(tmp_path / "lmdb", [make_system(seed=seed) for seed in range(5)])
    limited = open_dataset(tmp_path / "lmdb", limit=2)
    assert [system.sid for system in limited] == [1000, 1001]
    assert len(limited.n_edges) == 2
    assert len(open_dataset(tmp_path / "lmdb", limit=50)) == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_a_wrong_request(tmp_path, limit):
    with pytest.raises(RequestError, match="at least 1"):
        open_dataset(tmp_path, limit)


def test_a_missing_path_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        open_dataset(tmp_path / "nowhere.extxyz")


def test_an_archive_has_to_be_converted_first(tmp_path):
    (tmp_path / "x.npz").touch()
    with pytest.raises(RequestError, match=r"x.npz is an archive; convert it first: data convert"):
        open_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize("info", [{"sid": "first"}, {"fid": [1, 2]}, {"energy": "low"}])
def test_numbers_that_are_none_are_refused_in_a_sentence(tmp_path, info):
    atoms = bulk("Cu")
    atoms.info.update(info)
    write(tmp_path / "x.traj", atoms)
    with pytest.raises(
        DataError, match=r"x.traj, record 0: its sid, fid, labels or fixed atoms cannot be read"
    ):
        open_dataset(tmp_path / "x.traj")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.yml", "notes.yml is of a kind that neither ocpgem nor ASE reads"),
        ("README.md", "README.md holds no systems"),  # the ending is that of CASTEP's dynamics
    ],
)
def test_a_file_that_holds_no_structures_is_a_wrong_request(tmp_path, name, message):
    (tmp_path / name).write_text("# Notes\n")
    with pytest.raises(RequestError, match=message):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["x.extxyz", "x.traj", "x.unheard-of"])
def test_an_empty_file_is_called_empty(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name} is empty \(0 bytes\)"):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["x.extxyz", "x.traj"])
@pytest.mark.parametrize("content", [b"3\nLattice=\nCu 1 2\n", b"\x00\xff" * 50])
def test_a_hostile_file_is_refused_in_a_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_dataset(tmp_path / name)
