"""Element energies: added once per atom, no matter how large, and part of the model file."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ocpgem.checkpoint import load_potential, save_potential
from ocpgem.errors import RequestError
from ocpgem.models.potential import Normalization
from tests.structures import energy_and_forces, random_slabs, small_potential, topology_of

ENERGIES = {number: -0.37 * number for number in range(1, 80)}


@pytest.mark.parametrize("variant", ["gemnet_T", "gemnet_dT"])
def test_each_atom_adds_the_energy_of_its_element_and_forces_stay(variant: str) -> None:
    slabs = random_slabs()
    potential = small_potential(variant)
    plain_energy, plain_forces = energy_and_forces(potential, slabs)
    potential.normalization = potential.normalization.model_copy(update={"element_energies": ENERGIES})
    energy, forces = energy_and_forces(potential, slabs)
    expected = [
        sum(ENERGIES[number] for number in numbers.tolist())
        for numbers in slabs.atomic_numbers.split(slabs.natoms.tolist())
    ]
    torch.testing.assert_close(energy - plain_energy, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(forces, plain_forces)


def test_an_element_without_an_energy_adds_nothing_and_none_at_all_change_nothing() -> None:
    slabs, potential = random_slabs(), small_potential("gemnet_dT")
    plain, _ = energy_and_forces(potential, slabs)
    for energies in ({118: 1e6}, {}):
        potential.normalization = potential.normalization.model_copy(update={"element_energies": energies})
        assert torch.equal(energy_and_forces(potential, slabs)[0], plain)


def test_large_energies_lose_no_more_than_the_rounding_of_the_sum() -> None:
    """Added in float32 one after the other, energies of -20,000 eV would lose hundredths of an eV."""
    slabs, potential = random_slabs(dtype=torch.float32), small_potential("gemnet_dT", torch.float32)
    topology = topology_of(slabs, potential.graph_spec)
    plain = potential(slabs, topology).energy
    energies = dict.fromkeys(range(1, 80), -20_000.1)
    potential.normalization = potential.normalization.model_copy(update={"element_energies": energies})
    energy = potential(slabs, topology).energy
    assert energy.dtype == torch.float64
    torch.testing.assert_close(energy, plain - 20_000.1 * slabs.natoms.double(), rtol=1e-14, atol=0)


def test_energies_differentiate_as_without_them() -> None:
    slabs, potential = random_slabs(), small_potential("gemnet_dT")

    def gradient() -> torch.Tensor:
        weight = potential.model.atom_embedding.weight
        energy = potential(slabs, topology_of(slabs, potential.graph_spec)).energy
        return torch.autograd.grad(energy.sum(), weight)[0]

    plain = gradient()
    potential.normalization = potential.normalization.model_copy(update={"element_energies": ENERGIES})
    assert torch.equal(gradient(), plain)


def test_they_travel_in_the_model_file_but_not_in_the_state_dict(tmp_path: Path) -> None:
    potential = small_potential("gemnet_dT", torch.float32)
    keys = list(potential.state_dict())
    potential.normalization = potential.normalization.model_copy(
        update={"element_energies": {1: -3.25, 8: 1 / 3}}
    )
    assert list(potential.state_dict()) == keys
    save_potential(potential, tmp_path / "model.pt")
    loaded = load_potential(tmp_path / "model.pt")
    assert loaded.normalization == potential.normalization
    slabs = random_slabs(dtype=torch.float32)
    slabs.atomic_numbers[:] = 8
    assert torch.equal(energy_and_forces(loaded, slabs)[0], energy_and_forces(potential, slabs)[0])


@pytest.mark.parametrize("energies", [{0: 1.0}, {119: 1.0}, {1: float("nan")}, {"iron": 1.0}])
def test_energies_that_mean_nothing_are_refused(energies: dict[object, float]) -> None:
    with pytest.raises(ValidationError):
        Normalization.model_validate({"element_energies": energies})


@pytest.mark.parametrize("variant", ["gemnet_T", "gemnet_dT"])
def test_energies_of_atoms_sum_to_the_energy(variant: str) -> None:
    slabs, potential = random_slabs(), small_potential(variant)
    potential.normalization = potential.normalization.model_copy(update={"element_energies": ENERGIES})
    topology = topology_of(slabs, potential.graph_spec)
    of_atoms = potential.atom_energies(slabs, topology)
    assert of_atoms.dtype == torch.float64
    assert of_atoms.std() > 0.01
    sums = torch.stack([part.sum() for part in of_atoms.split(slabs.natoms.tolist())])
    torch.testing.assert_close(sums, energy_and_forces(potential, slabs)[0])


def test_a_mean_over_atoms_has_no_energies_of_atoms() -> None:
    slabs, potential = random_slabs(), small_potential("gemnet_dT", extensive=False)
    with pytest.raises(RequestError, match="mean over atoms"):
        potential.atom_energies(slabs, topology_of(slabs, potential.graph_spec))


@pytest.mark.parametrize("variant", ["gemnet_T", "gemnet_dT", "gemnet_OC"])
def test_weights_may_be_given_as_plain_tensors(variant: str) -> None:
    """As torch.func.functional_call does, for weights that are computed from others."""
    potential = small_potential(variant)
    batch = random_slabs((5, 4))
    topology = topology_of(batch, potential.graph_spec)
    weights = {name: weight.detach().clone() for name, weight in potential.named_parameters()}
    found = torch.func.functional_call(potential, weights, (batch, topology))
    torch.testing.assert_close(found.energy, potential(batch, topology).energy)
