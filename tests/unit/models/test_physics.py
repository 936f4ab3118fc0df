"""What every variant must respect: symmetries of space, of the lattice and of naming, and forces that fit the energy.

No neighbour list is truncated here but where a test says so: the released rule for truncated lists depends on the
numbering of the atoms.
"""

import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocpgem.graph.topology import GraphSpec
from ocpgem.models.gemnet import basis
from ocpgem.models.potential import Potential
from tests.structures import (
    CASES,
    case_config,
    case_potential,
    energy_and_forces,
    molecule,
    random_potential,
    random_slabs,
    small_potential,
    topology_of,
)

GRADIENT = [case for case in CASES if case_config(case).forces == "gradient"]
COUPLED = [case for case in CASES if case_config(case).forces == "direct_coupled"]
WITH_QUADRUPLETS = [case for case in CASES if case_config(case).quadruplets is not None]
TAGGED = [case for case in WITH_QUADRUPLETS if case.startswith("gemnet_OC")]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
each_case = pytest.mark.parametrize("case", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def agree(a: Tensor, b: Tensor, scale: Tensor | None = None) -> None:
    tolerance = TOLERANCE[a.dtype] * float((b if scale is None else scale).abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# Symmetries

Forces = Callable[[Tensor], Tensor]
"""How the forces follow a change of the structure."""


def turn(batch: SimpleNamespace, determinant: int) -> Forces:
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    if torch.linalg.det(q) * determinant < 0:
        q[:, 0] *= -1
    q = q.to(batch.pos.dtype)
    batch.pos, batch.cell = batch.pos @ q, batch.cell @ q
    return lambda forces: forces @ q


def translate(batch: SimpleNamespace) -> Forces:
    batch.pos = batch.pos + torch.tensor([0.3, -1.1, 0.7], dtype=batch.pos.dtype)
    return lambda forces: forces


def move_an_atom_by_lattice_vectors(batch: SimpleNamespace) -> Forces:
    batch.pos[3] += 2 * batch.cell[0, 0] - batch.cell[0, 2]
    return lambda forces: forces


def choose_other_lattice_vectors(batch: SimpleNamespace) -> Forces:
    batch.cell[:, 1] += 2 * batch.cell[:, 0]
    batch.cell[:, 2] -= batch.cell[:, 1]
    return lambda forces: forces


def renumber_atoms(batch: SimpleNamespace) -> Forces:
    generator = torch.Generator().manual_seed(1)
    first = batch.natoms.cumsum(0) - batch.natoms
    order = torch.cat(
        [
            start + torch.randperm(count, generator=generator)
            for start, count in zip(first.tolist(), batch.natoms.tolist(), strict=True)
        ]
    )
    for field in ("pos", "atomic_numbers", "tags"):
        setattr(batch, field, getattr(batch, field)[order])
    return lambda forces: forces[order]


CHANGES: dict[str, Callable[[SimpleNamespace], Forces]] = {
    "rotation": lambda batch: turn(batch, 1),
    "reflection": lambda batch: turn(batch, -1),
    "translation": translate,
    "lattice shift": move_an_atom_by_lattice_vectors,
    "lattice basis": choose_other_lattice_vectors,
    "numbering": renumber_atoms,
}


@each_case
@each_dtype
@pytest.mark.parametrize("change", CHANGES)
def test_energy_is_unchanged_and_forces_follow(case: str, dtype: torch.dtype, change: str) -> None:
    potential, batch = case_potential(case, dtype), random_slabs(dtype=dtype)
    energy, forces = energy_and_forces(potential, batch)
    follow = CHANGES[change](batch)
    new_energy, new_forces = energy_and_forces(potential, batch)
    agree(new_energy, energy)
    agree(new_forces, follow(forces))


def alone(batch: SimpleNamespace, index: int) -> SimpleNamespace:
    """One system of a batch."""
    first = int(batch.natoms[:index].sum())
    atoms = slice(first, first + int(batch.natoms[index]))
    one = SimpleNamespace(**{field: getattr(batch, field)[[index]] for field in ("cell", "pbc", "natoms")})
    for field in ("pos", "atomic_numbers", "tags"):
        setattr(one, field, getattr(batch, field)[atoms])
    return one


@each_case
@each_dtype
def test_a_batch_gives_what_its_systems_give_alone(case: str, dtype: torch.dtype) -> None:
    potential, batch = case_potential(case, dtype), random_slabs((9, 5), dtype)
    batch.tags[9:] = 0  # where tags matter, the second system has no quadruplets
    energy, forces = energy_and_forces(potential, batch)
    for index, atoms in enumerate((slice(0, 9), slice(9, 14))):
        alone_energy, alone_forces = energy_and_forces(potential, alone(batch, index))
        agree(alone_energy, energy[[index]], scale=energy)
        agree(alone_forces, forces[atoms], scale=forces)


def doubled(batch: SimpleNamespace, axis: int) -> SimpleNamespace:
    """The supercell of one system, twice as large along one axis."""
    cell = batch.cell.clone()
    cell[0, axis] *= 2
    return SimpleNamespace(
        pos=torch.cat([batch.pos, batch.pos + batch.cell[0, axis]]),
        cell=cell,
        pbc=batch.pbc,
        atomic_numbers=batch.atomic_numbers.repeat(2),
        natoms=batch.natoms * 2,
        tags=batch.tags.repeat(2),
    )


@each_case
@each_dtype
def test_a_supercell_has_twice_the_energy_and_the_same_forces(case: str, dtype: torch.dtype) -> None:
    potential, batch = case_potential(case, dtype), random_slabs((6,), dtype)
    mean = potential.normalization.energy_mean
    energy, forces = energy_and_forces(potential, batch)
    doubled_energy, doubled_forces = energy_and_forces(potential, doubled(batch, 0))
    agree(doubled_energy - mean, 2 * (energy - mean))
    agree(doubled_forces, forces.repeat(2, 1))


LIMITED: dict[str, dict[str, Any]] = {
    "gemnet_T": {"neighbors": {"cutoff": 5.0, "max_neighbors": 4}},
    "gemnet_Q": {"neighbors": {"max_neighbors": 4}, "quadruplets": {"max_neighbors": 3}},
    "gemnet_OC": {
        "neighbors": {"max_neighbors": 4},
        "quadruplets": {"max_neighbors": 3},
        "atom_edge": {"max_neighbors": 4},
        "atom_atom": {"max_neighbors": 7},
    },
}
"""Lists that are cut short."""


def truncated(case: str, truncation: str) -> Potential:
    changes = {section: dict(values) for section, values in LIMITED[case].items()}
    changes["neighbors"]["truncation"] = truncation
    return random_potential(case_config(case, **changes))


@pytest.mark.parametrize("case", LIMITED)
def test_symmetric_truncation_keeps_numbering_and_supercell_without_effect(case: str) -> None:
    potential, batch = truncated(case, "symmetric"), random_slabs((9,))
    complete, _ = energy_and_forces(case_potential(case), batch)
    energy, forces = energy_and_forces(potential, batch)
    assert abs(energy - complete) > 1e-6  # something is cut
    mean = potential.normalization.energy_mean
    doubled_energy, doubled_forces = energy_and_forces(potential, doubled(batch, 2))
    agree(doubled_energy - mean, 2 * (energy - mean))
    agree(doubled_forces, forces.repeat(2, 1))
    follow = renumber_atoms(batch)
    new_energy, new_forces = energy_and_forces(potential, batch)
    agree(new_energy, energy)
    agree(new_forces, follow(forces))


@pytest.mark.parametrize("case", LIMITED)
def test_released_truncation_lets_numbering_and_supercell_change_the_energy(case: str) -> None:
    """A property of the released models (gemnet.md 9.6): of an edge that one end drops, one numbering survives."""
    potential, batch = truncated(case, "released"), random_slabs((9,))
    mean = potential.normalization.energy_mean
    energy, _ = energy_and_forces(potential, batch)
    doubled_energy, _ = energy_and_forces(potential, doubled(batch, 2))
    renumber_atoms(batch)
    new_energy, _ = energy_and_forces(potential, batch)
    assert abs(doubled_energy - mean - 2 * (energy - mean)) > 1e-6 * abs(energy)
    assert abs(new_energy - energy) > 1e-6 * abs(energy)


# Forces


@pytest.mark.parametrize("case", GRADIENT)
def test_gradient_forces_are_minus_the_finite_differences_of_the_energy(case: str) -> None:
    potential, batch = case_potential(case), random_slabs()
    _, forces = energy_and_forces(potential, batch)
    # So small that no edge crosses a cutoff and no quadruplet of the random atoms a plane, where energies have a kink.
    pos, step = batch.pos, 1e-6
    topology = topology_of(batch, potential.graph_spec)

    def energy_at(moved: Tensor) -> float:
        batch.pos = moved
        with torch.no_grad():
            return float(potential(batch, topology).energy.sum())

    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        way = torch.randn(pos.shape, dtype=pos.dtype, generator=generator)
        slope = (energy_at(pos + step * way) - energy_at(pos - step * way)) / (2 * step)
        assert float((forces * way).sum()) == pytest.approx(-slope, rel=1e-6, abs=1e-7)


@each_case
def test_float32_agrees_with_float64(case: str) -> None:
    in_double = energy_and_forces(case_potential(case), random_slabs())
    in_single = energy_and_forces(case_potential(case, torch.float32), random_slabs(dtype=torch.float32))
    for single, double in zip(in_single, in_double, strict=True):
        agree(single, double.float())


@pytest.mark.parametrize("case", GRADIENT + COUPLED)
@each_dtype
def test_forces_of_a_system_add_up_to_zero_where_they_must(case: str, dtype: torch.dtype) -> None:
    _, forces = energy_and_forces(case_potential(case, dtype), random_slabs((9,), dtype))
    assert forces.sum(0).abs().max() < TOLERANCE[dtype] * forces.abs().max()


@pytest.mark.parametrize("case", ["gemnet_dT", "gemnet_dQ", "gemnet_XL", "gemnet_OC", "gemnet_OC_large"])
def test_direct_forces_of_a_system_do_not_add_up_to_zero(case: str) -> None:
    """A property of the released models: the two directions of an edge have forces of their own."""
    _, forces = energy_and_forces(case_potential(case), random_slabs((9,)))
    assert forces.sum(0).abs().max() > 1e-3 * forces.abs().max()


@pytest.mark.parametrize("case", COUPLED)
def test_coupled_forces_of_every_pair_are_opposite(case: str) -> None:
    """Three atoms in a row, where only neighbours meet: the middle one takes the sum of what the others get."""
    potential = case_potential(case)
    cutoff = potential.config.neighbors.cutoff
    batch = molecule([[0.0, 0.0, 0.0], [0.6 * cutoff, 0.3, 0.0], [1.2 * cutoff, 0.0, 0.5]])
    topology = topology_of(batch, potential.graph_spec)
    assert topology.main.n_edges == 4
    _, forces = energy_and_forces(potential, batch)
    for end in (0, 2):
        bond = batch.pos[end] - batch.pos[1]
        assert torch.linalg.cross(forces[end], bond).abs().max() < 1e-12
        assert forces[end].abs().max() > 1e-6
    torch.testing.assert_close(forces[1], -forces[0] - forces[2], rtol=0, atol=1e-14)


@each_case
def test_prediction_needs_no_caller_that_records_gradients(case: str) -> None:
    potential, batch = case_potential(case), random_slabs()
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


# Cutoffs

CUTOFFS = [
    (case, graph)
    for case in CASES
    for graph in ("neighbors", "quadruplets", "atom_edge", "atom_atom")
    if getattr(case_config(case), graph) is not None
]
EDGES_OF = {
    "neighbors": "main",
    "quadruplets": "quadruplet",
    "atom_edge": "atom_edge",
    "atom_atom": "atom_atom",
}
STEP = 1e-4


def two_pairs(distance: float) -> SimpleNamespace:
    """Atoms c - a ... b - d, where a and b are that far apart (A), and c and d close to a and b."""
    return molecule(
        [[0.0, 0, 0], [0, 0, distance], [1.2, 0.3, -0.9], [-0.5, 1.1, distance + 0.8], [-1.0, 0.9, -1.1]]
    )


def jump_and_kink(case: str, graph: str) -> tuple[float, float]:
    """How much the energy jumps (eV) and its slope changes (eV/A) where a and b leave each other's list of a graph."""
    potential = case_potential(case)
    cutoff = getattr(potential.config, graph).cutoff
    energies, n_edges = [], []
    for steps in (-3, -1, 1, 3):
        batch = two_pairs(cutoff + steps * STEP)
        topology = topology_of(batch, potential.graph_spec)
        n_edges.append(getattr(topology, EDGES_OF[graph]).n_edges)
        with torch.no_grad():
            energies.append(float(potential(batch, topology).energy))
    assert n_edges[1] == n_edges[2] + 2
    before, across, after = (b - a for a, b in itertools.pairwise(energies))
    return abs(across - (before + after) / 2), abs(after - before) / (2 * STEP)


@pytest.mark.parametrize(("case", "graph"), CUTOFFS)
def test_energy_is_smooth_where_a_pair_leaves_a_graph(case: str, graph: str) -> None:
    jump, kink = jump_and_kink(case, graph)
    assert jump < 1e-10
    assert kink < 1e-4


@pytest.mark.parametrize(("case", "graph"), [c for c in CUTOFFS if c[0] in ("gemnet_Q", "gemnet_OC")])
def test_the_inspection_notices_a_cutoff_without_envelope(
    case: str, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(basis, "polynomial_envelope", lambda u, exponent: torch.ones_like(u))
    jump, kink = jump_and_kink(case, graph)
    assert jump > 1e-5 or kink > 1e-3


# Unusual structures


@each_case
def test_every_isolated_atom_adds_the_same_energy_and_feels_no_force(case: str) -> None:
    potential, cluster = case_potential(case), random_slabs((9,))
    cluster.pbc = torch.zeros_like(cluster.pbc)
    energies = []
    for n_far in range(4):
        batch = copy.deepcopy(cluster)
        far = torch.tensor([[90.0, 0, 0], [0, -80.0, 0], [0, 0, 700.0]], dtype=torch.float64)[:n_far]
        batch.pos = torch.cat([batch.pos, far])
        batch.atomic_numbers = torch.cat([batch.atomic_numbers, torch.full((n_far,), 7)])
        batch.tags = torch.cat([batch.tags, torch.full((n_far,), 2)])
        batch.natoms = batch.natoms + n_far
        energy, forces = energy_and_forces(potential, batch)
        energies.append(energy)
        assert forces[9:].abs().sum() == 0
        assert torch.isfinite(forces).all()
    agree(energies[2] - energies[1], energies[1] - energies[0], scale=energies[0])
    agree(energies[3] - energies[2], energies[1] - energies[0], scale=energies[0])


@pytest.mark.parametrize("case", TAGGED)
def test_quadruplets_contribute_nothing_where_no_atom_is_tagged(case: str) -> None:
    potential, batch = case_potential(case), random_slabs()
    without = copy.deepcopy(potential)
    for block in without.model.blocks:
        for weight in block.quadruplets.parameters():
            weight.data.zero_()
    tagged_energy, _ = energy_and_forces(potential, batch)
    batch.tags = torch.zeros_like(batch.tags)
    energy, forces = energy_and_forces(potential, batch)
    without_energy, without_forces = energy_and_forces(without, batch)
    agree(energy, without_energy)
    agree(forces, without_forces)
    assert (tagged_energy - energy).abs().max() > 1e-6


@each_case
@each_dtype
def test_a_single_dimer_has_forces_along_its_bond_and_trains(case: str, dtype: torch.dtype) -> None:
    potential = random_potential(case_config(case), dtype)
    batch = molecule([[0.0, 0.0, 0.0], [0.7, -0.4, 0.9]], dtype)
    topology = topology_of(batch, potential.graph_spec)
    assert topology.main.n_edges == 2
    if topology.quadruplets is not None:
        assert len(topology.quadruplets.outer.main_edge) == 0
    predicted = potential(batch, topology)
    bond = batch.pos[1] - batch.pos[0]
    sideways = torch.linalg.cross(predicted.forces.detach(), bond.expand(2, 3))
    assert sideways.abs().max() <= 10 * TOLERANCE[dtype] * predicted.forces.abs().max()
    (predicted.energy.sum() + predicted.forces.square().sum()).backward()
    gradients = [weight.grad for weight in potential.parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


WATER = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
NITROGEN = [[12.0, 0.0, 0.5], [12.3, 0.2, 1.5]]
METHANOL = [[1.0, 12.0, 1.0], [1.1, 12.2, 2.4], [2.0, 12.1, 0.6], [0.4, 12.9, 0.6], [0.1, 11.4, 2.7]]


@each_case
def test_gas_molecules_in_a_box_add_up_whether_or_not_the_box_repeats(case: str) -> None:
    potential = case_potential(case)
    mean = potential.normalization.energy_mean
    gas = molecule(WATER + NITROGEN + METHANOL)
    energy, forces = energy_and_forces(potential, gas)
    boxed = copy.deepcopy(gas)
    boxed.cell = torch.eye(3, dtype=torch.float64)[None] * 24.0
    boxed.pbc = torch.ones(1, 3, dtype=torch.bool)
    boxed.pos = boxed.pos - 6.0  # out of the box on one side
    for a, b in zip(energy_and_forces(potential, boxed), (energy, forces), strict=True):
        agree(a, b)
    total = torch.zeros_like(energy)
    for first, last in ((0, 3), (3, 5), (5, 10)):
        part = copy.deepcopy(gas)
        part.pos, part.tags = gas.pos[first:last], gas.tags[first:last]
        part.atomic_numbers, part.natoms = gas.atomic_numbers[first:last], torch.tensor([last - first])
        part_energy, part_forces = energy_and_forces(potential, part)
        total += part_energy - mean
        agree(part_forces, forces[first:last], scale=forces)
    agree(total + mean, energy)


@each_case
def test_a_vector_without_periodicity_has_no_effect(case: str) -> None:
    potential, batch = case_potential(case), random_slabs((9,))
    complete, _ = energy_and_forces(potential, batch)
    batch.pbc = torch.tensor([[True, False, True]])
    energy, forces = energy_and_forces(potential, batch)
    assert abs(energy - complete) > 1e-6
    batch.cell[0, 1] = torch.tensor([0.1, 3.0, 0.7])
    batch.pos[4] += batch.cell[0, 0] - 2 * batch.cell[0, 2]
    new_energy, new_forces = energy_and_forces(potential, batch)
    agree(new_energy, energy)
    agree(new_forces, forces)


@pytest.mark.parametrize("case", WITH_QUADRUPLETS)
@each_dtype
def test_collinear_atoms_keep_rotations_without_effect_and_forces_finite(
    case: str, dtype: torch.dtype
) -> None:
    """The plane of three atoms in a row is undefined; a right angle stands for its angles (gemnet.md 9.5)."""
    potential = case_potential(case, dtype)
    row = [[0.0, 0.0, 1.25 * place] for place in range(4)]
    batch = molecule([*row, [1.1, 0.3, 0.4], [-0.6, 1.0, 3.1]], dtype)
    energy, forces = energy_and_forces(potential, batch)
    assert torch.isfinite(forces).all()
    follow = turn(batch, 1)
    new_energy, new_forces = energy_and_forces(potential, batch)
    agree(new_energy, energy)
    agree(new_forces, follow(forces))


def test_every_path_counts_in_the_structures_of_these_tests() -> None:
    """Else the tests above would say nothing about a path."""
    batch = random_slabs()
    for case in ("gemnet_Q", "gemnet_OC", "gemnet_OC spherical"):
        potential = case_potential(case)
        energy, _ = energy_and_forces(potential, batch)
        for path in ("triplets", "quadruplets", "atom_to_edge", "edge_to_atom", "atom_atom"):
            without = copy.deepcopy(potential)
            if getattr(without.model.blocks[0], path) is None:
                continue
            for block in without.model.blocks:
                for weight in getattr(block, path).parameters():
                    weight.data.zero_()
            assert (energy_and_forces(without, batch)[0] - energy).abs().max() > 1e-4, (case, path)
