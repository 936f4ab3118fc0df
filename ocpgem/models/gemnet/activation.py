"""The activation SiLU and its derivatives, which keep nothing but what they were given.

With autograd: `silu_sum` and what is made of it. Without, for functions that write their derivatives out: `silu_terms`,
`silu_and_gradient`, `silu_tangents`, which kernels compute in one pass where there are some (`ocpgem.kernels`).

torch differentiates SiLU twice, but takes its derivative apart for that, into operations that each keep and write what
they compute. Models whose forces are gradients differentiate every activation twice.
"""

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem.kernels import native, use_native, use_triton
from ocpgem.models.gemnet.in_blocks import places_in_cache

SILU_SCALE = 1 / 0.6
"""SiLU is divided by 0.6 so that it keeps the variance of a standard normal input."""
INV_SQRT_2 = 2.0**-0.5
_HIGHEST = 3
"""The highest derivative of SiLU that a kernel knows."""


def scaled_silu(x: Tensor) -> Tensor:
    """SiLU(x) / 0.6, of one dimension or more."""
    return silu_sum(x, SILU_SCALE)


def skip_activated(x: Tensor, update: Tensor) -> Tensor:
    """(x + SiLU(update) / 0.6) / sqrt(2)."""
    return silu_sum(update, SILU_SCALE, x, INV_SQRT_2)


def silu_sum(x: Tensor, alpha: float, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """scale * (base + alpha * SiLU(x)), without `base` scale * alpha * SiLU(x).

    x, base: equal shapes. The result has the common dtype of both. Can be differentiated any number of times.
    """
    dtype = x.dtype if base is None else torch.promote_types(x.dtype, base.dtype)
    if torch.compiler.is_compiling():  # which differentiates by itself
        found = F.silu(x) * (alpha * scale)
        return found if base is None else found + base * scale
    return _SiluSum.apply(x, None, base, 0, alpha * scale, scale, dtype)


def silu_terms(
    x: Tensor,
    factors: tuple[Tensor, ...] = (),
    base: Tensor | None = None,
    *,
    order: int = 0,
    alpha: float = 1.0,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """alpha * the product of the factors * (the derivative of SiLU of an order)(x) + scale * base, without autograd.

    factors, base, out: of the shape of x; at most two factors. `out` may be any of the others; without it, the result
    has the common dtype of x and base.
    """
    if out is None:
        dtype = x.dtype if base is None else torch.promote_types(x.dtype, base.dtype)
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
    known = order <= _HIGHEST and (base is None or len(factors) < 2) and out.is_contiguous()
    if known and (kernels := _kernels(x, *factors, base, out)):
        kernels.silu(x, factors, base, order, alpha, scale, out)
    else:
        _in_torch(x, factors, base, order, alpha, scale, out)
    return out


def silu_and_gradient(x: Tensor, grad: Tensor, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """SiLU(x), and grad * SiLU'(x) + base, of the dtype of x; without autograd."""
    if kernels := _kernels(x, grad, base):
        return kernels.silu_and_gradient(x, grad, base)
    return silu_terms(x), silu_terms(x, (grad,), base, order=1, out=torch.empty_like(x))


def silu_tangents(x: Tensor, tangent: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tangent * SiLU'(x), tangent * grad * SiLU''(x), and grad * SiLU'(x); may overwrite tangent; without autograd."""
    if kernels := _kernels(x, tangent, grad):
        return kernels.silu_tangents(x, tangent, grad)
    slope, bend = two_derivatives(x)
    return tangent * slope, tangent.mul_(grad).mul_(bend), slope.mul_(grad)


def _kernels(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """What computes SiLU of these tensors in one pass: `native` or `silu_triton`, which have the same functions.

    None where that is left to torch, which also says what is wrong with unequal shapes.
    """
    given = [x, *(other for other in others if other is not None)]
    if any(tensor.shape != x.shape for tensor in given):
        return None
    if use_native(*given) and all(tensor.is_contiguous() for tensor in given):
        return native
    if use_triton(x):
        from ocpgem.kernels import silu_triton

        return silu_triton
    return None


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
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        factors = () if factor is None else (factor,)
        return silu_terms(x, factors, base, order=order, alpha=alpha, scale=scale, out=out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, factor = ctx.saved_tensors
        (grad,) = grads
        of_x = of_factor = of_base = None
        if ctx.needs_input_grad[0]:
            of_x = _product_term(x, grad, factor, ctx.order + 1, ctx.alpha, x.dtype)
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
    return (alpha * factor * _derivative(x, order)).to(dtype)


def _product_term(
    x: Tensor, grad: Tensor, factor: Tensor | None, order: int, alpha: float, dtype: torch.dtype
) -> Tensor:
    """`_term` of the product of both factors, which is not kept where nothing is differentiated again."""
    if factor is None:
        return _term(x, grad, order, alpha, dtype)
    if order > _HIGHEST or torch.is_grad_enabled():
        return _term(x, grad * factor, order, alpha, dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    return silu_terms(x, (grad, factor), order=order, alpha=alpha, out=out)


def _derivative(x: Tensor, order: int) -> Tensor:
    """The derivative of SiLU of an order, by differentiating it as often."""
    with torch.enable_grad():
        value = x if x.requires_grad else x.detach().requires_grad_()
        derivative = F.silu(value)
        for _ in range(order):
            (derivative,) = torch.autograd.grad(derivative.sum(), value, create_graph=True)
    return derivative


def _in_torch(
    x: Tensor,
    factors: tuple[Tensor, ...],
    base: Tensor | None,
    order: int,
    alpha: float,
    scale: float,
    out: Tensor,
) -> None:
    """`silu_terms` in torch's operations, some rows at a time."""
    alone = alpha == 1 and base is None and len(factors) == order and out.dtype == x.dtype
    for place in places_in_cache(x):
        rows = x[place]
        if order == 0 and alone:
            torch.ops.aten.silu.out(rows, out=out[place])
            continue
        if order == 1 and alone:
            torch.ops.aten.silu_backward.grad_input(
                factors[0][place].to(rows.dtype), rows, grad_input=out[place]
            )
            continue
        if order == 0:
            found = F.silu(rows)
        elif order == 1:
            factor = factors[0][place].to(rows.dtype) if factors else torch.ones_like(rows)
            found = torch.ops.aten.silu_backward(factor, rows)
        else:
            found = two_derivatives(rows)[1] if order == 2 else _derivative(rows.detach(), order).detach()
        for factor in factors[int(order == 1) :]:
            found.mul_(factor[place])
        if base is None:
            torch.mul(found, alpha, out=out[place])
        else:
            scaled = base[place] if scale == 1 else base[place] * scale
            torch.add(scaled, found, alpha=alpha, out=out[place])


def two_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU'(x) and SiLU''(x), with s = sigmoid(x) and w = s (1 - s): s + x w, and w (2 + x (1 - 2 s))."""
    if x.dtype.itemsize < 4:  # differences of rounded numbers would lose what is left of their digits
        first, second = two_derivatives(x.float())
        return first.to(x.dtype), second.to(x.dtype)
    s = torch.sigmoid(x)
    w = torch.addcmul(s, s, s, value=-1)
    second = torch.addcmul(x, x, s, value=-2).add_(2).mul_(w)
    return s.addcmul_(x, w), second
