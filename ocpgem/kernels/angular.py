"""Sums over angles by the addition theorem, as three products that are each other's derivatives.

With weights Y [n_atoms, n_edges, n_functions], densities D [n_atoms, n_functions, channels] and values G [n_atoms,
n_edges, n_degrees, channels], the trilinear form

    T = sum over atoms, edges e, functions k and channels c of Y[e, k] D[k, c] G[e, degree of k, c]

has the derivatives `read` (by G), `accumulate` (by D) and `weigh` (by Y). Each is linear in its two arguments, so the
derivatives of the three are the three again, any number of times (spec/density.md A). Function k has the degree
floor(sqrt(k)), as spherical harmonics have (the highest may lack some); with n_degrees = 1 all have the degree 0.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ocpgem import kernels
from ocpgem.kernels import native, use_native, use_triton


def can(weights: Tensor, x: Tensor) -> bool:
    """Say whether kernels compute what starts from both, [..., n_functions] and [..., channels]."""
    if x.dtype != weights.dtype:
        return False
    return use_triton(x) or (x.shape[-1] % native.WIDTH == 0 and use_native(weights, x))


def accumulate(weights: Tensor, x: Tensor) -> Tensor:
    """The density of each atom: the sum over its edges of `x`, weighted by functions of each edge.

    weights: [n_atoms, n_edges, n_functions], x: [n_atoms, n_edges, channels], zero-padded, both of one type,
    such that `can` says so. Returns [n_atoms, n_functions, channels]; products are never rounded to TF32.
    Can be differentiated any number of times.
    """
    found: Tensor = _Accumulate.apply(weights, x.unsqueeze(2))
    return found


def read(weights: Tensor, density: Tensor) -> Tensor:
    """What each edge reads of the density of its atom, the functions of each degree by themselves.

    weights: [n_atoms, n_edges, n_functions], density: [n_atoms, n_functions, channels].
    Returns [n_atoms, n_edges, n_degrees, channels], n_degrees = ceil(sqrt(n_functions)); else as `accumulate`.
    """
    found: Tensor = _Read.apply(weights, density, 1 + isqrt(weights.shape[2] - 1))
    return found


class _Read(torch.autograd.Function):
    """Y, D -> [n_atoms, n_edges, n_degrees, channels]: the functions of each degree times the density."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
        ctx.save_for_backward(weights, density)
        return _launch_read(weights.contiguous(), density.contiguous(), n_degrees)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, density = ctx.saved_tensors
        of_weights = _Weigh.apply(density, grads[0]) if ctx.needs_input_grad[0] else None
        of_density = _Accumulate.apply(weights, grads[0]) if ctx.needs_input_grad[1] else None
        return of_weights, of_density, None


class _Accumulate(torch.autograd.Function):
    """Y, G -> [n_atoms, n_functions, channels]: the sum over the edges."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values)
        return _launch_accumulate(weights.contiguous(), values.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        weights, values = ctx.saved_tensors
        of_weights = _Weigh.apply(grads[0], values) if ctx.needs_input_grad[0] else None
        of_values = _Read.apply(weights, grads[0], values.shape[2]) if ctx.needs_input_grad[1] else None
        return of_weights, of_values


class _Weigh(torch.autograd.Function):
    """D, G -> [n_atoms, n_edges, n_functions]: the sum over the channels."""

    @staticmethod
    def forward(ctx: Any, density: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(density, values)
        return _launch_weigh(density.contiguous(), values.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        density, values = ctx.saved_tensors
        of_density = _Accumulate.apply(grads[0], values) if ctx.needs_input_grad[0] else None
        of_values = _Read.apply(grads[0], density, values.shape[2]) if ctx.needs_input_grad[1] else None
        return of_density, of_values


def _launch_read(weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
    if kernels.BACKEND != "triton":
        return native.read(weights, density, n_degrees)
    from ocpgem.kernels import angular_triton

    return angular_triton.launch_read(weights, density, n_degrees)


def _launch_accumulate(weights: Tensor, values: Tensor) -> Tensor:
    if kernels.BACKEND != "triton":
        return native.accumulate(weights, values)
    from ocpgem.kernels import angular_triton

    return angular_triton.launch_accumulate(weights, values)


def _launch_weigh(density: Tensor, values: Tensor) -> Tensor:
    if kernels.BACKEND != "triton":
        return native.weigh(density, values)
    from ocpgem.kernels import angular_triton

    return angular_triton.launch_weigh(density, values)
