import numpy as np
import pytest

from ocpgem.data.screening import Limits, TagRule, Tally, edges_or_fault
from ocpgem.errors import RequestError


def test_a_good_system_is_kept(make_system):
    assert Limits().fault(make_system()) is None
    assert edges_or_fault(make_system())[1] is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"energy": None}, "no energy"),
        ({"forces": None}, "no forces"),
        ({"energy": float("nan")}, "energy that is not finite"),
        ({"forces": np.full((12, 3), np.inf, dtype="f4")}, "forces that is not finite"),
        ({"forces": np.zeros((11, 3), dtype="f4")}, "arrays whose shapes do not fit"),
        ({"cell": np.zeros((3, 3), dtype="f4")}, "a periodic axis without a cell vector"),
        ({"atomic_numbers": np.zeros(12, dtype=np.uint8)}, "an element outside 1 to 100"),
    ],
)
def test_each_fault_has_its_reason(make_system, fields, reason):
    fault = Limits().fault(make_system(**fields))
    assert fault is not None
    assert fault.startswith(reason)


@pytest.mark.parametrize(
    ("require", "fields", "kept"),
    [
        ("energy", {"forces": None}, True),
        ("energy", {"energy": None}, False),
        ("nothing", {"energy": None, "forces": None}, True),
    ],
)
def test_what_is_required_can_be_chosen(make_system, require, fields, kept):
    assert (Limits(require).fault(make_system(**fields)) is None) is kept


def test_the_force_limit_looks_at_free_atoms_and_norms(make_system):
    forces = np.zeros((12, 3), dtype="f4")
    forces[0] = 3
    fixed = np.zeros(12, dtype=bool)
    limits = Limits(max_force=5.0)
    assert limits.fault(make_system(forces=forces, fixed=fixed)) == "a force above 5 eV/A on a free atom"
    fixed[0] = True
    assert limits.fault(make_system(forces=forces, fixed=fixed)) is None


def test_the_energy_limit_is_per_atom(make_system):
    limits = Limits(max_energy_per_atom=10.0)
    assert limits.fault(make_system(energy=-119.0)) is None
    assert limits.fault(make_system(energy=-121.0)) == "an energy above 10 eV per atom"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_keeps_nothing_is_a_wrong_request(limit):
    with pytest.raises(RequestError, match=r"--max-force is .* above 0"):
        Limits(max_force=limit).check()


def test_atoms_out_of_reach_are_left_out(make_system):
    apart = make_system(2, pos=np.array([[0, 0, 0], [0, 0, 7]], dtype="f4"), pbc=np.zeros(3, dtype=bool))
    assert edges_or_fault(apart) == (0, "no two atoms within 6 A")
    far = make_system(2, pos=np.array([[0, 0, 0], [0, 0, 1e7]], dtype="f4"), pbc=np.zeros(3, dtype=bool))
    assert edges_or_fault(far)[1] == "positions or a cell in which no neighbours can be searched"


@pytest.mark.parametrize(
    ("rule", "tags"),
    [
        ("keep", [0, 1, 2, 0]),
        ("1", [1, 1, 1, 1]),
        ("slab", [0, 1, 2, 2]),
        ("slab:H", [0, 1, 1, 2]),
        ("slab:Cu,O", [0, 2, 2, 1]),
    ],
)
def test_tags_follow_the_rule(make_system, rule, tags):
    system = make_system(
        4,
        atomic_numbers=np.array([29, 29, 8, 1], dtype=np.uint8),
        fixed=np.array([True, False, False, False]),
        tags=np.array([0, 1, 2, 0], dtype=np.uint8),
    )
    TagRule.parse(rule).apply(system)
    assert system.tags.tolist() == tags
    assert system.tags.dtype == np.uint8


@pytest.mark.parametrize("rule", ["", "3", "slabs", "slab:", "slab:Xy", "slab:X", "slab:C,,H"])
def test_a_rule_that_is_none_is_a_wrong_request(rule):
    with pytest.raises(RequestError, match="--tags"):
        TagRule.parse(rule)


def test_a_tally_counts_and_keeps_the_first():
    tally = Tally()
    for place in ("a", "b"):
        tally.add("no forces", place)
    later = Tally()
    later.add("no forces", "c")
    later.add("no energy", "d")
    tally.merge(later.entries)
    assert tally.total == 4
    assert tally.lines() == ["  3: no forces (first: a)", "  1: no energy (first: d)"]
