"""Compiled sums over angles: exact, alike for any number of threads and any padding, and those of torch in models."""

from math import isqrt

import pytest
import torch
from torch import Tensor

from ocpgem import kernels
from ocpgem.kernels import angular, native
from ocpgem.models.gemnet.densities import density, read_degrees, read_together

LIBRARY, REASON = native.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=REASON)


@pytest.fixture(autouse=True)
def _by_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKEND", "native")
    torch.manual_seed(0)


def tensors(
    n: int, n_edges: int, n_functions: int, n_degrees: int, channels: int
) -> tuple[Tensor, Tensor, Tensor]:
    weights, values = torch.randn(n, n_edges, n_functions), torch.randn(n, n_edges, n_degrees, channels)
    return weights, torch.randn(n, n_functions, channels), values


def products(weights: Tensor, densities: Tensor, values: Tensor) -> list[Tensor]:
    return [
        native.read(weights, densities, values.shape[2]),
        native.accumulate(weights, values),
        native.weigh(densities, values),
    ]


SIZES = [
    (3, 5, 49, 7, 64), (2, 1, 1, 1, 8), (4, 7, 11, 4, 40), (1, 9, 51, 8, 32), (5, 8, 7, 1, 224),
    (2, 3, 4, 2, 16), (0, 3, 4, 2, 8), (2, 0, 4, 2, 8), (600, 9, 16, 4, 8),
]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_products_are_what_they_say(sizes: tuple[int, ...], threads: None) -> None:
    weights, densities, values = tensors(*sizes)
    n_functions, n_degrees = sizes[2:4]
    torch.set_num_threads(3)
    degree = torch.tensor([isqrt(k) if n_degrees > 1 else 0 for k in range(n_functions)])
    of_degree = torch.nn.functional.one_hot(degree, n_degrees).double()
    y, d, g = (tensor.double() for tensor in (weights, densities, values))
    expected = [
        torch.einsum("nek,nkc,kl->nelc", y, d, of_degree),
        torch.einsum("nek,nelc,kl->nkc", y, g, of_degree),
        torch.einsum("nkc,nelc,kl->nek", d, g, of_degree),
    ]
    for found, of_expected in zip(products(weights, densities, values), expected, strict=True):
        torch.testing.assert_close(found.double(), of_expected, rtol=1e-5, atol=1e-5)


def test_bits_do_not_depend_on_threads_or_padding(threads: None) -> None:
    weights, densities, values = tensors(120, 9, 25, 5, 24)  # enough for three threads
    torch.set_num_threads(1)
    alone = products(weights, densities, values)
    torch.set_num_threads(3)
    assert all(torch.equal(*pair) for pair in zip(products(weights, densities, values), alone, strict=True))
    wider = weights.new_zeros(120, 14, 25), values.new_zeros(120, 14, 5, 24)
    wider[0][:, :9], wider[1][:, :9] = weights, values
    read, accumulated, weighed = products(wider[0], densities, wider[1])
    assert torch.equal(read[:, :9], alone[0])
    assert not read[:, 9:].any()
    assert torch.equal(accumulated, alone[1])
    assert torch.equal(weighed[:, :9], alone[2])


def test_no_numbers_stay_no_numbers() -> None:
    """Whoever looks for them in a loss finds them."""
    weights, densities, values = tensors(2, 4, 9, 3, 8)
    weights[0, 3, 8] = float("nan")
    read, accumulated, _ = products(weights, densities, values)
    assert read[0, 3, 2].isnan().all()
    assert accumulated[0, 8].isnan().all()


def test_all_derivatives_are_right() -> None:
    """Those of torch in float64, to the third."""
    weights, _, values = tensors(3, 5, 11, 1, 8)
    x, readers = values[:, :, 0], torch.randn(3, 6, 11)

    def outputs(dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (weights, x, readers)]
        summed = density(leaves[0], leaves[1])
        together = read_together(leaves[2], summed)
        assert (together is None) == (dtype == torch.float64)
        degrees = read_degrees(leaves[2], summed, 3)
        read = torch.stack(degrees, dim=2)
        assert together is None or torch.equal(together, read)
        found = [read if together is None else together]
        of_order: Tensor = found[0].square().sum()
        for order in range(3):
            firsts = torch.autograd.grad(of_order, leaves, create_graph=order < 2)
            found += firsts
            of_order = sum((of.square().sum() for of in firsts), start=of_order.new_zeros(()))
        return [of.detach() for of in found]

    for found, expected in zip(outputs(torch.float32), outputs(torch.float64), strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * scale)


def test_torch_computes_what_the_compiled_functions_do_not_know() -> None:
    for dtype, channels, known in (
        (torch.float32, 8, True),
        (torch.float32, 12, False),
        (torch.float64, 8, False),
    ):
        weights, x = torch.randn(2, 3, 4, dtype=dtype), torch.randn(2, 3, channels, dtype=dtype)
        assert angular.can(weights, x) == known
        torch.testing.assert_close(density(weights, x), weights.transpose(1, 2) @ x)
    assert not angular.can(torch.randn(2, 3, 4), torch.randn(2, 3, 8, dtype=torch.float64))


def test_other_sizes_are_refused_before_anything_is_read() -> None:
    weights, densities, values = tensors(2, 5, 9, 3, 8)
    for call in (
        lambda: native.read(weights, densities[:, :-1], 3),
        lambda: native.read(weights, densities[:1], 3),
        lambda: native.read(weights, densities, 2),
        lambda: native.accumulate(weights, values[:, :-1]),
        lambda: native.accumulate(weights, values[:, :, :-1]),
        lambda: native.weigh(densities, values[:1]),
        lambda: native.weigh(densities[..., :4].contiguous(), values[..., :4].contiguous()),
    ):
        with pytest.raises(ValueError, match=r"sizes are|functions are not"):
            call()
