"""What every variant must respect: symmetries of space, of the lattice and of naming, and forces that fit the energy.

No neighbour list is truncated here; the released rule for truncated lists depends on the numbering of the atoms.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ocpgem.graph.topology import GraphSpec
from ocpgem.models.potential import Potential
from tests.structures import energy_and_forces, random_slabs, small_potential, topology_of

VARIANTS = ["gemnet_T", "gemnet_dT"]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def agree(a: torch.Tensor, b: torch.Tensor) -> None:
    tolerance = TOLERANCE[a.dtype] * float(b.abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def orthogonal_matrix(determinant: int, dtype: torch.dtype) -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    if torch.linalg.det(q) * determinant < 0:
        q[:, 0] *= -1
    return q.to(dtype)


@each_variant
@each_dtype
@pytest.mark.parametrize("determinant", [1, -1], ids=["rotation", "reflection"])
def test_energy_is_unchanged_and_forces_turn_with_the_structure(
    variant: str, dtype: torch.dtype, determinant: int
) -> None:
    potential, batch = small_potential(variant, dtype), random_slabs(dtype=dtype)
    energy, forces = energy_and_forces(potential, batch)
    turn = orthogonal_matrix(determinant, dtype)
    batch.pos, batch.cell = batch.pos @ turn, batch.cell @ turn
    turned_energy, turned_forces = energy_and_forces(potential, batch)
    agree(turned_energy, energy)
    agree(turned_forces, forces @ turn)


@each_variant
@each_dtype
def test_translation_changes_nothing(variant: str, dtype: torch.dtype) -> None:
    potential, batch = small_potential(variant, dtype), random_slabs(dtype=dtype)
    before = energy_and_forces(potential, batch)
    batch.pos = batch.pos + torch.tensor([0.3, -1.1, 0.7], dtype=dtype)
    for a, b in zip(energy_and_forces(potential, batch), before, strict=True):
        agree(a, b)


@each_variant
@each_dtype
def test_moving_an_atom_by_lattice_vectors_changes_nothing(variant: str, dtype: torch.dtype) -> None:
    potential, batch = small_potential(variant, dtype), random_slabs(dtype=dtype)
    before = energy_and_forces(potential, batch)
    batch.pos = batch.pos.clone()
    batch.pos[3] += 2 * batch.cell[0, 0] - batch.cell[0, 2]
    for a, b in zip(energy_and_forces(potential, batch), before, strict=True):
        agree(a, b)


@each_variant
def test_the_choice_of_lattice_vectors_changes_nothing(variant: str) -> None:
    potential, batch = small_potential(variant), random_slabs()
    before = energy_and_forces(potential, batch)
    batch.cell = batch.cell.clone()
    batch.cell[:, 1] += 2 * batch.cell[:, 0]
    for a, b in zip(energy_and_forces(potential, batch), before, strict=True):
        agree(a, b)


@each_variant
def test_renumbering_atoms_renumbers_forces(variant: str) -> None:
    potential, batch = small_potential(variant), random_slabs((9,))
    energy, forces = energy_and_forces(potential, batch)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    batch.pos, batch.atomic_numbers = batch.pos[order], batch.atomic_numbers[order]
    new_energy, new_forces = energy_and_forces(potential, batch)
    agree(new_energy, energy)
    agree(new_forces, forces[order])


@each_variant
@each_dtype
def test_a_batch_gives_what_its_systems_give_alone(variant: str, dtype: torch.dtype) -> None:
    potential, batch = small_potential(variant, dtype), random_slabs((9, 5), dtype)
    energy, forces = energy_and_forces(potential, batch)
    first = 0
    for index, count in enumerate((9, 5)):
        one = random_slabs((9, 5), dtype)
        atoms = slice(first, first + count)
        one.pos, one.atomic_numbers = one.pos[atoms], one.atomic_numbers[atoms]
        one.cell, one.pbc, one.natoms = one.cell[[index]], one.pbc[[index]], one.natoms[[index]]
        alone_energy, alone_forces = energy_and_forces(potential, one)
        agree(alone_energy, energy[[index]])
        agree(alone_forces, forces[atoms])
        first += count


@each_variant
def test_a_supercell_has_twice_the_energy_and_the_same_forces(variant: str) -> None:
    potential, batch = small_potential(variant), random_slabs((6,))
    potential.normalization = potential.normalization.model_copy(update={"energy_mean": 0.0})
    energy, forces = energy_and_forces(potential, batch)
    batch.pos = torch.cat([batch.pos, batch.pos + batch.cell[0, 0]])
    batch.atomic_numbers = batch.atomic_numbers.repeat(2)
    batch.cell = batch.cell.clone()
    batch.cell[0, 0] *= 2
    batch.natoms = batch.natoms * 2
    doubled_energy, doubled_forces = energy_and_forces(potential, batch)
    agree(doubled_energy, 2 * energy)
    agree(doubled_forces, forces.repeat(2, 1))


def total_energy(potential: Potential, batch: object, pos: torch.Tensor) -> float:
    moved = random_slabs()
    moved.pos = pos
    with torch.no_grad():
        return float(potential(moved, topology_of(moved, potential.graph_spec)).energy.sum())


def test_gradient_forces_are_minus_the_finite_differences_of_the_energy() -> None:
    potential, batch = small_potential("gemnet_T"), random_slabs()
    _, forces = energy_and_forces(potential, batch)
    step = 1e-5
    for atom, axis in ((0, 0), (4, 1), (8, 2), (10, 0)):
        ahead, behind = batch.pos.clone(), batch.pos.clone()
        ahead[atom, axis] += step
        behind[atom, axis] -= step
        slope = (total_energy(potential, batch, ahead) - total_energy(potential, batch, behind)) / (2 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, rel=1e-5, abs=1e-7)


def test_gradient_forces_of_a_system_add_up_to_zero() -> None:
    _, forces = energy_and_forces(small_potential("gemnet_T"), random_slabs((9,)))
    assert forces.sum(0).abs().max() < 1e-12 * forces.abs().sum()


@each_variant
def test_the_energy_is_continuous_where_an_edge_enters_the_cutoff(variant: str) -> None:
    potential = small_potential(variant)
    energies = []
    for distance in (5.0 - 1e-6, 5.0 + 1e-6):
        batch = random_slabs((3,))
        batch.pbc = torch.zeros(1, 3, dtype=torch.bool)
        batch.pos = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [0, 0, distance]], dtype=torch.float64)
        batch.pos[2, 0] = 0.0
        energies.append(energy_and_forces(potential, batch)[0])
    agree(energies[0], energies[1])


@each_variant
def test_prediction_needs_no_caller_that_records_gradients(variant: str) -> None:
    potential, batch = small_potential(variant), random_slabs()
    recorded = energy_and_forces(potential, batch)
    with torch.no_grad():
        silent = potential(batch, topology_of(batch, potential.graph_spec))
    assert not silent.energy.requires_grad
    assert not silent.forces.requires_grad
    torch.testing.assert_close(silent.energy, recorded[0])
    torch.testing.assert_close(silent.forces, recorded[1])


def test_an_energy_model_has_no_forces() -> None:
    potential = small_potential("gemnet_T", forces="none")
    batch = random_slabs()
    assert potential(batch, topology_of(batch, GraphSpec(5.0, 1000))).forces is None


class RefuseSynchronisation(TorchDispatchMode):
    """Raises at any operation that makes the host wait for a value on the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@each_variant
def test_forward_and_backward_never_wait_for_the_device(variant: str) -> None:
    potential, batch = small_potential(variant), random_slabs()
    topology = topology_of(batch, potential.graph_spec)
    with RefuseSynchronisation():
        predicted = potential.train()(batch, topology)
        (predicted.energy.sum() + predicted.forces.square().sum()).backward()


def test_the_inspection_notices_a_wait() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), RefuseSynchronisation():
        torch.ones(1).item()
