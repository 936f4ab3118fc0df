import gzip
import shutil
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedLine
from ase.io import read, write

from ocpgem.data.lmdb_store import write_dataset
from ocpgem.data.sources import (
    BOXED,
    SPECIAL_CONSTRAINT,
    Frame,
    Piece,
    Unfit,
    energy_unit,
    find_files,
    is_raw_oc20,
    pieces_of,
    read_frames,
)
from ocpgem.data.system import system_from_atoms
from ocpgem.errors import DataError, RequestError

VASP = Path(ase.__file__).parent / "test/testdata/vasp"


def slab(seed=0, calculator=True):
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(0.05, seed=seed)
    atoms.set_tags([0] * 4 + [1] * 4)
    atoms.set_constraint(FixAtoms([0, 1]))
    if calculator:
        atoms.calc = EMT()
        atoms.get_forces()
    return atoms


def frames_of(path, unit_in_ev=1.0):
    return list(read_frames(Piece(0, path, unit_in_ev)))


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_is_read_in_natural_order(tmp_path):
    touch(tmp_path, "run10/a.traj", "run2/a.traj", "run2/a12.traj", "run2/a3.traj", "run2/notes.txt")
    files, remarks = find_files([tmp_path])
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "run2/a3.traj",
        "run2/a12.traj",
        "run2/a.traj",
        "run10/a.traj",
    ]
    assert remarks == [f"passed over in {tmp_path}: 1 other files, the first is run2/notes.txt"]


def test_files_keep_the_order_in_which_they_are_named(tmp_path):
    touch(tmp_path, "b.traj", "a.extxyz")
    assert find_files([tmp_path / "b.traj", tmp_path / "a.extxyz"]) == (
        [tmp_path / "b.traj", tmp_path / "a.extxyz"],
        [],
    )


def test_a_run_of_vasp_is_read_once(tmp_path):
    touch(tmp_path, "1/OUTCAR", "1/vasprun.xml", "2/OUTCAR.gz", "2/POSCAR")
    files, remarks = find_files([tmp_path])
    assert files == [tmp_path / "1/vasprun.xml", tmp_path / "2/OUTCAR.gz"]
    assert remarks[0] == "passed over: 1 OUTCAR files beside a vasprun.xml, which is read"
    assert "1 other files, the first is 2/POSCAR" in remarks[1]


def test_folders_that_leave_a_choice_are_a_wrong_request(tmp_path):
    touch(tmp_path, "a.traj", "a.extxyz", "b.xyz.gz")
    with pytest.raises(RequestError, match=r"extxyz \(2 files\), traj \(1 files\); name those"):
        find_files([tmp_path])
    touch(tmp_path / "empty", "readme")
    with pytest.raises(RequestError, match="holds no file of a kind that convert looks for"):
        find_files([tmp_path / "empty"])
    with pytest.raises(RequestError, match="does not exist"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match=r"a.traj is named twice"):
        find_files([tmp_path / "a.traj", tmp_path / "empty/../a.traj"])
    touch(tmp_path, "set/metadata.json")
    with pytest.raises(RequestError, match="is a data set of ocpgem already"):
        find_files([tmp_path / "set"])
    write_dataset(tmp_path / "own", [system_from_atoms(slab())])
    with pytest.raises(RequestError, match=r"own/data.0000.lmdb is ocpgem's own already"):
        find_files([tmp_path / "own/data.0000.lmdb"])


@pytest.mark.parametrize(
    ("names", "raw"),
    [
        (["0.extxyz.xz", "0.txt.xz"], True),
        (["0.extxyz", "0.txt"], True),
        (["0.extxyz.xz"], True),
        (["0.extxyz"], False),
        (["run.extxyz.xz"], False),
        (["a.traj"], False),
    ],
)
def test_raw_archives_are_told_by_their_layout(tmp_path, names, raw):
    touch(tmp_path, *names)
    assert is_raw_oc20(tmp_path) is raw
    assert not is_raw_oc20(tmp_path / names[0])


@pytest.mark.parametrize("name", ["x.extxyz", "x.extxyz.gz", "x.traj", "x.db"])
def test_what_ase_writes_comes_back(tmp_path, name):
    images = [slab(seed) for seed in range(3)]
    write(tmp_path / name, images)
    frames = frames_of(tmp_path / name)
    assert [frame.record for frame in frames] == [0, 1, 2]
    for frame, atoms in zip(frames, images, strict=True):
        system = frame.system
        assert system.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        assert np.allclose(system.forces, atoms.get_forces(apply_constraint=False), atol=1e-6)
        assert np.array_equal(system.cell, atoms.cell.array.astype("f4"))
        assert system.fixed.tolist() == [True] * 2 + [False] * 6
        assert system.tags.tolist() == [0] * 4 + [1] * 4
        assert (frame.sid, frame.remarks) == (None, ())


@pytest.mark.skipif(not VASP.is_dir(), reason="this ASE comes without its test files")
@pytest.mark.parametrize("name", ["OUTCAR_example_1", "vasprun_dfpt.xml"])
def test_outputs_of_vasp_are_read(tmp_path, name):
    target = tmp_path / ("vasprun.xml" if name.endswith("xml") else "OUTCAR")
    shutil.copy(VASP / name, target)
    (frame,) = frames_of(target)
    atoms = read(target)
    assert frame.system.energy == atoms.get_potential_energy()
    assert np.array_equal(frame.system.forces, atoms.get_forces().astype("f4"))
    assert energy_unit(target).name == "eV"
    packed = tmp_path / f"{target.name}.gz"
    packed.write_bytes(gzip.compress(target.read_bytes()))
    assert np.array_equal(frames_of(packed)[0].system.pos, frame.system.pos)


