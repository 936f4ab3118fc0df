import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ocpgem.data.system import system_from_atoms, whole_number
from ocpgem.errors import DataError


def slab() -> Atoms:
    atoms = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.5, forces=np.full((len(atoms), 3), 0.25))
    return atoms


def test_atoms_survive_the_way_to_a_system_and_back():
    atoms = slab()
    system = system_from_atoms(atoms, sid=7, fid=2)
    back = system.to_atoms()
    assert np.array_equal(back.numbers, atoms.numbers)
    assert np.allclose(back.positions, atoms.positions, atol=1e-6)
    assert np.allclose(back.cell, atoms.cell, atol=1e-6)
    assert np.array_equal(back.constraints[0].index, atoms.constraints[0].index)
    assert back.get_potential_energy() == -3.5
    assert (back.info["sid"], back.info["fid"]) == (7, 2)


def test_forces_of_fixed_atoms_are_kept():
    system = system_from_atoms(slab())
    assert system.fixed.sum() == 4
    assert (system.forces == 0.25).all()


def test_move_mask_true_means_free():
    atoms = Atoms("CuCu", positions=[[0, 0, 0], [0, 0, 2.5]])
    atoms.arrays["move_mask"] = np.array([True, False])
    assert system_from_atoms(atoms).fixed.tolist() == [False, True]


def test_a_structure_without_labels_has_none():
    system = system_from_atoms(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]]))
    assert system.energy is None
    assert system.forces is None


@pytest.mark.parametrize("key", ["pos", "forces", "cell"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_by_name(make_system, key, value):
    system = make_system(source="train.lmdb, record 4")
    getattr(system, key)[1, 1] = value
    with pytest.raises(DataError, match=rf"sid 1000, frame 0 \(train.lmdb, record 4\): {key} .* not finite"):
        system.validate()


@pytest.mark.parametrize("number", [0, 101])
def test_an_element_outside_the_table_is_refused(make_system, number):
    system = make_system()
    system.atomic_numbers[3] = number
    with pytest.raises(DataError, match=f"atomic number {number} is outside 1 to 100"):
        system.validate()


def test_a_periodic_cell_without_volume_is_refused_and_an_open_one_is_not(make_system):
    flat = np.diag([6.0, 6.0, 0.0]).astype(np.float32)
    with pytest.raises(DataError, match="no volume"):
        make_system(cell=flat).validate()
    make_system(cell=flat, pbc=np.array([True, True, False])).validate()


def test_arrays_of_different_lengths_are_refused(make_system):
    with pytest.raises(DataError, match=r"forces has shape \(3, 3\); 12 atoms need \(12, 3\)"):
        make_system(forces=np.zeros((3, 3), np.float32)).validate()


def test_a_system_without_atoms_is_refused(make_system):
    with pytest.raises(DataError, match="no atoms"):
        make_system(0).validate()


def test_a_tag_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="tag -1 is not a whole number"):
        system_from_atoms(Atoms("H", tags=[-1]))


@pytest.mark.parametrize(
    "value",
    [
        12,
        12.0,
        "12",
        "random12",
        [12],
        ("frame12",),
        ["012"],
        np.int64(12),
        np.array([[12]]),
        np.array("a12"),
    ],
)
def test_a_number_of_a_system_or_frame_may_have_many_forms(value):
    found = whole_number(value)
    assert (found, type(found)) == (12, int)
    assert system_from_atoms(Atoms("H", info={"sid": value, "fid": value})).name == "sid 12, frame 12"


def test_numbers_below_zero_are_read():
    assert [whole_number(value) for value in (-3, "-3", [-3])] == [-3] * 3


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        "1.5",
        "slab",
        "",
        "a-1",
        "12a",
        "1 2",
        [],
        [1, 2],
        [[1, 2]],
        [None],
        None,
        True,
        np.nan,
        np.inf,
        2**63,
    ],
)
def test_what_is_no_whole_number_is_none_of_a_system(value):
    with pytest.raises(ValueError, match="is not a whole number"):
        whole_number(value)
    with pytest.raises(
        DataError, match=r"x, record 0: its sid, .* cannot be read \(.* is not a whole number\)"
    ):
        system_from_atoms(Atoms("H", info={"fid": value}), source="x, record 0")
