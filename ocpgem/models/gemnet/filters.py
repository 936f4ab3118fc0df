"""The continuous filter x * (radial F^T), of which both derivatives keep nothing but what they were given.

The product with the few functions of a radial basis costs less than writing and reading its result, so it is computed
again wherever it is needed, some rows at a time.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem.models.gemnet.in_blocks import places_in_cache
from ocpgem.models.gemnet.products import as_autocast


def filtered(x: Tensor, radial: Tensor, filters: Tensor) -> Tensor:
    """x [n, dim] times what a radial basis [n, radial_dim] gives through filters [dim, radial_dim].

    Can be differentiated any number of times.
    """
    if torch.compiler.is_compiling():  # which differentiates by itself
        return x * F.linear(radial, filters)
    radial, filters = as_autocast(radial), as_autocast(filters)
    return _Filtered.apply(x, radial, filters)


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, radial: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(x, radial, filters)
        out = torch.empty(x.shape, dtype=torch.result_type(x, filters), device=x.device)
        for place in places_in_cache(x):
            torch.mul(x[place], F.linear(radial[place], filters), out=out[place])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = [_is_asked_for(node) for node, _ in ctx.next_functions]
        return _Gradient.apply(grads[0], *ctx.saved_tensors, needed)


def _is_asked_for(node: Any) -> bool:
    """Whether this backward pass goes on to a node of the graph: that for forces does not to those of weights."""
    if node is None or node.name() == "torch::autograd::AccumulateGrad":  # torch does not say of leaves
        return node is not None
    return bool(torch._C._will_engine_execute_node(node))


class _Gradient(torch.autograd.Function):
    """The gradients of `_Filtered` by what needs one, as a function of the incoming gradient and its arguments."""

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, radial: Tensor, filters: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad, x, radial, filters)
        found = _Gathered([x, radial, filters], needed)
        for place in places_in_cache(x):
            of_x = grad[place] * F.linear(radial[place], filters) if needed[0] else None
            of_radial = of_filters = None
            if needed[1] or needed[2]:
                product = (grad[place] * x[place]).to(filters.dtype)
                of_radial = product @ filters if needed[1] else None
                of_filters = product.t() @ radial[place] if needed[2] else None
            found.add(place, [of_x, of_radial, of_filters])
        return tuple(found.tensors)

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated in turn: all rows together, with a graph
            return *_second_gradient(tangents, tensors), None
        *by_rows, of_filters = tangents
        *tables, filters = tensors
        found = _Gathered(tensors, ctx.needs_input_grad[:4])
        for place in places_in_cache(tables[0]):
            of_rows = [None if tangent is None else tangent[place] for tangent in by_rows]
            rows = [table[place] for table in tables]
            found.add(place, _second_gradient([*of_rows, of_filters], [*rows, filters]))
        return *found.tensors, None


def _second_gradient(tangents: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor | None]:
    """What gradients of the three results of `_Gradient` give to its four arguments, None where nothing.

    With p = grad * x, the results are grad * (radial F^T), p F and p^T radial.
    """
    by_x, by_radial, by_filters = tangents
    grad, x, radial, filters = tensors
    by_filters = None if by_filters is None else by_filters.to(filters.dtype)
    of_grad = of_x = of_radial = of_filters = None
    if by_radial is not None or by_filters is not None:
        terms = [(by_radial, filters), (radial, by_filters)]
        of_product = _sum([F.linear(a, b) for a, b in terms if a is not None and b is not None])
        product = (grad * x).to(filters.dtype)
        of_grad, of_x = of_product * x, of_product * grad
        of_radial = None if by_filters is None else product @ by_filters
        of_filters = None if by_radial is None else product.t() @ by_radial
    if by_x is not None:
        of_filter = (by_x * grad).to(filters.dtype)
        of_grad = _sum([by_x * F.linear(radial, filters), of_grad])
        of_radial = _sum([of_filter @ filters, of_radial])
        of_filters = _sum([of_filter.t() @ radial, of_filters])
    return [of_grad, of_x, of_radial, of_filters]


def _sum(terms: Sequence[Tensor | None]) -> Tensor:
    first, *others = (term for term in terms if term is not None)
    for other in others:
        first = first + other
    return first


class _Gathered:
    """Gradients of tables, filled some rows at a time, and of the filters, the last, summed in float32 or better.

    What is not needed or never given is None.
    """

    def __init__(self, of: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self._of, self._needed = of, needed
        self.tensors: list[Tensor | None] = [None] * len(of)

    def add(self, place: slice, rows: Sequence[Tensor | None]) -> None:
        """Take what some rows give."""
        for number, (own, need) in enumerate(zip(rows, self._needed, strict=True)):
            if own is None or not need:
                continue
            total, like = self.tensors[number], self._of[number]
            if number < len(self._of) - 1:
                total = torch.empty_like(like) if total is None else total
                total[place] = own
            elif total is None:
                total = own.to(torch.promote_types(own.dtype, torch.float32))
            else:
                total.add_(own)
            self.tensors[number] = total
