"""Sums in blocks are those of the whole, in both gradients, and keep nothing of a block."""

import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ocpgem.models.gemnet.in_blocks import final_product, in_blocks, places_in_cache, rows_as_on_gpu
from ocpgem.models.gemnet.layers import float32_region


def wide(a: Tensor, b: Tensor, number: Tensor, width: int = 3) -> Tensor:
    """[n, 3], [n, 3], [n] -> [n], through `width` values per row."""
    steps = torch.arange(width, dtype=a.dtype)
    values = torch.sin(a.sum(1, keepdim=True) * steps) * (b.square().sum(1, keepdim=True) + steps)
    return values.sum(1) * number


def arguments(n_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b = torch.randn(2, n_rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return a.requires_grad_(), b.requires_grad_(), torch.arange(n_rows)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_gradients_of_both_orders_are_those_of_the_function(size: int) -> None:
    tables = arguments(7)
    torch.testing.assert_close(in_blocks(wide, size, tables), wide(*tables), rtol=1e-14, atol=1e-14)

    def blocked(*tables: Tensor) -> Tensor:
        return in_blocks(wide, size, tables)

    assert torch.autograd.gradcheck(blocked, tables)
    assert torch.autograd.gradgradcheck(blocked, tables)


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_table_alone_may_ask_for_a_gradient(wanted: int) -> None:
    tables = arguments(5)
    other = tables[1 - wanted].detach()
    values = [other, other, tables[2]]
    values[wanted] = tables[wanted]
    results = []
    for form in (lambda *tables: in_blocks(wide, 2, tables), wide):
        (first,) = torch.autograd.grad(form(*values).square().sum(), tables[wanted], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), tables[wanted])
        results.append((first, second))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_table_on_which_nothing_depends_has_zero_gradients() -> None:
    a, b, number = arguments(4)

    def first_alone(a: Tensor, b: Tensor, number: Tensor) -> Tensor:
        return a.sum(1) * number

    gradients = torch.autograd.grad(
        in_blocks(first_alone, 2, (a, b, number)).sum(), (a, b), create_graph=True
    )
    assert gradients[1].abs().sum() == 0
    (second,) = torch.autograd.grad(gradients[0].square().sum(), a)
    assert second.abs().sum() == 0


class Kept:
    """A tensor that autograd keeps, for as long as it keeps it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_what_is_kept_does_not_depend_on_what_a_block_computes() -> None:
    kept = []
    for width in (3, 3000):
        tables = arguments(20)
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()

        def pack(tensor: Tensor, alive: weakref.WeakSet[Kept] = alive) -> Kept:
            alive.add(of_tensor := Kept(tensor))
            return of_tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda of_tensor: of_tensor.tensor):
            energy = in_blocks(partial(wide, width=width), 4, tables).sum()
            forces = torch.autograd.grad(energy, tables[:2], create_graph=True)
        kept.append(sum(of_tensor.tensor.numel() for of_tensor in alive))
        assert forces[0].requires_grad
    assert kept[0] == kept[1] > 0


def test_what_all_rows_share_gets_the_gradients_of_all() -> None:
    a, b, number = arguments(7)
    shared = torch.randn(
        3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()

    def product(a: Tensor, b: Tensor, number: Tensor, shared: Tensor) -> Tensor:
        return torch.tanh((a * b) @ shared) * number.unsqueeze(1)

    def blocked(*tensors: Tensor) -> Tensor:
        return in_blocks(product, 3, tensors[:3], tensors[3:])

    arrays = (a, b, number, shared)
    torch.testing.assert_close(blocked(*arrays), product(*arrays), rtol=1e-14, atol=1e-14)
    assert torch.autograd.gradcheck(blocked, arrays)
    assert torch.autograd.gradgradcheck(blocked, arrays)


def test_gradients_recompute_in_the_precision_of_the_forward_pass() -> None:
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(4), requires_grad=True)
    seen = []

    def product(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(torch.nn.functional.linear(x, weight).dtype)
        return torch.nn.functional.linear(x, weight)

    with torch.autocast("cpu", torch.bfloat16):
        y = in_blocks(product, 4, (x,), (weight,))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_cpu_computes_as_many_rows_as_its_caches_hold_and_a_gpu_all() -> None:
    x = torch.zeros(5000, 512)
    assert [place.stop - place.start for place in places_in_cache(x)] == [1024] * 4 + [904]
    assert list(places_in_cache(x[:0])) == [slice(0, 1)]
    with rows_as_on_gpu():
        assert list(places_in_cache(x)) == [slice(0, 5000)]


def test_third_derivatives_are_those_of_the_function() -> None:
    tables = arguments(5)
    results = []
    for form in (lambda *tables: in_blocks(wide, 2, tables), wide):
        first = torch.autograd.grad(form(*tables).sum(), tables[:2], create_graph=True)
        second = torch.autograd.grad(sum(of.sum() for of in first), tables[:2], create_graph=True)
        third = torch.autograd.grad(sum(of.sum() for of in second), tables[:2])
        results.append((*first, *second, *third))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def ends_in_product(x: Tensor, weight: Tensor) -> Tensor:
    """[n, in_dim], [out_dim, in_dim] -> [n, out_dim]."""
    return final_product(x.sin() * x, weight)


def test_a_final_product_is_computed_once_and_differentiated_twice() -> None:
    x, _, _ = arguments(7)
    weight = torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()

    def blocked(x: Tensor, weight: Tensor) -> Tensor:
        return in_blocks(ends_in_product, 3, [x], [weight])

    torch.testing.assert_close(blocked(x, weight), (x.sin() * x) @ weight.t())
    assert torch.autograd.gradcheck(blocked, (x, weight))
    assert torch.autograd.gradgradcheck(blocked, (x, weight))
    with FlopCounterMode(display=False) as counter:
        blocked(x, weight).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 7 * 3 * 4  # itself, and what its two factors get


def test_a_product_within_another_block_is_read() -> None:
    x, _, _ = arguments(7)
    weight = torch.eye(3, dtype=torch.float64)

    def outer(x: Tensor, weight: Tensor) -> Tensor:
        return in_blocks(ends_in_product, 2, [x], [weight]).square()

    (found,) = torch.autograd.grad(in_blocks(outer, 3, [x], [weight]).sum(), x)
    (expected,) = torch.autograd.grad((x.sin() * x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def in_float32(x: Tensor, weight: Tensor) -> Tensor:
    with float32_region(x):
        return final_product(x.sin(), weight)


@pytest.mark.parametrize(("block", "error"), [(in_float32, 1e-5), (ends_in_product, 2e-2)])
def test_both_gradients_have_the_precision_of_the_block_also_in_bfloat16(
    block: Callable[[Tensor, Tensor], Tensor], error: float
) -> None:
    """Where a block asks for float32 in autocast, both gradients are float32, too; else they are bfloat16."""
    found = []
    for dtype, bf16 in ((torch.float64, False), (torch.float32, True)):
        x, weight = (
            torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
            .to(dtype)
            .requires_grad_()
            for shape in ((600, 64), (2, 64))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = in_blocks(block, 256, [x], [weight])
        first = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() for each in first), (x, weight))
        found.append([each.detach() for each in (*first, *second)])
    differences = [
        float((one - other.double()).norm() / one.norm()) for one, other in zip(*found, strict=True)
    ]
    assert max(differences) < error
    assert (max(differences) > 1e-3) == (block is ends_in_product)
