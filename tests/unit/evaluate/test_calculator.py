"""The ASE calculator: the numbers of `predict`, whatever the skin, the thread or the structure before."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

import ocpgem
from examples import molecular_dynamics, neb, relaxation
from ocpgem.checkpoint import save_potential
from ocpgem.errors import DataError, RequestError
from ocpgem.models.potential import Potential
from tests.structures import small_potential

LIMITED = {"cutoff": 4.5, "max_neighbors": 9}
VARIANTS = ("gemnet_T", "gemnet_dT")


@cache
def model(variant: str = "gemnet_T", dtype: torch.dtype = torch.float32) -> Potential:
    """Random weights and a nearest-K limit; made soft, so that dynamics are possible."""
    found = small_potential(variant, dtype, neighbors=LIMITED)
    found.normalization = found.normalization.model_copy(update={"energy_std": 0.3, "forces_std": 0.3})
    return found


def slab(seed: int = 0) -> Atoms:
    atoms = fcc111(("Cu", "Ni", "Pt")[seed % 3], (2, 2, 2), vacuum=6.0)
    add_adsorbate(atoms, "O", 1.4, "fcc")
    atoms.pbc = True
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.mark.parametrize("variant", VARIANTS)
def test_energy_and_forces_are_those_of_predict(variant: str) -> None:
    atoms = slab()
    atoms.calc = ocpgem.Calculator(model(variant))
    found = ocpgem.predict(model(variant), slab())
    assert atoms.get_potential_energy() == pytest.approx(found.energy, abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_array_equal(atoms.get_forces(), found.forces)


def test_energies_of_atoms_sum_to_the_energy_and_charges_are_none() -> None:
    atoms = slab()
    atoms.calc = ocpgem.Calculator(model())
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    assert atoms.get_potential_energies().std() > 1e-3
    assert atoms.get_charges().tolist() == [0.0] * len(atoms)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()
    mean = small_potential("gemnet_dT", extensive=False)
    with pytest.raises(PropertyNotImplementedError):
        ocpgem.Calculator(mean).get_property("energies", atoms)


def test_initial_charges_and_magnetic_moments_change_nothing() -> None:
    atoms = slab()
    atoms.calc = ocpgem.Calculator(model())
    energy = atoms.get_potential_energy()
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    assert atoms.calc.check_state(atoms) == []
    assert atoms.get_potential_energy() == energy


def test_new_tags_are_a_new_structure() -> None:
    atoms = slab()
    atoms.calc = ocpgem.Calculator(model())
    atoms.get_potential_energy()
    atoms.set_tags(2)
    assert atoms.calc.check_state(atoms) == ["tags"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_skin_gives_exactly_the_numbers_of_a_fresh_search(variant: str) -> None:
    """Also with a nearest-K limit, where other edges would be chosen if a neighbour were missed."""
    kept, fresh = ocpgem.Calculator(model(variant)), ocpgem.Calculator(model(variant), skin=0.0)
    atoms = slab()
    rng = np.random.default_rng(0)
    for _ in range(25):
        atoms.positions += rng.normal(0, 0.04, (len(atoms), 3))
        assert kept.get_potential_energy(atoms) == fresh.get_potential_energy(atoms)
        np.testing.assert_array_equal(kept.get_forces(atoms), fresh.get_forces(atoms))
    assert fresh.n_searches == 25
    assert 1 < kept.n_searches < 20


@pytest.mark.parametrize("shared", [True, False])
def test_threads_do_not_disturb_each_other(shared: bool) -> None:
    structures = [slab(seed) for seed in range(6)]
    expected = [ocpgem.predict(model(), atoms) for atoms in structures]
    one = ocpgem.Calculator(model())

    def work(number: int) -> None:
        atoms = structures[number]
        atoms.calc = one if shared else ocpgem.Calculator(model())
        start = atoms.positions.copy()
        for step in range(3):
            atoms.positions = start + 0.01 * step
            atoms.get_potential_energy()
            atoms.positions = start
            assert atoms.get_potential_energy() == pytest.approx(expected[number].energy, abs=1e-9)
            np.testing.assert_array_equal(atoms.get_forces(), expected[number].forces)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(6)))


def test_forces_are_the_slope_of_the_energy_in_float64() -> None:
    atoms = slab()
    atoms.calc = ocpgem.Calculator(model(), precision="float64")
    assert next(model().parameters()).dtype == torch.float32, "the model itself stays as it was"
    force, step = atoms.get_forces()[8, 2], 1e-4
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[8, 2] += sign * step
        moved.calc = atoms.calc
        energies.append(moved.get_potential_energy())
    assert force == pytest.approx((energies[1] - energies[0]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_a_copy_gives_the_same(how) -> None:
    atoms = slab()
    calculator = ocpgem.Calculator(model())
    energy = calculator.get_potential_energy(atoms)
    assert how(calculator).get_potential_energy(atoms) == energy


def test_what_the_model_cannot_take_is_a_sentence() -> None:
    calculator = ocpgem.Calculator(model())
    with pytest.raises(DataError, match="within"):
        calculator.get_potential_energy(Atoms("H2", [[0, 0, 0], [0, 0, 30]]))
    with pytest.raises(DataError, match="not finite"):
        calculator.get_potential_energy(Atoms("H2", [[0, 0, 0], [0, 0, float("nan")]]))
    with pytest.raises(RequestError, match="precision is 'half'"):
        ocpgem.Calculator(model(), precision="half")
    with pytest.raises(RequestError, match="skin"):
        ocpgem.Calculator(model(), skin=-1.0)


def test_a_checkpoint_loads_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_potential(model(), tmp_path / "model.pt")
    expected = ocpgem.predict(model(), slab()).energy
    for source in (tmp_path, str(tmp_path / "model.pt")):
        calculator = ocpgem.Calculator.from_checkpoint(source, device="cpu")
        assert calculator.get_potential_energy(slab()) == expected
    with pytest.raises(RequestError, match="does not exist"):
        ocpgem.Calculator.from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="did you mean GemNet-dT-S2EF-OC20-All"):
        ocpgem.Calculator.from_checkpoint("GemNet-dT-S2EF-OC20-Al")


def test_an_ensemble_tells_its_spread() -> None:
    other = small_potential("gemnet_T", torch.float32, neighbors=LIMITED, edge_dim=12)
    calculator = ocpgem.Calculator(ocpgem.evaluate.open_model.Combined([model(), other]))
    calculator.get_potential_energy(slab())
    assert calculator.results["energy_spread"] > 0
    assert calculator.results["forces_spread"].shape == (len(slab()),)


def test_gradient_forces_conserve_energy_and_the_error_falls_with_the_time_step() -> None:
    """The error of the velocity Verlet rule is of second order, which only exact gradients and a smooth energy show."""
    wobble = []
    for timestep, steps in ((2.0, 40), (1.0, 80)):
        atoms = slab()
        atoms.calc = ocpgem.Calculator(smooth_model())
        MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
        found = molecular_dynamics.run(atoms, steps, timestep)
        assert abs(found.drift) < 1.0
        wobble.append(found.wobble)
    assert 3.0 < wobble[0] / wobble[1] < 5.0
    assert atoms.calc.n_searches < 60


@cache
def smooth_model() -> Potential:
    """Without a neighbour limit, which would make the energy jump."""
    found = small_potential("gemnet_T", torch.float64, neighbors={"cutoff": 4.0, "max_neighbors": 0})
    found.normalization = found.normalization.model_copy(update={"energy_std": 0.3})
    return found


def test_relax_returns_the_structures_in_order_and_leaves_what_was_given() -> None:
    structures = [slab(seed) for seed in range(3)]
    for atoms in structures:
        atoms.set_constraint(FixAtoms(indices=[0, 1]))
        atoms.info["name"] = "mine"
    before = [atoms.positions.copy() for atoms in structures]
    results = ocpgem.relax(model(), structures, fmax=0.3, steps=10, trajectory=True)
    for atoms, start, result in zip(structures, before, results, strict=True):
        np.testing.assert_array_equal(atoms.positions, start)
        assert result.atoms.positions[:2].tobytes() == start[:2].tobytes()
        assert result.atoms.info["name"] == "mine"
        assert result.atoms.get_chemical_formula() == atoms.get_chemical_formula()
        assert result.atoms.get_potential_energy() == result.energy
        assert len(result.trajectory) == result.n_steps + 1
        free = np.linalg.norm(result.atoms.get_forces(), axis=1).max()
        assert free == pytest.approx(result.fmax)
        assert result.converged == (free < 0.3)


def test_relax_refuses_what_it_cannot_do() -> None:
    from ase.constraints import FixBondLength

    atoms = molecule("H2O")
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(RequestError, match="constraint FixBondLength"):
        ocpgem.relax(model(), [atoms])
    with pytest.raises(RequestError, match="optimizer is 'newton'"):
        ocpgem.relax(model(), slab(), optimizer="newton")


def test_the_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_potential(model(), tmp_path / "model.pt")
    path = str(tmp_path / "model.pt")
    relaxation.main([path, "--steps", "3"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    energies = neb.main([path, "--steps", "2", "--images", "2"])
    assert energies[0] == 0.0
    assert len(energies) == 4
    save_potential(smooth_model().float(), tmp_path / "smooth.pt")
    found = molecular_dynamics.main(
        [
            str(tmp_path / "smooth.pt"),
            "--steps",
            "20",
            "--traj",
            str(tmp_path / "md.traj"),
            "--precision",
            "float64",
        ]
    )
    assert found.temperature > 0
    assert (tmp_path / "md.traj").exists()
    smooth_model().double()
    assert "drift of the total energy" in capsys.readouterr().out
