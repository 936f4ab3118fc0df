"""Sums over angles by the addition theorem, as three products that are each other's derivatives.

With weights Y [n_atoms, n_edges, n_functions], densities D [n_atoms, n_functions, channels] and values G [n_atoms,
n_edges, n_degrees, channels], the trilinear form

    T = sum over atoms, edges e, functions k and channels c of Y[e, k] D[k, c] G[e, degree of k, c]

has the derivatives `read` (by G), `accumulate` (by D) and `weigh` (by Y). Each is linear in its two arguments, so the
derivatives of the three are the three again, any number of times (spec/density.md A). Function k has the degree
floor(sqrt(k)), as spherical harmonics have (the highest may lack some); with n_degrees = 1 all have the degree 0.
Triton computes them, or compiled functions do: `angular_triton` and `native` have functions of these names.
"""

from math import isqrt
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ocpgem.kernels import native, use_native, use_triton


def can(weights: Tensor, x: Tensor) -> bool:
    """Say whether kernels compute what starts from both, [..., n_functions] and [..., channels].

    Compiled functions do so for float32 on a CPU, with channels that are a multiple of `native.WIDTH`.
    """
    if x.dtype != weights.dtype:
        return False
    return use_triton(x) or (x.shape[-1] % native.WIDTH == 0 and use_native(weights, x))


def accumulate(weights: Tensor, x: Tensor) -> Tensor:
    """The density of each atom: the sum over its edges of `x`, weighted by functions of each edge.

    weights: [n_atoms, n_edges, n_functions], x: [n_atoms, n_edges, channels], zero-padded, such that `can` says so.
    Returns [n_atoms, n_functions, channels]; products are never rounded to TF32. Can be differentiated any number of
    times.
    """
    found: Tensor = _Accumulate.apply(_kernels(x), weights, x.unsqueeze(2))
    return found


def read(weights: Tensor, density: Tensor) -> Tensor:
    """What each edge reads of the density of its atom, the functions of each degree by themselves.

    weights: [n_atoms, n_edges, n_functions], density: [n_atoms, n_functions, channels].
    Returns [n_atoms, n_edges, n_degrees, channels], n_degrees = ceil(sqrt(n_functions)); else as `accumulate`.
    """
    found: Tensor = _Read.apply(_kernels(density), weights, density, 1 + isqrt(weights.shape[2] - 1))
    return found


def _kernels(x: Tensor) -> ModuleType:
    """What computes the products and all their derivatives."""
    if not use_triton(x):
        return native
    from ocpgem.kernels import angular_triton

    return angular_triton


class _Read(torch.autograd.Function):
    """Y, D -> [n_atoms, n_edges, n_degrees, channels]: the functions of each degree times the density."""

    @staticmethod
    def forward(ctx: Any, by: ModuleType, weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
        ctx.save_for_backward(weights, density)
        ctx.by = by
        found: Tensor = by.read(weights.contiguous(), density.contiguous(), n_degrees)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        weights, density = ctx.saved_tensors
        of_weights = _Weigh.apply(ctx.by, density, grads[0]) if ctx.needs_input_grad[1] else None
        of_density = _Accumulate.apply(ctx.by, weights, grads[0]) if ctx.needs_input_grad[2] else None
        return None, of_weights, of_density, None


class _Accumulate(torch.autograd.Function):
    """Y, G -> [n_atoms, n_functions, channels]: the sum over the edges."""

    @staticmethod
    def forward(ctx: Any, by: ModuleType, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        ctx.by = by
        found: Tensor = by.accumulate(weights.contiguous(), values.contiguous())
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        of_weights = _Weigh.apply(ctx.by, grads[0], values) if ctx.needs_input_grad[1] else None
        of_values = (
            _Read.apply(ctx.by, weights, grads[0], values.shape[2]) if ctx.needs_input_grad[2] else None
        )
        return None, of_weights, of_values


class _Weigh(torch.autograd.Function):
    """D, G -> [n_atoms, n_edges, n_functions]: the sum over the channels."""

    @staticmethod
    def forward(ctx: Any, by: ModuleType, density: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(density, values)
        ctx.by = by
        found: Tensor = by.weigh(density.contiguous(), values.contiguous())
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        density, values = ctx.saved_tensors
        of_density = _Accumulate.apply(ctx.by, grads[0], values) if ctx.needs_input_grad[1] else None
        of_values = (
            _Read.apply(ctx.by, grads[0], density, values.shape[2]) if ctx.needs_input_grad[2] else None
        )
        return None, of_density, of_values
