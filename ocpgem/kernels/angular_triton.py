"""The three products of `angular.py` in Triton.

One program has an atom, a block of its edges or one degree, and a block of channels; of `_weigh`, which adds over the
channels, an atom, a block of its edges and a degree. Each product is added up function
by function or edge by edge in float32 (float64 for float64), so it is as exact as torch's, does no more arithmetic than
the formula says, and repeats bit by bit: nothing is added atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_EDGES = 16
"""Edges of a block."""


def read(weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
    """[n_atoms, n_edges, n_functions], [n_atoms, n_functions, channels] -> [n_atoms, n_edges, n_degrees, channels]."""
    n_atoms, n_edges, n_functions = weights.shape
    channels = density.shape[2]
    out = weights.new_empty(n_atoms, n_edges, n_degrees, channels)
    if out.numel():
        block = _channels(channels)
        grid = (n_atoms, triton.cdiv(n_edges, _EDGES), triton.cdiv(channels, block))
        _read[grid](
            weights, density, out, n_edges, n_functions, channels, n_degrees, _EDGES, block, _sum_type(out)
        )
    return out


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """[n_atoms, n_edges, n_functions], [n_atoms, n_edges, n_degrees, channels] -> [n_atoms, n_functions, channels]."""
    n_atoms, n_edges, n_functions = weights.shape
    n_degrees, channels = values.shape[2:]
    out = weights.new_empty(n_atoms, n_functions, channels)
    if out.numel():
        block = _channels(channels)
        of_degree = triton.next_power_of_2(n_functions if n_degrees == 1 else 2 * n_degrees - 1)
        grid = (n_atoms, n_degrees, triton.cdiv(channels, block))
        _accumulate[grid](
            weights, values, out, n_edges, n_functions, channels, n_degrees, of_degree, block, _sum_type(out)
        )
    return out


def weigh(density: Tensor, values: Tensor) -> Tensor:
    """[n_atoms, n_functions, channels], [n_atoms, n_edges, n_degrees, channels] -> [n_atoms, n_edges, n_functions]."""
    n_atoms, n_edges, n_degrees, channels = values.shape
    n_functions = density.shape[1]
    out = density.new_empty(n_atoms, n_edges, n_functions)
    if out.numel():
        grid = (n_atoms, triton.cdiv(n_edges, _EDGES), n_degrees)
        _weigh[grid](
            density, values, out, n_edges, n_functions, channels, n_degrees, _EDGES,
            triton.next_power_of_2(channels), _sum_type(out),
        )  # fmt: skip
    return out


def _channels(channels: int) -> int:
    """How many channels a program computes."""
    return min(64, int(triton.next_power_of_2(channels)))


def _sum_type(out: Tensor) -> object:
    return tl.float64 if out.dtype == torch.float64 else tl.float32


@triton.jit
def _functions_of(degree, n_functions, n_degrees: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first function of a degree, and the one behind its last; the highest degree may lack some."""
    first, end = degree * degree, tl.minimum((degree + 1) * (degree + 1), n_functions)
    if n_degrees == 1:
        first, end = degree, n_functions
    return first, end


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    weights, density, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr, SUM_TYPE: tl.constexpr,
):  # fmt: skip
    """out[a, e, l, c] = sum over k of degree l of weights[a, e, k] density[a, k, c]."""
    atom = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * EDGES + tl.arange(0, EDGES)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    edge = atom * n_edges + e
    for degree in range(n_degrees):
        first, end = _functions_of(degree, n_functions, n_degrees)
        total = tl.zeros((EDGES, CHANNELS), dtype=SUM_TYPE)
        for k in range(first, end):
            y = tl.load(weights + edge * n_functions + k, mask=e < n_edges, other=0.0).to(SUM_TYPE)
            d = tl.load(density + (atom * n_functions + k) * channels + c, mask=c < channels, other=0.0)
            total += y[:, None] * d.to(SUM_TYPE)[None, :]
        place = out + (edge[:, None] * n_degrees + degree) * channels + c[None, :]
        inside = (e < n_edges)[:, None] & (c < channels)[None, :]
        tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _accumulate(  # type: ignore[no-untyped-def]
    weights, values, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, FUNCTIONS: tl.constexpr, CHANNELS: tl.constexpr, SUM_TYPE: tl.constexpr,
):  # fmt: skip
    """out[a, k, c] = sum over e of weights[a, e, k] values[a, e, degree of k, c]."""
    atom, degree = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, end = _functions_of(degree, n_functions, n_degrees)
    k = first + tl.arange(0, FUNCTIONS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros((FUNCTIONS, CHANNELS), dtype=SUM_TYPE)
    for e in tl.range(0, n_edges, loop_unroll_factor=4):
        edge = atom * n_edges + e
        y = tl.load(weights + edge * n_functions + k, mask=k < end, other=0.0).to(SUM_TYPE)
        g = tl.load(values + (edge * n_degrees + degree) * channels + c, mask=c < channels, other=0.0)
        total += y[:, None] * g.to(SUM_TYPE)[None, :]
    place = out + (atom * n_functions + k[:, None]) * channels + c[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(k < end)[:, None] & (c < channels)[None, :])


@triton.jit
def _weigh(  # type: ignore[no-untyped-def]
    density, values, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, EDGES: tl.constexpr, CHANNELS: tl.constexpr, SUM_TYPE: tl.constexpr,
):  # fmt: skip
    """out[a, e, k] = sum over c of density[a, k, c] values[a, e, degree of k, c]."""
    atom, degree = tl.program_id(0).to(tl.int64), tl.program_id(2)
    first, end = _functions_of(degree, n_functions, n_degrees)
    e = tl.program_id(1) * EDGES + tl.arange(0, EDGES)
    c = tl.arange(0, CHANNELS)
    edge = atom * n_edges + e
    place = values + (edge[:, None] * n_degrees + degree) * channels + c[None, :]
    g = tl.load(place, mask=(e < n_edges)[:, None] & (c < channels)[None, :], other=0.0).to(SUM_TYPE)
    for k in range(first, end):
        d = tl.load(density + (atom * n_functions + k) * channels + c, mask=c < channels, other=0.0)
        found = tl.sum(g * d.to(SUM_TYPE)[None, :], axis=1)
        tl.store(out + edge * n_functions + k, found.to(out.dtype.element_ty), mask=e < n_edges)
