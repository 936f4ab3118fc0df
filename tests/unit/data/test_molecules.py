import numpy as np
import pytest

from ocpgem.data.molecules import read_molecules
from ocpgem.errors import DataError, RequestError

KCAL = 0.0433641039


def one_molecule(n=4, names=("z", "R", "E", "F"), unit=627.5095, **more):
    """Water in an MD17-like archive, total energies in hartree times `unit`."""
    rng = np.random.default_rng(0)
    arrays = dict(
        zip(
            names,
            (
                np.array([8, 1, 1], dtype=np.uint8),
                rng.normal(size=(n, 3, 3)),
                -76.4 * unit + rng.normal(size=(n, 1)),
                rng.normal(size=(n, 3, 3)),
            ),
            strict=True,
        )
    )
    return arrays | more


def many_molecules(**more):
    rng = np.random.default_rng(1)
    counts = np.array([3, 2, 3])
    arrays = {
        "N": counts,
        "Z": np.array([8, 1, 1, 1, 1, 8, 1, 1]),
        "R": rng.normal(size=(8, 3)).astype(np.float32),
        "E": -3.1 * counts,
        "F": rng.normal(size=(8, 3)).astype(np.float32),
        "id": np.array([7, 3, 7]),
    }
    return arrays | more


@pytest.fixture
def archive(tmp_path):
    def make(arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    return make


@pytest.mark.parametrize("names", [("z", "R", "E", "F"), ("nuclear_charges", "coords", "energies", "forces")])
def test_both_spellings_of_md17_are_read(archive, names):
    arrays = one_molecule(names=names)
    molecules = read_molecules(archive(arrays))
    assert molecules.n_frames == 4
    system = molecules.system(2, KCAL)
    assert system.atomic_numbers.tolist() == [8, 1, 1]
    assert not system.pbc.any()
    assert system.energy == float(arrays[names[2]][2, 0] * KCAL)
    assert np.array_equal(system.pos, arrays[names[1]][2].astype("f4"))
    assert np.array_equal(system.forces, (arrays[names[3]][2] * KCAL).astype("f4"))
    assert molecules.numbers() is None


def test_the_molecules_of_coll_are_told_apart(archive):
    arrays = many_molecules()
    molecules = read_molecules(archive(arrays))
    assert [molecules.system(i, 1.0).atomic_numbers.tolist() for i in range(3)] == [
        [8, 1, 1],
        [1, 1],
        [8, 1, 1],
    ]
    assert np.array_equal(molecules.system(1, 1.0).pos, arrays["R"][3:5])
    assert np.array_equal(molecules.system(2, 1.0).forces, arrays["F"][5:])
    sids, fids = molecules.numbers()
    assert sids.tolist() == [7, 3, 7]
    assert fids.tolist() == [0, 0, 1]


def test_an_archive_without_forces_has_none(archive):
    arrays = many_molecules()
    del arrays["F"]
    assert read_molecules(archive(arrays)).system(0, 1.0).forces is None


def test_the_unit_that_a_file_names_is_believed(archive):
    unit = read_molecules(archive(one_molecule(e_unit="kcal/mol", r_unit="Ang", type="d"))).energy_unit()
    assert (unit.name, unit.is_guess) == ("kcal/mol", False)
    assert "e_unit" in unit.reason
    unit = read_molecules(archive(one_molecule(e_unit=np.bytes_("eV")))).energy_unit()
    assert unit.name == "eV"


def test_a_named_unit_that_nobody_knows_is_a_wrong_request(archive):
    with pytest.raises(RequestError, match=r"x.npz, e_unit: 'furlong'"):
        read_molecules(archive(one_molecule(e_unit="furlong"))).energy_unit()


@pytest.mark.parametrize(("size", "name"), [(1.0, "hartree"), (27.2114, "eV"), (627.5095, "kcal/mol")])
def test_the_unit_of_total_energies_is_guessed(archive, size, name):
    unit = read_molecules(archive(one_molecule(unit=size))).energy_unit()
    assert (unit.name, unit.is_guess) == (name, True)


def test_coll_is_in_ev_where_its_energies_are_those_of_atomization(archive):
    unit = read_molecules(archive(many_molecules())).energy_unit()
    assert (unit.name, unit.is_guess) == ("eV", True)
    assert "-3.10 eV an atom" in unit.reason


@pytest.mark.parametrize(
    "arrays",
    [
        one_molecule(E=np.zeros(4)),
        many_molecules(E=np.array([-0.2, -0.1, -0.2])),
        many_molecules(E=np.ones(3)),
    ],
)
def test_a_unit_that_nothing_tells_is_asked_for(archive, arrays):
    with pytest.raises(RequestError, match=r"x.npz does not say the unit .* --units kcal/mol"):
        read_molecules(archive(arrays)).energy_unit()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (one_molecule(E=np.zeros(3)), r"E has shape \(3,\) where the other arrays need \(4,\)"),
        (one_molecule(F=np.zeros((4, 2, 3))), r"F has shape"),
        (one_molecule(z=np.array([8, 1])), "z has shape"),
        (one_molecule(z=np.array([8, 1, 1.5])), "z should be whole numbers"),
        (one_molecule(r_unit="bohr"), "positions in 'bohr'"),
        (one_molecule(E=np.array(["a"] * 4)), "E holds <U1 values"),
        (many_molecules(N=np.array([3, 2, 4])), "Z has shape"),
        (many_molecules(N=np.array([3, -1, 6])), "N should be"),
        (many_molecules(id=np.array(["a", "b", "c"])), "id should be whole numbers"),
        ({"a": np.zeros(3)}, "an archive of molecules holds N, Z, R, E, F or z, R, E, F"),
        ({"z": np.array([object()]), "R": np.zeros((1, 1, 3))}, "cannot be read as an npz archive"),
    ],
)
def test_what_does_not_fit_is_named(archive, arrays, message):
    with pytest.raises(DataError, match=message) as error:
        read_molecules(archive(arrays))
    assert "x.npz" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(40), b"\x80\x04K\x01.", b"text"])
def test_a_hostile_archive_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.npz"):
        read_molecules(path)


def test_a_cut_off_archive_is_refused(archive):
    path = archive(one_molecule(n=500))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cannot be read as an npz archive"):
        read_molecules(path)


def test_real_ethanol_is_in_kcal_per_mol(shared):
    path = shared / "data/md17/ethanol_ccsd_t_dev.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    molecules = read_molecules(path)
    assert molecules.n_frames == 800
    assert molecules.energy_unit().name == "kcal/mol"
