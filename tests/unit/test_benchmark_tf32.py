"""Products as a GPU computes them in TF32: every factor of every product is rounded, to the nearest."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.tf32 import Tf32Products, rounded
from tests.structures import case_config, random_potential, random_slabs, topology_of


def test_numbers_are_rounded_to_the_nearest_of_ten_bits() -> None:
    step = 2.0**-10
    given = [
        1.0,
        1 + step,
        1 + 0.49 * step,
        1 + 0.5 * step,
        1 + 1.5 * step,
        1 + 0.51 * step,
        0.0,
        3 * 2.0**90,
    ]
    exact = [1.0, 1 + step, 1.0, 1.0, 1 + 2 * step, 1 + step, 0.0, 3 * 2.0**90]
    x = torch.tensor(given)
    assert rounded(x).tolist() == exact
    assert rounded(-x).tolist() == [-value for value in exact]
    x = torch.randn(10_000)
    error = ((rounded(x) - x) / x).abs()
    assert 0.9 * step / 2 < error.max() <= step / 2


class Factors(TorchDispatchMode):
    """Looks at both factors of every product that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.n_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(
            word in name for word in ("linear", "matmul", "einsum", "conv", "mv", "attention", "dot")
        )
        if "mm" in name and args[-1].dtype == torch.float32:  # shifts of cells are multiplied in float64
            self.n_products += 1
            for factor in args[-2:]:
                assert torch.equal(factor, rounded(factor)), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["gemnet_T", "gemnet_dT", "gemnet_Q", "gemnet_OC", "gemnet_OC spherical"])
def test_every_product_of_a_model_is_rounded(case: str) -> None:
    potential = random_potential(case_config(case)).float()
    batch = random_slabs((6, 4), torch.float32)
    topology = topology_of(batch, potential.graph_spec)
    exact = potential(batch, topology)
    with Factors() as seen, Tf32Products():
        near = potential(batch, topology)
    assert seen.n_products > 50
    error = (near.forces - exact.forces).norm() / exact.forces.norm()
    assert 1e-5 < error < 1e-1
    with Tf32Products():
        assert torch.equal(potential.double()(batch, topology).energy, potential(batch, topology).energy)
