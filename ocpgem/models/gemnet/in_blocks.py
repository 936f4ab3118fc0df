"""A sum computed some rows at a time, of which its first and second gradients keep nothing but the arguments.

Activation checkpointing bounds the memory of a forward pass alone: a gradient that is differentiated again, as that
of forces is, keeps every recomputed value. Here both gradients recompute one block after the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Block = Callable[..., Tensor]
"""Rows of the tables -> as many rows of the result."""


def in_blocks(block: Block, size: int, *tables: Tensor) -> Tensor:
    """`block(*tables)`, computed for `size` rows of the tables at a time.

    tables: [n, ...] each. Rows must not depend on each other. The result can be differentiated twice.
    """
    return _InBlocks.apply(block, size, *tables)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, size: int, *tables: Tensor) -> Tensor:
        ctx.block, ctx.size = block, size
        ctx.save_for_backward(*tables)
        with _as_given(tables[0]):
            return torch.cat([block(*rows) for rows in _split(tables, size)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        found = iter(_Gradient.apply(ctx.block, ctx.size, wanted, grads[0], *ctx.saved_tensors))
        return None, None, *(next(found) if want else None for want in wanted)


class _Gradient(torch.autograd.Function):
    """The gradients of `_InBlocks` by its wanted tables, as a function of the incoming gradient and of all tables."""

    @staticmethod
    def forward(
        ctx: Any, block: Block, size: int, wanted: Sequence[bool], grad: Tensor, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.block, ctx.size, ctx.wanted = block, size, wanted
        ctx.save_for_backward(grad, *tables)
        parts = []
        with _as_given(grad), torch.enable_grad():
            for of_block, *rows in _split((grad, *tables), size):
                leaves = _leaves(rows, wanted)
                parts.append(_gradients([block(*leaves)], _chosen(leaves, wanted), [of_block]))
        return _joined(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
        wanted, asked = ctx.wanted, ctx.needs_input_grad[3:]
        n_seconds = len(seconds)
        parts = []
        with _as_given(seconds[0]), torch.enable_grad():
            for rows in _split((*seconds, *ctx.saved_tensors), ctx.size):
                of_firsts = rows[:n_seconds]
                needed = [asked[0], *(want or ask for want, ask in zip(wanted, asked[1:], strict=True))]
                grad, *leaves = _leaves(rows[n_seconds:], needed)
                firsts = torch.autograd.grad(
                    ctx.block(*leaves),
                    _chosen(leaves, wanted),
                    grad,
                    create_graph=True,
                    materialize_grads=True,
                )
                parts.append(_gradients(firsts, _chosen([grad, *leaves], asked), of_firsts))
        found = iter(_joined(parts))
        return None, None, None, *(next(found) if ask else None for ask in asked)


def _as_given(like: Tensor) -> torch.autocast:
    """Recomputed in the precision of the forward pass, wherever the gradient is asked for."""
    return torch.autocast(like.device.type, enabled=False)


def _split(tables: Sequence[Tensor], size: int) -> list[list[Tensor]]:
    """The blocks' rows of each table; one empty block if there are no rows."""
    n_rows = len(tables[0])
    return [[table[first : first + size] for table in tables] for first in range(0, max(n_rows, 1), size)]


def _leaves(rows: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [row.detach().requires_grad_(need) for row, need in zip(rows, needed, strict=True)]


def _chosen(values: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [value for value, want in zip(values, wanted, strict=True) if want]


def _gradients(of: Sequence[Tensor], by: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the values that depend on anything, zero where nothing depends on it."""
    pairs = [(value, weight) for value, weight in zip(of, weights, strict=True) if value.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in by)
    values, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(values, by, grads, materialize_grads=True)


def _joined(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(of_table) for of_table in zip(*parts, strict=True))
