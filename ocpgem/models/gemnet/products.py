"""Products of many small matrices, whose derivatives are such products again.

torch computes some derivatives of a derivative as the transpose of what is wanted. For matrices of a few rows that
takes libraries three times as long: [64, 16] times [16, 7] instead of [7, 16] times [16, 64].
"""

from typing import Any

import torch
from torch import Tensor

from ocpgem.kernels import native, use_native


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, [n, rows, k] @ [n, k, columns] of one dtype; can be differentiated any number of times."""
    if torch.compiler.is_compiling():  # which differentiates by itself
        return left @ right
    return _Times.apply(*_of_one_type(as_autocast(left), as_autocast(right)))


def transposed_product(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right, [n, k, rows]^T @ [n, k, columns]; else as `product`."""
    if torch.compiler.is_compiling():
        return left.transpose(1, 2) @ right
    return _TransposedTimes.apply(*_of_one_type(as_autocast(left), as_autocast(right)))


def as_autocast(x: Tensor) -> Tensor:
    """A factor of a product in the precision that autocast asks for, if it is on; float64 stays as it is."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _of_one_type(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if left.dtype != right.dtype:
        raise TypeError(f"factors are of {left.dtype} and {right.dtype}; both must be of one dtype")
    return left, right


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the lower precision of the two, as products of a gradient in bfloat16 are computed."""
    dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return a.to(dtype), b.to(dtype)


def _save_needed(ctx: Any, a: Tensor, b: Tensor) -> None:
    """Keep each factor only if the other one needs a gradient."""
    ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """left @ right^T, [n, rows, k] @ [n, columns, k]^T; without autograd."""
    found = native.times_transposed(left, right) if use_native(left, right) else None
    return left @ right.transpose(1, 2) if found is None else found


class _Times(torch.autograd.Function):
    """A, B -> A B."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        _save_needed(ctx, a, b)
        a, b = _alike(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (of_product,), needed = ctx.saved_tensors, grads, ctx.needs_input_grad
        of_a = _TimesTransposed.apply(of_product, b) if needed[0] else None
        return of_a, _TransposedTimes.apply(a, of_product) if needed[1] else None


class _TimesTransposed(torch.autograd.Function):
    """A, B -> A B^T."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        _save_needed(ctx, a, b)
        return times_transposed(*_alike(a, b))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (of_product,), needed = ctx.saved_tensors, grads, ctx.needs_input_grad
        of_a = _Times.apply(of_product, b) if needed[0] else None
        return of_a, _TransposedTimes.apply(of_product, a) if needed[1] else None


class _TransposedTimes(torch.autograd.Function):
    """A, B -> A^T B."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        _save_needed(ctx, a, b)
        a, b = _alike(a, b)
        return a.transpose(1, 2) @ b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (a, b), (of_product,), needed = ctx.saved_tensors, grads, ctx.needs_input_grad
        of_a = _TimesTransposed.apply(b, of_product) if needed[0] else None
        return of_a, _Times.apply(a, of_product) if needed[1] else None
