"""A residual with its activation in one pass over memory: scale * (base + factor * SiLU(x)), and its derivatives.

The derivatives of SiLU to the third order are known to the kernel, so the derivatives of the function are the function
again, with `order` one higher; above the third order torch's own operations take over.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem.kernels.silu_triton import launch_silu

_HIGHEST = 3


def silu_sum(x: Tensor, alpha: float, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale * (base + alpha * SiLU(x)), without `base` scale * alpha * SiLU(x).

    x, base: equal shapes, on a GPU unless Triton interprets; computed in float32 (float64 for float64). The result has
    the common dtype of both. Can be differentiated any number of times.
    """
    dtype = x.dtype if base is None else torch.promote_types(x.dtype, base.dtype)
    found: Tensor = _SiluSum.apply(x, None, base, 0, alpha * scale, scale, dtype)
    return found


class _SiluSum(torch.autograd.Function):
    """scale * base + alpha * factor * (the derivative of SiLU of some order)(x); factor and base may be left out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factor: Tensor | None,
        base: Tensor | None,
        order: int,
        alpha: float,
        scale: float,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, factor)
        ctx.order, ctx.alpha, ctx.scale = order, alpha, scale
        ctx.base_dtype = None if base is None else base.dtype
        factor = None if factor is None else factor.contiguous()
        base = None if base is None else base.contiguous()
        return launch_silu(x.contiguous(), factor, base, order, alpha, scale, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, factor = ctx.saved_tensors
        (grad,) = grads
        of_x = of_factor = of_base = None
        if ctx.needs_input_grad[0]:
            of_x = _term(x, grad if factor is None else grad * factor, ctx.order + 1, ctx.alpha, x.dtype)
        if ctx.needs_input_grad[1]:
            of_factor = _term(x, grad, ctx.order, ctx.alpha, factor.dtype)
        if ctx.needs_input_grad[2]:
            of_base = (grad * ctx.scale).to(ctx.base_dtype)
        return of_x, of_factor, of_base, None, None, None, None


def _term(x: Tensor, factor: Tensor, order: int, alpha: float, dtype: torch.dtype) -> Tensor:
    """alpha * factor * (the derivative of SiLU of an order)(x)."""
    if order <= _HIGHEST:
        found: Tensor = _SiluSum.apply(x, factor, None, order, alpha, 1.0, dtype)
        return found
    with torch.enable_grad():
        value = x if x.requires_grad else x.detach().requires_grad_()
        derivative = F.silu(value)
        for _ in range(order):
            (derivative,) = torch.autograd.grad(derivative.sum(), value, create_graph=True)
    return (alpha * factor * derivative).to(dtype)
