"""SiLU with its derivatives in Triton, several in one pass: the functions of `native`, for any floating-point dtype.

Every element is read once and computed in float32 (float64 where a tensor is float64), whatever it is stored in.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def silu(
    x: Tensor,
    factors: tuple[Tensor, ...],
    base: Tensor | None,
    order: int,
    alpha: float,
    scale: float,
    out: Tensor,
) -> None:
    """out = alpha * the product of up to two factors * (a derivative of SiLU)(x) + scale * base.

    order: 0 to 3, of the derivative. out: contiguous; may be any of the others. Two factors and a base do not come
    together, as for `native`.
    """
    factor, other, *_ = *factors, None, None
    _start(_silu, (x, factor, other, base, out), order, alpha, scale)


def silu_and_gradient(x: Tensor, grad: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """SiLU(x), and grad * SiLU'(x) + base."""
    value, of_x = _contiguous_like(x), _contiguous_like(x)
    _start(_silu_and_gradient, (x, grad, base, value, of_x))
    return value, of_x


def silu_tangents(x: Tensor, tangent: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tangent * SiLU'(x), tangent * grad * SiLU''(x), which overwrites tangent, and grad * SiLU'(x)."""
    tangent = tangent.contiguous()
    behind, of_x = _contiguous_like(x), _contiguous_like(x)
    _start(_silu_tangents, (x, tangent, grad, behind, of_x))
    return behind, tangent, of_x


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _start(kernel: Any, tensors: tuple[Tensor | None, ...], *constants: float) -> None:
    """Run a kernel, a program for each block of elements; what it writes to is contiguous.

    Constants are compiled in: passed on, they would be rounded to float32 in front of float64 as well.
    """
    given = [None if tensor is None else tensor.contiguous() for tensor in tensors]
    dtypes = {tensor.dtype for tensor in given if tensor is not None}
    n = next(tensor.numel() for tensor in given if tensor is not None)
    if n:
        number = tl.float64 if torch.float64 in dtypes else tl.float32
        kernel[(triton.cdiv(n, _BLOCK),)](*given, n, *constants, number, _BLOCK)


@triton.jit
def _derivative(v, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of SiLU; with s = sigmoid(v) and q = 1 - 2 s, SiLU(v) = v s and s' = s (1 - s)."""
    s = 1.0 / (1.0 + tl.exp(-v))
    slope = s * (1.0 - s)
    q = 1.0 - 2.0 * s
    if ORDER == 0:
        found = v * s
    elif ORDER == 1:
        found = s + v * slope
    elif ORDER == 2:
        found = slope * (2.0 + v * q)
    else:
        found = slope * (3.0 * q + v * (q * q - 2.0 * slope))
    return found


@triton.jit
def _places(n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The elements of a program, and which of them exist."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return place, place < n


@triton.jit
def _read(tensor, place, inside, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.load(tensor + place, mask=inside, other=0.0).to(TYPE)


@triton.jit
def _write(tensor, place, inside, found):  # type: ignore[no-untyped-def]
    tl.store(tensor + place, found.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def _silu(  # type: ignore[no-untyped-def]
    x, factor, other, base, out, n,
    ORDER: tl.constexpr, ALPHA: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place, inside = _places(n, BLOCK)
    found = _derivative(_read(x, place, inside, TYPE), ORDER) * ALPHA
    if factor is not None:
        found = found * _read(factor, place, inside, TYPE)
    if other is not None:
        found = found * _read(other, place, inside, TYPE)
    if base is not None:
        found = found + SCALE * _read(base, place, inside, TYPE)
    _write(out, place, inside, found)


@triton.jit
def _silu_and_gradient(  # type: ignore[no-untyped-def]
    x, grad, base, value, of_x, n, TYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place, inside = _places(n, BLOCK)
    v = _read(x, place, inside, TYPE)
    found = _read(grad, place, inside, TYPE) * _derivative(v, 1)
    if base is not None:
        found = found + _read(base, place, inside, TYPE)
    _write(value, place, inside, _derivative(v, 0))
    _write(of_x, place, inside, found)


@triton.jit
def _silu_tangents(  # type: ignore[no-untyped-def]
    x, tangent, grad, behind, of_x, n, TYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    place, inside = _places(n, BLOCK)
    v, g = _read(x, place, inside, TYPE), _read(grad, place, inside, TYPE)
    t, first = _read(tangent, place, inside, TYPE), _derivative(v, 1)
    _write(behind, place, inside, t * first)
    _write(tangent, place, inside, t * g * _derivative(v, 2))
    _write(of_x, place, inside, g * first)
