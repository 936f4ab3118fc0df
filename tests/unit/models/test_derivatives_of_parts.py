"""SiLU, small products and filters: the values of torch's own operations, and derivatives of any order by rows."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ocpgem.models.gemnet import in_blocks
from ocpgem.models.gemnet.activation import (
    SILU_SCALE,
    scaled_silu,
    silu_sum,
    skip_activated,
    two_derivatives,
)
from ocpgem.models.gemnet.filters import filtered
from ocpgem.models.gemnet.products import product, transposed_product

Function = Callable[..., Tensor]


def skip_activated_by_torch(x: Tensor, update: Tensor) -> Tensor:
    return (x + F.silu(update) / 0.6) / 2**0.5


CASES: dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]] = {
    "SiLU": (scaled_silu, lambda x: F.silu(x) * SILU_SCALE, ((300, 2),)),
    "residual": (skip_activated, skip_activated_by_torch, ((300, 2), (300, 2))),
    "product": (product, torch.matmul, ((4, 3, 2), (4, 2, 5))),
    "transposed product": (
        transposed_product,
        lambda a, b: a.transpose(1, 2) @ b,
        ((4, 2, 3), (4, 2, 5)),
    ),
    "filter": (filtered, lambda x, r, f: x * (r @ f.t()), ((300, 2), (300, 3), (2, 3))),
}


@pytest.fixture(autouse=True)
def _several_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """300 rows are computed in two parts."""
    monkeypatch.setattr(in_blocks, "_CACHED", 1)
    return


def arguments(shapes: tuple[tuple[int, ...], ...], n: int | None = None) -> list[Tensor]:
    """n: rows instead of 300, for the checks that compare with differences."""
    torch.manual_seed(0)
    sizes = [shape if n is None or shape[0] != 300 else (n, *shape[1:]) for shape in shapes]
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in sizes]


def derivatives(function: Function, given: list[Tensor]) -> list[Tensor]:
    """The value, and what it gives to every argument at the first, second and third derivative."""
    found = [function(*given)]
    loss = found[0].pow(3).sum()
    for _ in range(3):
        of_given = torch.autograd.grad(loss, given, create_graph=True, materialize_grads=True)
        found += of_given
        loss = torch.stack([each.square().sum() for each in of_given]).sum()
    return found


@pytest.mark.parametrize("case", CASES)
def test_three_derivatives_are_those_of_torch(case: str) -> None:
    ours, torchs, shapes = CASES[case]
    given = arguments(shapes)
    for found, expected in zip(derivatives(ours, given), derivatives(torchs, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_a_backward_pass_through_a_gradient_that_is_the_last_gives_the_same(case: str) -> None:
    """Without a graph of its own the second derivative takes another way, some rows at a time."""
    ours, torchs, shapes = CASES[case]
    found = []
    for function in (ours, torchs):
        given = arguments(shapes)
        of_given = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        torch.stack([each.square().sum() for each in of_given]).sum().backward()
        found.append([each.grad for each in given])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_derivatives_are_those_of_differences(case: str) -> None:
    ours, _, shapes = CASES[case]
    given = arguments(shapes, n=3)
    assert gradcheck(ours, given)
    assert gradgradcheck(ours, given)


@pytest.mark.parametrize("case", ["product", "transposed product", "filter"])
def test_products_are_rounded_as_autocast_says_and_gradients_have_their_arguments_precision(
    case: str,
) -> None:
    ours, torchs, shapes = CASES[case]
    given = [each.detach().float().requires_grad_() for each in arguments(shapes)]
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(*given), torchs(*given)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    of_ours = torch.autograd.grad(found.float().square().sum(), given, retain_graph=True)
    for one, other in zip(of_ours, torch.autograd.grad(expected.float().square().sum(), given), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.05 * float(other.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_bfloat16_are_differentiated_once_more(case: str) -> None:
    """By all arguments, weights among them; differences are those of rounding to eight binary digits."""
    ours, torchs, shapes = CASES[case]
    found = []
    for function in (ours, torchs):
        given = [each.detach().float().requires_grad_() for each in arguments(shapes)]
        with torch.autocast("cpu", torch.bfloat16):
            value = function(*given)
        first = torch.autograd.grad(value.float().square().sum(), given, create_graph=True)
        torch.stack([each.square().sum() for each in first]).sum().backward()
        found.append([each.grad for each in given])
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_the_derivatives_of_silu_in_bfloat16_are_rounded_once() -> None:
    x = torch.linspace(-10, 10, 4001).bfloat16()
    exact = two_derivatives(x.double())
    for found, expected in zip(two_derivatives(x), exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found - expected).abs().max()) < 2**-8


def test_factors_of_two_types_are_refused_and_float64_is_not_rounded_by_autocast() -> None:
    a, b = (each.detach() for each in arguments(CASES["product"][2]))
    with pytest.raises(TypeError, match=r"float64 and torch\.float32"):
        product(a, b.float())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(product(a, b), a @ b, rtol=1e-12, atol=1e-12)


def test_gradients_that_nobody_asks_for_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ocpgem.models.gemnet import filters

    asked = []
    forward = filters._Gradient.forward

    def noticing(ctx: object, *given: object) -> object:
        asked.append(given[-1])
        return forward(ctx, *given)

    monkeypatch.setattr(filters._Gradient, "forward", staticmethod(noticing))
    x, radial, weight = arguments(CASES["filter"][2])
    energy = filtered(x.tanh(), radial * 1, weight * 1).square().sum()
    (of_x,) = torch.autograd.grad(energy, x, create_graph=True)
    of_x.square().sum().backward()
    assert asked == [[True, False, False], [True, True, True]]
    assert weight.grad is not None


def test_an_activation_of_no_rows_and_one_of_strided_rows_are_what_they_read() -> None:
    x = torch.randn(5, 600).t()
    torch.testing.assert_close(silu_sum(x, 2.0), 2 * F.silu(x))
    assert scaled_silu(x[:0]).shape == (0, 5)
