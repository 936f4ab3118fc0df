"""Checks of the Triton kernels against torch, for `test_kernels.py`: prints {check: largest relative difference}.

    python -m tests.unit.models.kernels_in_interpreter [DEVICE]

On the CPU, TRITON_INTERPRET=1 has to be set, which Triton reads when it is imported: hence a process of its own.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ocpgem import kernels
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.topology import Topology
from ocpgem.kernels import angular_triton, silu_triton
from ocpgem.kernels.angular import accumulate, read
from ocpgem.models.gemnet.activation import silu_and_gradient, silu_sum, silu_tangents, silu_terms
from ocpgem.models.gemnet.config import GemNetConfig
from ocpgem.models.gemnet.densities import density, read_degrees
from ocpgem.train.host_waits import HostWaits
from tests.structures import case_config, random_potential, random_slabs, topology_of

Result = TypeVar("Result")
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cpu"
LAUNCHES: set[str] = set()
"""The kernels that were started."""


def notice(module: ModuleType, name: str) -> None:
    launch = getattr(module, name)

    def noticing(*arguments: object) -> object:
        LAUNCHES.add(name)
        return launch(*arguments)

    setattr(module, name, noticing)


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if not expected.count_nonzero():
        return float(found.abs().sum())
    return float((found - expected).abs().max() / expected.abs().max())


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, device=DEVICE).to(dtype)


def by_torch(call: Callable[[], Result]) -> Result:
    with kernels.torch_only():
        return call()


def sums(dtype: torch.dtype) -> dict[str, float]:
    """Odd sizes: more edges than a tile, more channels than a block, atoms and edges that do not exist."""
    found = {}
    for atoms, edges, readers, n, channels in (
        (2, 33, 5, 3, 67),
        (1, 3, 40, 7, 5),
        (0, 3, 3, 2, 4),
        (2, 0, 3, 2, 4),
    ):
        weights, x = random(atoms, edges, n * n + 2, dtype=dtype), random(atoms, edges, channels, dtype=dtype)
        reader = random(atoms, readers, n * n + 2, dtype=dtype)

        def both(weights: Tensor = weights, x: Tensor = x, reader: Tensor = reader, n: int = n) -> Tensor:
            return torch.stack(read_degrees(reader, density(weights, x), n), dim=2)

        found[f"{dtype} {atoms} atoms, {edges} edges"] = difference(both(), by_torch(both))
    return found


def derivatives() -> dict[str, float]:
    """First and second derivatives against differences of values; 0 if they agree, for gradcheck raises else."""
    y, x = random(1, 2, 6).requires_grad_(), random(1, 2, 2).requires_grad_()
    of_atom = random(1, 6, 2).requires_grad_()
    u, base = random(3).requires_grad_(), random(3).requires_grad_()

    def activation(u: Tensor, base: Tensor) -> Tensor:
        return silu_sum(u, 1.3, base, 0.7)

    def thirdly(u: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(silu_sum(u, 1.0).pow(2).sum(), u, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), u, create_graph=True)[0]

    functions = ((accumulate, (y, x)), (read, (y, of_atom)), (activation, (u, base)), (thirdly, (u,)))
    for function, inputs in functions:
        assert gradcheck(function, inputs)
        assert gradgradcheck(function, inputs)
    return {"derivatives": 0.0}


def activations() -> dict[str, float]:
    u, base = random(700, 3), random(700, 3)
    found = {}
    for of_u, of_base in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        p, q = u.to(of_u), base.to(of_base)
        found[f"activation of {of_u} in {of_base}"] = difference(
            silu_sum(p, 1.3, q, 0.7), 0.7 * (q + 1.3 * F.silu(p.to(of_base)))
        )
    transposed = u.t()
    found["activation, strided"] = difference(silu_sum(transposed, 2.0), 2 * F.silu(transposed))
    found["activation, empty"] = difference(silu_sum(u[:0], 2.0), 2 * F.silu(u[:0]))
    return found


def passes(dtype: torch.dtype) -> dict[str, float]:
    """What is computed of SiLU without autograd, several results in one pass, some where an argument was."""
    x, one, other = (3 * random(700, 3, dtype=dtype) for _ in range(3))
    found = {}

    def all_terms() -> list[Tensor]:
        made = [silu_terms(x, (one, other), order=order, alpha=1.3) for order in range(4)]
        made += [silu_terms(x, (one,), other, order=order, scale=0.7, out=one.clone()) for order in range(4)]
        return [*made, silu_terms(x, (overwritten := one.clone(),), order=1, out=overwritten)]

    calls: dict[str, Callable[[], Sequence[Tensor]]] = {
        "terms": all_terms,
        "gradient": lambda: silu_and_gradient(x, one),
        "gradient and base": lambda: silu_and_gradient(x, one, other),
        "tangents": lambda: silu_tangents(x, one.clone(), other),
        "tangents, strided": lambda: silu_tangents(x.t(), one.t().clone(), other.t()),
        "tangents, empty": lambda: silu_tangents(x[:0], one[:0], other[:0]),
    }
    for name, call in calls.items():
        pairs = zip(call(), by_torch(call), strict=True)
        found[f"{name}, {dtype}"] = max(difference(ours, theirs) for ours, theirs in pairs)
    return found


def model(case: str, wanted: set[str]) -> dict[str, float]:
    """Energies, forces and the gradients of all weights; gradient forces need second derivatives for those.

    Also of a batch that is filled up. Nothing in them may let the host wait for a GPU.
    """
    potential = random_potential(_smallest(case)).to(DEVICE).train()
    batch = random_slabs((4,))
    topology = topology_of(batch, potential.graph_spec)
    for name, value in vars(batch).items():
        setattr(batch, name, value.to(DEVICE))

    def outputs(topology: Topology) -> Tensor:
        potential.zero_grad()
        predicted = potential(batch, topology)
        (predicted.energy.sum() + predicted.forces.pow(2).sum()).backward()
        of_weights = [p.grad.flatten() for p in potential.parameters() if p.grad is not None]
        return torch.cat([predicted.energy.detach(), predicted.forces.detach().flatten(), *of_weights])

    found = {}
    for what, on_host in ((case, topology), (f"{case}, filled up", Buckets().pad(topology))):
        each = on_host.to(torch.device(DEVICE))
        expected = by_torch(partial(outputs, each))  # now there are the tables made once for each device
        LAUNCHES.clear()
        with HostWaits() as waits:
            ours = outputs(each)
        found[what] = difference(ours, expected)
        assert wanted == LAUNCHES
        assert not waits.found, waits.found
    return found


def _smallest(case: str) -> GemNetConfig:
    return case_config(case, n_blocks=1, n_spherical=3)


def main() -> None:
    torch.manual_seed(0)
    for name in ("accumulate", "read", "weigh"):
        notice(angular_triton, name)
    for name in ("silu", "silu_and_gradient", "silu_tangents"):
        notice(silu_triton, name)
    found = sums(torch.float64) | sums(torch.float32) | activations() | derivatives()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        found |= passes(dtype)
    direct = {"accumulate", "read", "silu", "silu_and_gradient"}
    by_gradients = direct | {"weigh", "silu_tangents"}
    for case, wanted in (
        ("gemnet_dT", direct),
        ("gemnet_T", by_gradients),
        ("gemnet_Q", by_gradients),
        ("gemnet_OC", direct | {"weigh"}),  # its sums over atoms, by radial functions that are trained
        ("gemnet_OC gradient", by_gradients),
    ):
        found |= model(case, wanted)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
