"""Sums in blocks are those of the whole, in both gradients, and keep nothing of a block."""

import weakref
from functools import partial

import pytest
import torch
from torch import Tensor

from ocpgem.models.gemnet.in_blocks import in_blocks


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
    torch.testing.assert_close(in_blocks(wide, size, *tables), wide(*tables), rtol=1e-14, atol=1e-14)
    blocked = partial(in_blocks, wide, size)
    assert torch.autograd.gradcheck(blocked, tables)
    assert torch.autograd.gradgradcheck(blocked, tables)


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_table_alone_may_ask_for_a_gradient(wanted: int) -> None:
    tables = arguments(5)
    other = tables[1 - wanted].detach()
    values = [other, other, tables[2]]
    values[wanted] = tables[wanted]
    results = []
    for form in (partial(in_blocks, wide, 2), wide):
        (first,) = torch.autograd.grad(form(*values).square().sum(), tables[wanted], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), tables[wanted])
        results.append((first, second))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_table_on_which_nothing_depends_has_zero_gradients() -> None:
    a, b, number = arguments(4)

    def first_alone(a: Tensor, b: Tensor, number: Tensor) -> Tensor:
        return a.sum(1) * number

    gradients = torch.autograd.grad(in_blocks(first_alone, 2, a, b, number).sum(), (a, b), create_graph=True)
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
            energy = in_blocks(partial(wide, width=width), 4, *tables).sum()
            forces = torch.autograd.grad(energy, tables[:2], create_graph=True)
        kept.append(sum(of_tensor.tensor.numel() for of_tensor in alive))
        assert forces[0].requires_grad
    assert kept[0] == kept[1] > 0
