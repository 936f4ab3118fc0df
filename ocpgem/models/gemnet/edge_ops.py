"""Moves between atoms, edges and padded tables, with transposes as explicit gradients.

Where rows are read by index, the graph also knows the rows in the order of that index, so every gather has a transpose
that is a segment sum: no gradient here is an atomic scatter. All functions can be differentiated twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet, SymmetricEdgeSet, TripletTable
from ocpgem.parallel.graph import gather, shard
from ocpgem.segment import ordered_sum, segment_sum


class _Reverse(torch.autograd.Function):
    """x[reverse_edge]; reversal is an involution, so it is its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse_edge: Tensor) -> Tensor:
        ctx.save_for_backward(reverse_edge)
        return x.index_select(0, reverse_edge)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (reverse_edge,) = ctx.saved_tensors
        return _Reverse.apply(grads[0], reverse_edge), None


class _Gather(torch.autograd.Function):
    """x[index]; the transpose sums the rows of each index value, which `order` (if not None) makes consecutive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, order: Tensor | None, ptr: Tensor) -> Tensor:
        ctx.save_for_backward(index, order, ptr)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _SumGroups.apply(grads[0], *ctx.saved_tensors), None, None, None


class _SumGroups(torch.autograd.Function):
    """The sum of the rows of each index value; the transpose is x[index]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, order: Tensor | None, ptr: Tensor) -> Tensor:
        ctx.save_for_backward(index, order, ptr)
        return segment_sum(x, ptr) if order is None else ordered_sum(x, order, ptr)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Gather.apply(grads[0], *ctx.saved_tensors), None, None, None


class _Pad(torch.autograd.Function):
    """Rows -> rows of a zero-padded table; the transpose reads the rows back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, n_rows: int) -> Tensor:
        ctx.save_for_backward(slot)
        return x.new_zeros(n_rows, *x.shape[1:]).index_copy_(0, slot, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return _Unpad.apply(grads[0], slot), None, None


class _Unpad(torch.autograd.Function):
    """Rows of a padded table -> rows; the transpose writes them back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return _Pad.apply(grads[0], slot, ctx.n_rows), None


class _Stack(torch.autograd.Function):
    """torch.stack, whose second derivative in torch fills a tensor of the size of the whole for every part."""

    @staticmethod
    def forward(ctx: Any, dim: int, *parts: Tensor) -> Tensor:
        ctx.dim = dim
        return torch.stack(parts, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Unstack.apply(grads[0], ctx.dim)


class _Unstack(torch.autograd.Function):
    """The parts of a stack; the transpose stacks them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> tuple[Tensor, ...]:
        ctx.dim = dim
        return tuple(part.contiguous() for part in x.unbind(dim))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Stack.apply(ctx.dim, *grads), None


def stack(parts: Sequence[Tensor], dim: int) -> Tensor:
    """torch.stack(parts, dim)."""
    return torch.stack(list(parts), dim) if torch.compiler.is_compiling() else _Stack.apply(dim, *parts)


def reverse(x: Tensor, edges: SymmetricEdgeSet) -> Tensor:
    """The value of the reverse edge, for every edge: [n_edges, ...] -> [n_edges, ...]."""
    if edges.back is not None:  # some reverse edges lie on other ranks; each is needed once
        return gather(x, edges.back).index_select(0, edges.reverse_edge)
    return _Reverse.apply(x, edges.reverse_edge)


def gather_sources(h: Tensor, edges: EdgeSet) -> Tensor:
    """What `from_source` reads, of the atoms of this rank and of those it needs of others; all on one rank."""
    return h if edges.ends is None else gather(h, edges.ends.sources)


def at_ends(x: Tensor, edges: EdgeSet) -> tuple[Tensor, Tensor]:
    """What is known of all atoms on every rank, at the source and at the target of every edge."""
    if edges.ends is None:
        return from_source(x, edges), from_target(x, edges)
    sources = x.index_select(0, edges.ends.sources.rows)
    return from_source(sources, edges), from_target(shard(x, edges.ends.part), edges)


def from_target(h: Tensor, edges: EdgeSet) -> Tensor:
    """The value of the target atom, for every edge: [n_atoms, ...] -> [n_edges, ...]."""
    return _Gather.apply(h, edges.edge_index[1], None, edges.edge_ptr)


def from_source(h: Tensor, edges: EdgeSet) -> Tensor:
    """The value of the source atom, for every edge: [n_atoms, ...] -> [n_edges, ...]."""
    return _Gather.apply(h, edges.edge_index[0], edges.by_source, edges.source_ptr)


def from_main_edge(x: Tensor, table: TripletTable) -> Tensor:
    """The value of the main edge, for every row of a table: [n_edges, ...] -> [n_rows, ...]."""
    return _Gather.apply(x, table.main_edge, table.by_main, table.main_ptr)


def sum_to_target(x: Tensor, edges: EdgeSet) -> Tensor:
    """The sum over the edges that end at each atom: [n_edges, ...] -> [n_atoms, ...]."""
    return segment_sum(x, edges.edge_ptr)


def pad(x: Tensor, slot: Tensor, n_groups: int, width: int) -> Tensor:
    """Rows [n, ...] into a table [n_groups, width, ...], zero where nothing goes.

    slot: [n] distinct rows of the table seen as [n_groups * width, ...].
    """
    return _Pad.apply(x, slot, n_groups * width).view(n_groups, width, *x.shape[1:])


def unpad(x: Tensor, slot: Tensor) -> Tensor:
    """[n_groups, width, ...] -> the rows [n, ...] that `pad` with the same slots put there."""
    return _Unpad.apply(x.flatten(0, 1), slot)


def pad_by_target(x: Tensor, edges: EdgeSet) -> Tensor:
    """[n_edges, ...] -> [n_atoms, max_degree, ...], zero where an atom has fewer edges."""
    return pad(x, edges.slot, edges.edge_ptr.shape[0] - 1, edges.max_degree)
