"""A function of rows computed some rows at a time, of which both its gradients keep nothing but the arguments.

Activation checkpointing bounds the memory of a forward pass alone: a gradient that is differentiated again, as that
of forces is, keeps every recomputed value. Here both gradients recompute one block after the other. On a CPU, blocks
that its caches hold are faster as well: what a row needs in between is not written to memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem.models.gemnet.products import as_autocast

Block = Callable[..., Tensor]
"""Rows of the tables, and what all rows share -> as many rows of the result."""

_CACHED = 2**19
"""Numbers of one activation that a core of a CPU works on at a time."""
_as_on_gpu: ContextVar[bool] = ContextVar("_as_on_gpu", default=False)
_is_unread: ContextVar[bool] = ContextVar("_is_unread", default=False)
"""Whether a block is computed again for its gradients alone."""


def in_blocks(block: Block, size: int, tables: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> Tensor:
    """`block(*tables, *shared)`, computed for `size` rows of the tables at a time.

    tables: [n, ...] each; shared: any, read by all rows. Rows must not depend on each other. The result can be
    differentiated any number of times; from the third derivative on, all rows are computed together.
    """
    if torch.compiler.is_compiling():  # which differentiates by itself
        return block(*tables, *shared)
    like = tables[0]
    autocast = (
        torch.get_autocast_dtype(like.device.type) if torch.is_autocast_enabled(like.device.type) else None
    )
    return _InBlocks.apply(_Form(block, size, len(tables), autocast), *tables, *shared)


def final_product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, [n, in_dim], [out_dim, in_dim] -> [n, out_dim], as the last thing that a block computes.

    It is not computed again where the block is computed for its gradients, which do not depend on its value. To be
    called by nothing but such a block: what the block calls may read what it gets.
    """
    if torch.compiler.is_compiling() or not _is_unread.get():
        return F.linear(x, weight)
    found: Tensor = _Unread.apply(as_autocast(x), as_autocast(weight))
    return found


class _Unread(torch.autograd.Function):
    """A product x W^T that is there for its gradients. Its value is NaN: whoever reads it all the same will notice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_full((), math.nan).expand(len(x), len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (grad,), needed = ctx.saved_tensors, grads, ctx.needs_input_grad
        return grad @ weight if needed[0] else None, grad.t() @ x if needed[1] else None


def places_in_cache(x: Tensor) -> Iterator[slice]:
    """Rows of x [n, ...] to compute together: on a CPU as many as its caches hold, elsewhere all; one if n is 0."""
    n_rows = max(1, len(x))
    size = min(n_rows, rows_in_cache(x, x.shape[1:].numel()))
    return (slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size))


def rows_in_cache(x: Tensor, width: int) -> int:
    """How many rows of x [n, ...] to compute together, where `width` numbers are computed of each."""
    if x.device.type != "cpu" or _as_on_gpu.get():
        return max(1, len(x))
    return max(256, _CACHED // max(1, width))


@contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    """Within the context the variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def rows_as_on_gpu() -> AbstractContextManager[None]:
    """Within the context all rows are computed together, to count on a CPU what a GPU would need."""
    return _set(_as_on_gpu, True)


class _Form:
    """What is computed, and how: of how many rows at a time, with what precision of products."""

    def __init__(self, block: Block, size: int, n_tables: int, autocast: torch.dtype | None) -> None:
        self.block, self.size, self.n_tables, self.autocast = block, size, n_tables, autocast

    def as_given(self, like: Tensor) -> torch.autocast:
        """The precision of the forward pass, wherever the gradient is asked for."""
        return torch.autocast(like.device.type, self.autocast, enabled=self.autocast is not None)

    def places(self, table: Tensor) -> list[slice]:
        """The blocks; one of no rows if there are none."""
        n_rows = max(1, len(table))
        return [slice(first, first + self.size) for first in range(0, n_rows, self.size)]

    def rows(self, tensors: Sequence[Tensor], place: slice) -> list[Tensor]:
        """The block's rows of each table, then what is shared."""
        return [tensor[place] if number < self.n_tables else tensor for number, tensor in enumerate(tensors)]

    def unread_value(self, leaves: Sequence[Tensor], like: Tensor) -> Tensor:
        """What the block gives, with a graph, for its gradients alone: see `final_product`."""
        with torch.enable_grad(), self.as_given(like), _set(_is_unread, True):
            return self.block(*leaves)

    def first_gradients(
        self, grad: Tensor, leaves: Sequence[Tensor], wanted: Sequence[bool]
    ) -> tuple[Tensor, ...]:
        """The gradients of the block by what wants one, with a graph of their own."""
        value, by = self.unread_value(leaves, grad), _chosen(leaves, wanted)
        return torch.autograd.grad(value, by, grad, create_graph=True, materialize_grads=True)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: _Form, *tensors: Tensor) -> Tensor:
        ctx.form = form
        ctx.save_for_backward(*tensors)
        result: Tensor | None = None
        for place in form.places(tensors[0]):
            with _set(_is_unread, False):
                rows = form.block(*form.rows(tensors, place))
            if len(rows) == len(tensors[0]):  # in one block
                return rows
            if result is None:
                result = rows.new_empty(len(tensors[0]), *rows.shape[1:])
            result[place] = rows
        assert result is not None
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        found = iter(_Gradient.apply(ctx.form, wanted, grads[0], *ctx.saved_tensors))
        return None, *(next(found) if want else None for want in wanted)