def test_numbers_of_the_file_are_found(tmp_path):
    images = [slab(seed) for seed in range(2)]
    for i, atoms in enumerate(images):
        atoms.info.update(sid=40 + i, fid=3)
    write(tmp_path / "x.extxyz", images)
    assert [(frame.sid, frame.fid) for frame in frames_of(tmp_path / "x.extxyz")] == [(40, 3), (41, 3)]


def test_numbers_may_be_text_as_in_the_files_of_oc20(tmp_path):
    images = [slab(seed) for seed in range(2)]
    for i, atoms in enumerate(images):
        atoms.info.update(sid=f"random{40 + i}", fid="frame3")
    write(tmp_path / "x.extxyz", images)
    assert [(frame.sid, frame.fid) for frame in frames_of(tmp_path / "x.extxyz")] == [(40, 3), (41, 3)]


def test_other_units_are_applied_to_energies_and_forces(tmp_path):
    write(tmp_path / "x.traj", slab())
    (plain,), (scaled,) = frames_of(tmp_path / "x.traj"), frames_of(tmp_path / "x.traj", 0.5)
    assert scaled.system.energy == 0.5 * plain.system.energy
    assert np.array_equal(scaled.system.forces, plain.system.forces * np.float32(0.5))


def test_a_molecule_gets_a_box_and_stays_where_it_is(tmp_path):
    atoms = molecule("CH3CH2OH")
    write(tmp_path / "x.extxyz", atoms)
    (frame,) = frames_of(tmp_path / "x.extxyz")
    assert not frame.system.pbc.any()
    assert np.allclose(np.diag(frame.system.cell), np.ptp(atoms.positions, axis=0) + 12)
    assert np.allclose(frame.system.pos, atoms.positions, atol=1e-6)
    assert frame.remarks == (BOXED,)


def test_a_slab_gets_the_vector_it_lacks(tmp_path):
    atoms = slab()
    atoms.pbc = [True, True, False]
    atoms.cell[2] = 0
    write(tmp_path / "x.traj", atoms)
    (frame,) = frames_of(tmp_path / "x.traj")
    assert np.allclose(frame.system.cell[:2], atoms.cell[:2])
    assert np.allclose(frame.system.cell[2], [0, 0, np.ptp(atoms.positions[:, 2]) + 12])


def test_constraints_that_cannot_be_kept_are_remarked(tmp_path):
    atoms = slab()
    atoms.set_constraint([FixAtoms([0]), FixedLine(1, [0, 0, 1])])
    write(tmp_path / "x.traj", atoms)
    (frame,) = frames_of(tmp_path / "x.traj")
    assert frame.remarks == (SPECIAL_CONSTRAINT,)
    assert frame.system.fixed.tolist() == [True] + [False] * 7


def test_a_record_that_cannot_be_held_is_passed_on_as_such(tmp_path):
    images = [slab(seed) for seed in range(2)]
    images[0].set_tags(-1)
    write(tmp_path / "x.traj", images)
    first, second = frames_of(tmp_path / "x.traj")
    assert isinstance(first, Unfit)
    assert isinstance(second, Frame)


def test_an_archive_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("ocpgem.data.sources.FRAMES_PER_PIECE", 3)
    rng = np.random.default_rng(0)
    arrays = {
        "z": [8, 1, 1],
        "R": rng.normal(size=(7, 3, 3)),
        "E": np.full(7, -76.4),
        "F": rng.normal(size=(7, 3, 3)),
    }
    np.savez(tmp_path / "x.npz", **arrays)
    pieces = pieces_of(0, tmp_path / "x.npz", 1.0)
    assert [(piece.first, piece.last) for piece in pieces] == [(0, 3), (3, 6), (6, 7)]
    frames = [frame for piece in pieces for frame in read_frames(piece)]
    assert [frame.record for frame in frames] == list(range(7))
    assert np.array_equal([frame.system.pos for frame in frames], arrays["R"].astype("f4"))


@pytest.mark.parametrize(("energy", "asked"), [(-76.4, True), (-2079.0, False), (-14.2, False)])
def test_extxyz_with_energies_of_another_unit_is_asked_about(tmp_path, energy, asked):
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((3, 3)))
    write(tmp_path / "x.extxyz", atoms)
    if asked:
        with pytest.raises(RequestError, match=r"look like hartree .* --units"):
            energy_unit(tmp_path / "x.extxyz")
    else:
        assert energy_unit(tmp_path / "x.extxyz").name == "eV"


def test_damage_is_named_with_its_record(tmp_path):
    write(tmp_path / "x.extxyz", [slab(seed) for seed in range(3)])
    text = (tmp_path / "x.extxyz").read_text()
    (tmp_path / "x.extxyz").write_text(text[: len(text) * 5 // 6])
    with pytest.raises(DataError, match=r"x.extxyz, record \d: ASE cannot read it"):
        frames_of(tmp_path / "x.extxyz")


def test_an_empty_atoms_object_is_a_frame(tmp_path):
    write(tmp_path / "x.traj", Atoms())
    (frame,) = frames_of(tmp_path / "x.traj")
    assert frame.system.n_atoms == 0
