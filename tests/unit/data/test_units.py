import numpy as np
import pytest

from ocpgem.data.units import UNITS, parse_unit, unit_in_ev, unit_of_total_energies
from ocpgem.errors import RequestError

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
ETHANOL_HARTREE = -154.72  # CCSD(T)


def test_units_have_their_size():
    assert unit_in_ev("eV") == 1
    assert unit_in_ev("hartree") == pytest.approx(27.211386, rel=1e-6)
    assert unit_in_ev("kcal/mol") == pytest.approx(0.04336411, rel=1e-6)
    assert unit_in_ev("kJ/mol") * 4.184 == pytest.approx(unit_in_ev("kcal/mol"))


@pytest.mark.parametrize(
    ("text", "unit"), [("kcal/mol", "kcal/mol"), ("EV", "eV"), ("Ha", "hartree"), ("kcal mol-1", "kcal/mol")]
)
def test_usual_spellings_are_read(text, unit):
    assert parse_unit(text, "here") == unit


def test_an_unknown_unit_is_a_wrong_request():
    with pytest.raises(RequestError, match=r"file.npz: 'furlong' is no unit .* known are eV, kcal/mol"):
        parse_unit("furlong", "file.npz")


@pytest.mark.parametrize("unit", UNITS)
def test_total_energies_tell_their_unit(unit):
    energy = ETHANOL_HARTREE * unit_in_ev("hartree") / unit_in_ev(unit)
    found = unit_of_total_energies([ETHANOL, ETHANOL], [energy, energy * 1.0001])
    assert found is not None
    assert (found.name, found.is_guess) == (unit, True)
    assert "1.006 times" in found.reason


@pytest.mark.parametrize("hydrogens", [1, 2])
def test_the_lightest_molecules_are_recognized(hydrogens):
    energy = {1: -0.4998, 2: -1.1745}[hydrogens]
    found = unit_of_total_energies([np.ones(hydrogens, dtype=int)], [energy])
    assert found is not None
    assert found.name == "hartree"


@pytest.mark.parametrize(
    ("species", "energy"),
    [
        (ETHANOL, -46.9),  # VASP, eV
        (ETHANOL, -33.4),  # energy of atomization, eV
        (ETHANOL, 0.3),
        (ETHANOL, float("nan")),
        (np.array([29, 29]), -3279.0),  # beyond the table
        (np.array([0, 1]), -0.5),
    ],
)
def test_other_energies_fit_no_unit(species, energy):
    assert unit_of_total_energies([species], [energy]) is None


def test_nothing_tells_nothing():
    assert unit_of_total_energies([], []) is None