class _Gradient(torch.autograd.Function):
    """The gradients of `_InBlocks` by what wants one, as a function of the incoming gradient and of all arguments."""

    @staticmethod
    def forward(
        ctx: Any, form: _Form, wanted: Sequence[bool], grad: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.form, ctx.wanted = form, wanted
        ctx.save_for_backward(grad, *tensors)
        sums = _Sums(tensors, wanted, form.n_tables)
        for place in form.places(grad):
            leaves = _leaves(form.rows(tensors, place), wanted)
            value = form.unread_value(leaves, grad)
            sums.add(place, gradients([value], _chosen(leaves, wanted), [grad[place]]))
        return tuple(sums.found)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
        form, wanted, asked = ctx.form, ctx.wanted, ctx.needs_input_grad[2:]
        grad, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated in turn: all rows together, with a graph
            of_all, *others = aliases(grad, *tensors)
            firsts = form.first_gradients(of_all, others, wanted)
            found = iter(gradients(firsts, _chosen([of_all, *others], asked), seconds, create_graph=True))
            return None, None, *(next(found) if ask else None for ask in asked)
        needed = [asked[0], *(want or ask for want, ask in zip(wanted, asked[1:], strict=True))]
        sums = _Sums((grad, *tensors), asked, form.n_tables + 1)
        is_table = [number < form.n_tables for number, want in enumerate(wanted) if want]
        for place in form.places(grad):
            of_rows, *leaves = _leaves([grad[place], *form.rows(tensors, place)], needed)
            firsts = form.first_gradients(of_rows, leaves, wanted)
            of_firsts = [
                second[place] if table else second for second, table in zip(seconds, is_table, strict=True)
            ]
            sums.add(place, gradients(firsts, _chosen([of_rows, *leaves], asked), of_firsts))
        found = iter(sums.found)
        return None, None, *(next(found) if ask else None for ask in asked)


class _Sums:
    """Gradients of tables, filled block by block, and of what is shared, summed over the blocks."""

    def __init__(self, tensors: Sequence[Tensor], wanted: Sequence[bool], n_tables: int) -> None:
        self._is_table = [number < n_tables for number, want in enumerate(wanted) if want]
        self.found = [
            torch.empty_like(tensor) if table else torch.zeros_like(tensor)
            for tensor, table in zip(_chosen(tensors, wanted), self._is_table, strict=True)
        ]

    def add(self, place: slice, of_block: Sequence[Tensor]) -> None:
        """Take the gradients of one block."""
        for total, own, table in zip(self.found, of_block, self._is_table, strict=True):
            if table:
                total[place] = own
            else:
                total.add_(own)


def _leaves(rows: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [row.detach().requires_grad_(need) for row, need in zip(rows, needed, strict=True)]


def _chosen(values: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [value for value, want in zip(values, wanted, strict=True) if want]


def aliases(*tensors: Tensor) -> list[Tensor]:
    """The tensors, such that a gradient by one of them does not follow the ways by which another depends on it."""
    return [tensor.view_as(tensor) for tensor in tensors]


def gradients(
    of: Sequence[Tensor], by: Sequence[Tensor], weights: Sequence[Tensor], create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Of the values that depend on anything, zero where nothing depends on it."""
    pairs = [(value, weight) for value, weight in zip(of, weights, strict=True) if value.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in by)
    values, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(values, by, grads, create_graph=create_graph, materialize_grads=True)
