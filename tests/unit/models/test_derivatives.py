"""Derivatives of gradient forces that a training step does not ask for: they are right all the same."""

import pytest
import torch
from torch import Tensor

from ocpgem.models.gemnet.layers import Frugal
from ocpgem.models.potential import Potential
from tests.structures import CASES, case_config, case_potential, random_potential, random_slabs, topology_of

GRADIENT = [case for case in CASES if case_config(case).forces == "gradient"]
each_gradient_case = pytest.mark.parametrize("case", GRADIENT)


def predicted(potential: Potential) -> tuple[Tensor, Tensor]:
    """The sum of energies, and that of forces with weights."""
    batch = random_slabs()
    found = potential(batch, topology_of(batch, potential.graph_spec))
    weights = torch.randn(batch.pos.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return found.energy.sum(), (weights * found.forces).sum()


def of_parameters(value: Tensor, potential: Potential, create_graph: bool = False) -> list[Tensor]:
    found = torch.autograd.grad(
        value, list(potential.parameters()), retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    return [gradient for gradient in found if gradient is not None]


def agree(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * float(theirs.abs().max() + 1e-3))


@each_gradient_case
def test_a_gradient_of_some_weights_alone_does_not_change_a_later_one(case: str) -> None:
    potential = case_potential(case)
    energy, forces = predicted(potential)
    wanted = of_parameters(energy, potential)
    torch.autograd.grad(forces, list(potential.model.energy_head.parameters())[-1], retain_graph=True)
    agree(of_parameters(energy, potential), wanted)


@pytest.mark.parametrize("checkpointing", [False, True])
@each_gradient_case
def test_gradients_that_are_differentiable_are_those_that_are_not(case: str, checkpointing: bool) -> None:
    potential = random_potential(case_config(case)).train()
    potential.model.checkpoint_activations = checkpointing
    for which in ([0], [1], [0, 1]):
        found = []
        for create_graph in (True, False):
            values = predicted(potential)
            found.append(
                of_parameters(torch.stack([values[i] for i in which]).sum(), potential, create_graph)
            )
        agree(*found)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_a_gradient_penalty_is_that_of_autograd(case: str) -> None:
    found = []
    for as_autograd in (False, True):
        potential = random_potential(case_config(case))
        for part in potential.modules():
            if isinstance(part, Frugal):
                part.as_autograd = as_autograd
        penalty = [
            gradient.square().sum() for gradient in of_parameters(predicted(potential)[1], potential, True)
        ]
        found.append(of_parameters(torch.stack(penalty).sum(), potential))
    agree(*found)


@each_gradient_case
def test_the_hessian_by_the_callers_positions_is_that_of_finite_differences(case: str) -> None:
    potential, batch = case_potential(case), random_slabs((5,))
    topology = topology_of(batch, potential.graph_spec)
    way = torch.randn(batch.pos.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    start, step = batch.pos, 1e-5
    batch.pos = start.clone().requires_grad_(True)
    found = potential(batch, topology)
    (slope,) = torch.autograd.grad(found.energy.sum(), batch.pos, retain_graph=True)
    torch.testing.assert_close(slope, -found.forces.detach(), rtol=1e-10, atol=1e-12)
    (along_way,) = torch.autograd.grad((found.forces * way).sum(), batch.pos)  # the Hessian is symmetric
    ends = []
    for batch.pos in (start + step * way, start - step * way):
        ends.append(potential(batch, topology).forces.detach())
    wanted = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(along_way, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
