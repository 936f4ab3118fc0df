"""Moves between atoms, edges and the padded table of edges by target, with transposes as explicit gradients.

The edges of an `EdgeSet` are sorted by target and closed under reversal, so every gather has a transpose that is itself
a gather or a segment sum: no gradient here is an atomic scatter. All functions can be differentiated twice.
"""

from typing import Any

import torch
from torch import Tensor

from ocpgem.graph.topology import EdgeSet
from ocpgem.segment import segment_sum


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


class _FromTarget(torch.autograd.Function):
    """h[target]; the transpose is the segment sum over the edges of each target."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, target: Tensor, edge_ptr: Tensor) -> Tensor:
        ctx.save_for_backward(edge_ptr)
        return h.index_select(0, target)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (edge_ptr,) = ctx.saved_tensors
        return segment_sum(grads[0].contiguous(), edge_ptr), None, None


class _Pad(torch.autograd.Function):
    """Rows of edges -> rows of a zero-padded table; the transpose reads the rows back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, n_rows: int) -> Tensor:
        ctx.save_for_backward(slot)
        return x.new_zeros(n_rows, *x.shape[1:]).index_copy_(0, slot, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        return _Unpad.apply(grads[0], slot), None, None


class _Unpad(torch.autograd.Function):
    """Rows of a padded table -> rows of edges; the transpose writes them back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.n_rows = x.shape[0]
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return _Pad.apply(grads[0], slot, ctx.n_rows), None


def reverse(x: Tensor, edges: EdgeSet) -> Tensor:
    """The value of the reverse edge, for every edge: [n_edges, ...] -> [n_edges, ...]."""
    return _Reverse.apply(x, edges.reverse_edge)


def from_target(h: Tensor, edges: EdgeSet) -> Tensor:
    """The value of the target atom, for every edge: [n_atoms, ...] -> [n_edges, ...]."""
    return _FromTarget.apply(h, edges.edge_index[1], edges.edge_ptr)


def from_source(h: Tensor, edges: EdgeSet) -> Tensor:
    """The value of the source atom, for every edge: [n_atoms, ...] -> [n_edges, ...]."""
    return reverse(from_target(h, edges), edges)


def sum_to_target(x: Tensor, edges: EdgeSet) -> Tensor:
    """The sum over the edges that end at each atom: [n_edges, ...] -> [n_atoms, ...]."""
    return segment_sum(x, edges.edge_ptr)


def pad(x: Tensor, edges: EdgeSet) -> Tensor:
    """[n_edges, ...] -> [n_atoms, max_degree, ...], zero where an atom has fewer edges."""
    n_atoms = edges.edge_ptr.shape[0] - 1
    padded = _Pad.apply(x, edges.slot, n_atoms * edges.max_degree)
    return padded.view(n_atoms, edges.max_degree, *x.shape[1:])


def unpad(x: Tensor, edges: EdgeSet) -> Tensor:
    """[n_atoms, max_degree, ...] -> [n_edges, ...], the inverse of `pad`."""
    return _Unpad.apply(x.flatten(0, 1), edges.slot)
