"""The host never waits for the device in a forward or backward pass, by inspection of all operations and on a GPU."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocpgem import kernels
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.topology import Topology
from ocpgem.kernels import native
from ocpgem.models.gemnet.in_blocks import rows_as_on_gpu
from ocpgem.models.normalization import Normalization
from ocpgem.models.potential import Potential
from ocpgem.train.host_waits import HostWaits, count_host_waits
from ocpgem.train.loss import GlobalCounts, loss_share
from tests.structures import CASES, case_config, random_potential, random_slabs, topology_of
from tests.tiny_runs import tiny_config

OTHER_CHOICES: dict[str, dict[str, Any]] = {
    "gemnet_T": {"shared_embedding": True},
    "gemnet_dT": {"unseen_pairs": "damp", "shared_embedding": True},
    "gemnet_OC": {"shared_embedding": True},
}
"""What the forward pass may do besides."""
WEIGHTS = tiny_config().loss


@pytest.fixture(params=["torch", "native"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What computes: torch's kernels and all rows together, which is what a GPU does, or what a CPU does."""
    if request.param == "native" and native.library()[0] is None:
        pytest.skip(native.library()[1])
    monkeypatch.setattr(kernels, "BACKEND", request.param)
    with rows_as_on_gpu() if request.param == "torch" else nullcontext():
        yield request.param


def labelled_slabs() -> SimpleNamespace:
    batch = random_slabs(dtype=torch.float32)
    n_atoms = len(batch.pos)
    batch.energy, batch.forces = torch.zeros(len(batch.natoms), dtype=torch.float64), torch.ones(n_atoms, 3)
    batch.fixed, batch.hidden = torch.arange(n_atoms) % 3 == 0, torch.arange(n_atoms) % 4 == 0
    return batch


def with_element_energies(case: str, **changes: Any) -> Potential:
    potential = random_potential(case_config(case, **changes), torch.float32).train()
    potential.normalization = Normalization(element_energies={z: -0.1 * z for z in range(1, 100)})
    return potential


def step(potential: Potential, batch: Any, topology: Topology) -> Tensor:
    """Forward, loss and backward; where forces are gradients, two derivatives."""
    counts = GlobalCounts(topology.n_systems, topology.n_atoms)
    loss = loss_share(potential(batch, topology), batch, WEIGHTS, potential.normalization, counts)
    loss.backward()
    return loss


def waits_of_a_step(potential: Potential, filled: bool = False) -> dict[str, int]:
    """filled: the batch is filled up with ghosts."""
    batch = labelled_slabs()
    topology = topology_of(batch, potential.graph_spec)
    if filled:
        topology = Buckets().pad(topology)
        assert topology.padding is not None
    step(potential, batch, topology)  # tables that are made once, for each device, are there now
    potential.zero_grad()
    found = count_host_waits(lambda: step(potential, batch, topology))
    assert all(weight.grad is not None for weight in potential.parameters())
    return dict(found)


@pytest.mark.parametrize("filled", [False, True], ids=["as it is", "filled up"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_never_waits_for_the_device(case: str, filled: bool, path: str) -> None:
    assert waits_of_a_step(with_element_energies(case), filled) == {}


@pytest.mark.parametrize("case", OTHER_CHOICES)
@pytest.mark.parametrize("how", ["plain", "bf16", "activation_checkpointing"])
def test_other_ways_to_compute_it_do_not_wait_either(case: str, how: str, path: str) -> None:
    potential = with_element_energies(case, **OTHER_CHOICES[case])
    potential.train_in_bf16 = how == "bf16"
    potential.model.checkpoint_activations = how == "activation_checkpointing"
    assert waits_of_a_step(potential) == {}


def test_evaluation_does_not_wait_either(path: str) -> None:
    for case in ("gemnet_T", "gemnet_dT", "gemnet_OC"):
        potential, batch = with_element_energies(case).eval(), labelled_slabs()
        topology = topology_of(batch, potential.graph_spec)
        with torch.no_grad():
            potential(batch, topology)
            with HostWaits() as waits:
                potential(batch, topology)
                potential.atom_energies(batch, topology)
        assert not waits.found


@pytest.mark.gpu  # only CUDA tells of waits inside kernels and libraries
@pytest.mark.parametrize("case", CASES)
def test_cuda_sees_no_synchronisation_in_a_step(case: str) -> None:
    potential, batch = with_element_energies(case).cuda(), labelled_slabs()
    topology = topology_of(batch, potential.graph_spec).to("cuda")
    on_device = SimpleNamespace(**{name: value.cuda() for name, value in vars(batch).items()})
    step(potential, on_device, topology)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(potential, on_device, topology)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    gradients = [weight.grad for weight in potential.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


THREE = torch.tensor([2, 0, 1])
WAITS: dict[str, Callable[[], Any]] = {
    "_local_scalar_dense": THREE[0].item,
    "is_nonzero": lambda: bool(THREE[0]),
    "nonzero": THREE.nonzero,
    "index": lambda: THREE[THREE > 0],
    "index_put": lambda: THREE.clone().index_put_((THREE > 0,), torch.zeros_like(THREE[0])),
    "masked_select": lambda: THREE.masked_select(THREE > 0),
    "unique": THREE.unique,
    "bincount": THREE.bincount,
    "equal": lambda: torch.equal(THREE, THREE.clone()),
    "repeat_interleave": lambda: torch.repeat_interleave(THREE),
    "lift_fresh": lambda: THREE + torch.tensor([1, 2, 3]),
    "_to_copy": lambda: THREE.to("meta"),
    "copy_": lambda: torch.empty_like(THREE, device="meta").copy_(THREE),
    "in the backward pass": lambda: _Waits.apply(torch.ones(2, requires_grad=True)).sum().backward(),
}


class _Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * grad.sum().item()


@pytest.mark.parametrize("name", WAITS)
def test_every_kind_of_wait_is_counted(name: str) -> None:
    assert count_host_waits(WAITS[name]).total() >= 1


def test_what_does_not_wait_is_not_counted() -> None:
    def work() -> None:
        torch.repeat_interleave(THREE, output_size=3)
        THREE.float().double()
        THREE[THREE].index_select(0, THREE)
        torch.zeros(3).where(THREE > 0, 1.0)
        torch.empty_like(THREE, device="meta").copy_(THREE, non_blocking=True)

    assert count_host_waits(work).total() == 0


def test_a_wait_is_reported_with_its_place() -> None:
    potential, batch = random_potential(case_config("gemnet_dT")), random_slabs()
    topology = topology_of(batch, potential.graph_spec)
    head = potential.model.energy_head
    line = inspect.getsourcelines(type(potential.model)._call)[1]
    head.register_forward_hook(lambda module, args, result: result.sum().item() and None)
    (place,) = count_host_waits(lambda: potential(batch, topology))
    name, number = place.split(" at models/gemnet/model.py:")
    assert name == "aten._local_scalar_dense.default"
    assert line < int(number) < line + 12
