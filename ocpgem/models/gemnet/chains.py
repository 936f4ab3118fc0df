"""Chains of dense layers, where nearly all of a GemNet's operations are: what they keep and how often they touch it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.models.gemnet.activation import scaled_silu, skip_activated
from ocpgem.models.gemnet.chain_passes import (
    WeightSums,
    gradient_of_rows,
    growth,
    run_rows,
    scaled,
    scaled_back,
    tangents_of_rows,
)
from ocpgem.models.gemnet.in_blocks import aliases, gradients, places_in_cache
from ocpgem.models.gemnet.layers import (
    Dense,
    ForceGradient,
    Frugal,
    Residual,
)


class DenseChain(Frugal, nn.Sequential):
    """A Dense layer with activation, or none, then residual blocks; pre-activations are kept for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, in_dim] -> [n, out_dim]."""
        if not len(self):
            return x
        return self._run(x, self._weights(), isinstance(self[0], Dense))

    def after_first_product(self, x: Tensor) -> Tensor:
        """The chain from the product of its leading dense layer on, [n, out_dim] -> [n, out_dim]."""
        x = scaled_silu(x)
        return self._run(x, self._weights()[1:], leading=False) if len(self) > 1 else x

    def _run(self, x: Tensor, weights: list[Tensor], leading: bool) -> Tensor:
        # torch.compile chooses itself what is kept, and cannot follow the other forms.
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self.as_autograd):
            return plain_chain(x, weights, leading)
        if torch.is_grad_enabled():
            return _Chain.apply(x, leading, self.forces, *weights)
        return _run_chain(x, weights, leading, None)

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self.modules() if isinstance(layer, Dense)]


def residual_stack(dim: int, n_layers: int) -> DenseChain:
    """`n_layers` residual blocks of width `dim`; the identity if zero."""
    return DenseChain(*(Residual(dim) for _ in range(n_layers)))


def widening_stack(in_dim: int, out_dim: int, n_residual: int, leading: str = "always") -> DenseChain:
    """A Dense layer in_dim -> out_dim with activation, then `n_residual` residual blocks.

    leading: "if_widths_differ" leaves the Dense layer out where both widths are equal.
    """
    first = [Dense(in_dim, out_dim, activation=True)] if leading == "always" or in_dim != out_dim else []
    return DenseChain(*first, *residual_stack(out_dim, n_residual))


def plain_chain(x: Tensor, weights: Sequence[Tensor], leading: bool) -> Tensor:
    """What a `DenseChain` computes, in torch's own operations: the reference, and the form for second derivatives."""
    if leading:
        x, weights = scaled_silu(F.linear(x, weights[0])), weights[1:]
    for first, second in zip(weights[::2], weights[1::2], strict=True):
        x = skip_activated(x, F.linear(scaled_silu(F.linear(x, first)), second))
    return x


class _Chain(torch.autograd.Function):
    """`plain_chain`, of which the input and the pre-activations are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leading: bool, forces: ForceGradient | None, *weights: Tensor) -> Tensor:
        kept: list[Tensor] = []
        y = _run_chain(x, weights, leading, kept)
        ctx.save_for_backward(x, *weights, None if forces is None else y, *kept)
        ctx.leading, ctx.forces = leading, forces
        ctx.extra = {}  # by the `_ForceGradient` that they come from: the backward pass, gradients of pre-activations
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        x, *kept = ctx.saved_tensors  # read once: checkpointing hands them out once
        *weights, y = (kept.pop(0) for _ in needed)
        taken = ctx.forces is not None and ctx.forces.is_taken
        of_weights: list[Tensor | None]
        if not torch.is_grad_enabled():
            needed = (needed[0], *(need and not taken for need in needed[1:]))
            now = torch._C._current_graph_task_id()
            # An earlier pass that did not come here, as one for some weights alone, may have left others.
            own = [parts for left_by, parts in ctx.extra.values() if left_by == now]
            extra = [sum(parts) for parts in zip(*own, strict=True)]
            ctx.extra.clear()
            of_x, of_weights = _chain_gradient(x, weights, kept, ctx.leading, grads[0], needed, extra)
        elif taken:
            # y is no argument of the gradient, but makes sure that this gradient's own comes before that of y.
            of_x = _ForceGradient.apply(grads[0], x, y, ctx.extra, ctx.leading, len(weights), *weights, *kept)
            of_weights = [None] * len(weights)
        else:
            of_x, *of_weights = _differentiable_gradient(x, weights, kept[0].dtype, ctx.leading, grads[0])
        return of_x, None, None, *of_weights


class _ForceGradient(torch.autograd.Function):
    """The gradient of a chain by its input alone, which is differentiated once more where forces are trained.

    What that gives to pre-activations is left in `extra` for the gradient of the chain itself, which comes later and
    takes it along: else the way back through the chain would be gone twice. Where that is to be differentiated in turn,
    the chain is computed again in torch's own operations.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        x: Tensor,
        y: Tensor,
        extra: dict[int, tuple[int, list[Tensor]]],
        leading: bool,
        n_weights: int,
        *others: Tensor,
    ) -> Tensor:
        weights, kept = others[:n_weights], list(others[n_weights:])
        back = _times(weights, scaled_back(n_weights, leading), kept[0].dtype)
        of_x = torch.empty_like(x)
        passed: list[Tensor] = []
        nothing = WeightSums(weights, [False] * n_weights)
        for place in places_in_cache(x):
            of_rows, kept = kept[:n_weights], kept[n_weights:]
            own: list[Tensor] = []
            gradient_of_rows(of_x[place], x[place], back, of_rows, leading, grad[place], nothing, own, [])
            passed += own[1:]  # the first is `start`
        ctx.save_for_backward(grad, x, *others, *passed)
        ctx.extra, ctx.leading, ctx.n_weights = extra, leading, n_weights
        return of_x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        n, (of_gradient,) = ctx.n_weights, grads
        grad, x, *saved = ctx.saved_tensors
        weights, pairs = saved[:n], saved[n:]
        n_kept = len(ctx.needs_input_grad) - 6 - n
        kept, passed = pairs[:n_kept], pairs[n_kept:]
        if torch.is_grad_enabled():
            of_grad, of_x, *of_weights = _differentiable_second_gradient(
                x, weights, kept[0].dtype, ctx.leading, grad, of_gradient
            )
            return of_grad, of_x, None, None, None, None, *of_weights, *[None] * n_kept
        sums = WeightSums(weights, ctx.needs_input_grad[6 : 6 + n])
        of_grad, extra = _second_gradient(grad, weights, kept, passed, ctx.leading, of_gradient, sums)
        ctx.extra[id(ctx)] = torch._C._current_graph_task_id(), extra
        of_weights = sums.times(scaled_back(n, ctx.leading))
        return of_grad, None, None, None, None, None, *of_weights, *[None] * n_kept


