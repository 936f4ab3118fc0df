"""A system without edges: GemNet-OC has an energy for it, alone and beside others; the other variants refuse it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms

from ocpgem.data.cost import fit_edge_cost
from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.edge_record import decode_edges, encode_edges
from ocpgem.data.system import system_from_atoms
from ocpgem.errors import DataError
from ocpgem.evaluate.calculator import Calculator
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.system_edges import system_edges
from tests.structures import CASES, case_config, case_potential, random_potential, random_slabs, topology_of

OC = [case for case in CASES if case.startswith("gemnet_OC")]
OTHERS = [case for case in CASES if not case.startswith("gemnet_OC")]
pytestmark = pytest.mark.filterwarnings("ignore:a system of .* has no edges")


def lone_atoms(count: int) -> SimpleNamespace:
    """Systems of one atom each in a wide cell."""
    return SimpleNamespace(
        pos=torch.zeros(count, 3, dtype=torch.float64),
        cell=30 * torch.eye(3, dtype=torch.float64).expand(count, 3, 3),
        pbc=torch.ones(count, 3, dtype=torch.bool),
        atomic_numbers=torch.full((count,), 8),
        natoms=torch.ones(count, dtype=torch.int64),
        tags=torch.full((count,), 2),
    )


def beside(one: SimpleNamespace, other: SimpleNamespace) -> SimpleNamespace:
    """The systems of both."""
    return SimpleNamespace(**{key: torch.cat([value, vars(other)[key]]) for key, value in vars(one).items()})


@pytest.mark.parametrize("case", OC)
def test_it_has_the_same_energy_alone_beside_others_and_in_a_filled_batch(case: str) -> None:
    potential, slab = case_potential(case), random_slabs((9,))
    found = []
    for batch in (slab, lone_atoms(1), lone_atoms(3), beside(slab, lone_atoms(1))):
        topology = topology_of(batch, potential.graph_spec)
        filled = Buckets().pad(topology)
        assert filled.padding is not None
        plain = potential(batch, topology)
        found.append(plain)
        again = potential(batch, filled)
        torch.testing.assert_close(again.energy, plain.energy, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(again.forces, plain.forces, rtol=1e-10, atol=1e-10)
    of_slab, of_one, of_three, of_both = found
    assert math.isfinite(float(of_one.energy.detach()))
    assert of_one.energy.item() != potential.normalization.energy_mean
    torch.testing.assert_close(of_three.energy, of_one.energy.expand(3), rtol=1e-10, atol=0)
    torch.testing.assert_close(of_both.energy, torch.cat([of_slab.energy, of_one.energy]), rtol=1e-10, atol=0)
    torch.testing.assert_close(of_both.forces[:9], of_slab.forces, rtol=1e-8, atol=1e-10)
    assert of_three.forces.abs().sum() == of_both.forces[9:].abs().sum() == 0


@pytest.mark.parametrize("case", ["gemnet_OC", "gemnet_OC gradient"])
def test_a_batch_of_none_but_such_systems_gives_every_weight_a_finite_gradient(case: str) -> None:
    potential = random_potential(case_config(case)).train()
    batch = lone_atoms(2)
    predicted = potential(batch, topology_of(batch, potential.graph_spec))
    (predicted.energy.square().sum() + predicted.forces.square().sum()).backward()
    assert all(
        weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in potential.parameters()
    )


@pytest.mark.parametrize("truncation", ["released", "symmetric"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_variants_refuse_it(case: str, truncation: str) -> None:
    spec = case_config(case, neighbors={"truncation": truncation}).graph_spec
    with pytest.raises(DataError, match=r"system 1 of the batch: no two of its 1 atoms"):
        topology_of(beside(random_slabs((9,)), lone_atoms(1)), spec)


@pytest.mark.filterwarnings("default:a system of .* has no edges")
@pytest.mark.parametrize("truncation", ["released", "symmetric"])
def test_a_warning_says_what_happens(truncation: str) -> None:
    spec = case_config("gemnet_OC", neighbors={"truncation": truncation}).graph_spec
    with pytest.warns(UserWarning, match=r"a system of 1 atoms has no edges .* direct forces of 0"):
        topology = topology_of(lone_atoms(1), spec)
    assert topology.main.n_edges == 0


def test_its_edges_can_be_stored_and_counted() -> None:
    spec = case_config("gemnet_OC").graph_spec
    atom = system_from_atoms(Atoms("O", cell=[30] * 3, pbc=True, tags=[2]), source="here")
    edges = system_edges(atom.pos, atom.cell, atom.pbc, spec, atom.tags)
    stored = decode_edges(encode_edges(edges, atom), atom, "here")
    for name in ("main", "atom_edge", "quadruplet", "atom_atom"):
        assert len(getattr(stored, name)) == len(getattr(edges, name)) == 0
    assert fit_edge_cost(InMemoryDataset([atom]), spec).at_most(InMemoryDataset([atom]).sizes).tolist() == [1]


def test_the_calculator_gives_it_an_energy_and_no_forces() -> None:
    atoms = Atoms("O", cell=[30] * 3, pbc=True, tags=[2])
    atoms.calc = Calculator(case_potential("gemnet_OC"))
    assert math.isfinite(atoms.get_potential_energy())
    assert not np.any(atoms.get_forces())