def _second_gradient(
    grad: Tensor,
    weights: Sequence[Tensor],
    kept: Sequence[Tensor],
    passed: Sequence[Tensor],
    leading: bool,
    of_gradient: Tensor,
    sums: WeightSums,
) -> tuple[Tensor, list[Tensor]]:
    """What the gradient `of_gradient` of `_ForceGradient` gives to that of y and to the pre-activations.

    passed: of each part of the rows, see `gradient_of_rows`, without the first. Adds to the gradients of the weights.
    """
    n = len(weights)
    forth = [weight.to(kept[0].dtype) for weight in scaled(weights, leading)]
    extra: list[Tensor] = []
    of_grad: Tensor | None = None
    for number, place in enumerate(places_in_cache(of_gradient)):
        own = slice(number * n, (number + 1) * n)
        start = grad[place] * (1 / growth(n // 2))
        of_part = [start, *passed[number * (n - 1) : (number + 1) * (n - 1)]]
        tangent, of_rows = tangents_of_rows(forth, kept[own], of_part, leading, of_gradient[place], sums)
        extra += of_rows
        if of_grad is None:
            of_grad = tangent.new_empty(len(of_gradient), tangent.shape[1])
        torch.mul(tangent, 1 / growth(n // 2), out=of_grad[place])
    assert of_grad is not None
    return of_grad, extra


def _run_chain(x: Tensor, weights: Sequence[Tensor], leading: bool, kept: list[Tensor] | None) -> Tensor:
    """The chain without autograd, some rows at a time; `kept` gets the pre-activations of one part after the other."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    forth = [weight.to(dtype) for weight in scaled(weights, leading)]
    y = x.new_empty(len(x), len(weights[-1]), dtype=dtype if leading else torch.promote_types(x.dtype, dtype))
    for place in places_in_cache(x):
        run_rows(x[place], forth, leading, kept, y[place])
    return y


def _differentiable_gradient(
    x: Tensor, weights: Sequence[Tensor], dtype: torch.dtype, leading: bool, grad: Tensor
) -> list[Tensor | None]:
    """Gradients of x and of every weight, with a graph of their own; dtype: that of products in the forward pass."""
    inputs = x, *weights = aliases(x, *weights)
    with torch.autocast(x.device.type, dtype, enabled=dtype != weights[0].dtype):
        y = plain_chain(x, weights, leading)
    return _of_wanted(y, inputs, grad)


def _differentiable_second_gradient(
    x: Tensor,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
    leading: bool,
    grad: Tensor,
    of_gradient: Tensor,
) -> list[Tensor | None]:
    """What the gradient `of_gradient` of that of x gives to grad, x and every weight, with a graph of its own."""
    inputs = grad, x, *weights = aliases(grad, x, *weights)
    of_x = _differentiable_gradient(x, weights, dtype, leading, grad)[0]
    assert of_x is not None
    return _of_wanted(of_x, inputs, of_gradient)


def _of_wanted(value: Tensor, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients, with a graph of their own, of those inputs that want one."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(gradients([value], wanted, [grad], create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in inputs]


def _chain_gradient(
    x: Tensor,
    weights: list[Tensor],
    kept: list[Tensor],
    leading: bool,
    grad: Tensor,
    needed: tuple[bool, ...],
    extra: list[Tensor],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of every weight, where needed, some rows at a time; empties `kept` and `extra`.

    extra: gradients of the pre-activations from elsewhere, or nothing.
    """
    factors = scaled_back(len(weights), leading)
    back = _times(weights, factors, kept[0].dtype)
    sums = WeightSums(weights, needed[1:])
    of_x = torch.empty_like(x) if needed[0] else None
    for place in places_in_cache(x):
        of_rows, more = kept[: len(weights)], extra[: len(weights)]
        del kept[: len(weights)], extra[: len(weights)]
        into = None if of_x is None else of_x[place]
        gradient_of_rows(into, x[place], back, of_rows, leading, grad[place], sums, None, more)
    return of_x, sums.times(factors)


def _times(weights: Sequence[Tensor], factors: Sequence[float], dtype: torch.dtype) -> list[Tensor]:
    return [(weight * factor).to(dtype) for weight, factor in zip(weights, factors, strict=True)]
