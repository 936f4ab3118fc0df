"""The three products of `angular.py` in Triton: one program per atom and block of channels or of edges.

Nothing is added atomically, so results repeat bit by bit. What has a degree is selected by a mask over the functions,
which wastes a factor n_degrees of cheap arithmetic and saves reading anything twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_EDGES = 32
"""Edges of a tile."""


def launch_read(weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
    """[n_atoms, n_edges, n_functions], [n_atoms, n_functions, channels] -> [n_atoms, n_edges, n_degrees, channels]."""
    n_atoms, n_edges, n_functions = weights.shape
    channels = density.shape[2]
    out = weights.new_empty(n_atoms, n_edges, n_degrees, channels)
    sizes = _Sizes(n_functions, channels, weights)
    if out.numel():
        grid = (n_atoms, triton.cdiv(channels, sizes.channels))
        _read[grid](weights, density, out, n_edges, n_functions, channels, n_degrees, *sizes.constants())
    return out


def launch_accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """[n_atoms, n_edges, n_functions], [n_atoms, n_edges, n_degrees, channels] -> [n_atoms, n_functions, channels]."""
    n_atoms, n_edges, n_functions = weights.shape
    n_degrees, channels = values.shape[2:]
    out = weights.new_empty(n_atoms, n_functions, channels)
    sizes = _Sizes(n_functions, channels, weights)
    if out.numel():
        grid = (n_atoms, triton.cdiv(channels, sizes.channels))
        _accumulate[grid](weights, values, out, n_edges, n_functions, channels, n_degrees, *sizes.constants())
    return out


def launch_weigh(density: Tensor, values: Tensor) -> Tensor:
    """[n_atoms, n_functions, channels], [n_atoms, n_edges, n_degrees, channels] -> [n_atoms, n_edges, n_functions]."""
    n_atoms, n_edges, n_degrees, channels = values.shape
    n_functions = density.shape[1]
    out = density.new_empty(n_atoms, n_edges, n_functions)
    sizes = _Sizes(n_functions, channels, density)
    if out.numel():
        grid = (n_atoms, triton.cdiv(n_edges, _EDGES))
        _weigh[grid](density, values, out, n_edges, n_functions, channels, n_degrees, *sizes.constants())
    return out


class _Sizes:
    """Sizes of tiles, powers of two of at least 16 as products in Triton need them, and how products are rounded."""

    def __init__(self, n_functions: int, channels: int, like: Tensor) -> None:
        self.functions = max(16, triton.next_power_of_2(n_functions))
        self.channels = min(64, max(16, triton.next_power_of_2(channels)))
        self.sum_type = tl.float64 if like.dtype == torch.float64 else tl.float32
        exact = like.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
        self.rounding = "ieee" if exact else "tf32"

    def constants(self) -> tuple[object, ...]:
        """The constants that end the arguments of every kernel."""
        return _EDGES, self.functions, self.channels, self.sum_type, self.rounding


@triton.jit
def _degree_of(k, n_degrees: tl.constexpr):  # type: ignore[no-untyped-def]
    """floor(sqrt(k)) of the number k of each function, 0 if there is one degree."""
    degree = k * 0
    for square in tl.static_range(1, n_degrees):
        degree += tl.where(k >= square * square, 1, 0)
    return degree


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    weights, density, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, EDGES: tl.constexpr, FUNCTIONS: tl.constexpr, CHANNELS: tl.constexpr,
    SUM_TYPE: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """out[a, e, l, c] = sum over k of degree l of weights[a, e, k] density[a, k, c]."""
    atom = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, FUNCTIONS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    degree = _degree_of(k, n_degrees)
    of_density = (k < n_functions)[:, None] & (c < channels)[None, :]
    d = tl.load(
        density + (atom * n_functions + k[:, None]) * channels + c[None, :], mask=of_density, other=0.0
    )
    for first in range(0, n_edges, EDGES):
        e = first + tl.arange(0, EDGES)
        of_weights = (e < n_edges)[:, None] & (k < n_functions)[None, :]
        edge = atom * n_edges + e[:, None]
        y = tl.load(weights + edge * n_functions + k[None, :], mask=of_weights, other=0.0)
        for number in tl.static_range(0, n_degrees):
            of_degree = tl.where((degree == number)[None, :], y, 0.0).to(d.dtype)
            found = tl.dot(of_degree, d, input_precision=ROUNDING, out_dtype=SUM_TYPE)
            place = out + (edge * n_degrees + number) * channels + c[None, :]
            tl.store(
                place,
                found.to(out.dtype.element_ty),
                mask=(e < n_edges)[:, None] & (c < channels)[None, :],
            )


@triton.jit
def _accumulate(  # type: ignore[no-untyped-def]
    weights, values, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, EDGES: tl.constexpr, FUNCTIONS: tl.constexpr, CHANNELS: tl.constexpr,
    SUM_TYPE: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """out[a, k, c] = sum over e of weights[a, e, k] values[a, e, degree of k, c]."""
    atom = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, FUNCTIONS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    degree = _degree_of(k, n_degrees)
    total = tl.zeros((FUNCTIONS, CHANNELS), dtype=SUM_TYPE)
    for first in range(0, n_edges, EDGES):
        e = first + tl.arange(0, EDGES)
        edge = atom * n_edges + e
        of_weights = (k < n_functions)[:, None] & (e < n_edges)[None, :]
        y = tl.load(weights + edge[None, :] * n_functions + k[:, None], mask=of_weights, other=0.0)
        for number in tl.static_range(0, n_degrees):
            place = values + (edge[:, None] * n_degrees + number) * channels + c[None, :]
            g = tl.load(place, mask=(e < n_edges)[:, None] & (c < channels)[None, :], other=0.0)
            of_degree = tl.where((degree == number)[:, None], y, 0.0).to(g.dtype)
            total += tl.dot(of_degree, g, input_precision=ROUNDING, out_dtype=SUM_TYPE)
    place = out + (atom * n_functions + k[:, None]) * channels + c[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(k < n_functions)[:, None] & (c < channels)[None, :])


@triton.jit
def _weigh(  # type: ignore[no-untyped-def]
    density, values, out, n_edges, n_functions, channels,
    n_degrees: tl.constexpr, EDGES: tl.constexpr, FUNCTIONS: tl.constexpr, CHANNELS: tl.constexpr,
    SUM_TYPE: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """out[a, e, k] = sum over c of density[a, k, c] values[a, e, degree of k, c]."""
    atom = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, FUNCTIONS)
    e = tl.program_id(1) * EDGES + tl.arange(0, EDGES)
    edge = atom * n_edges + e[:, None]
    degree = _degree_of(k, n_degrees)
    total = tl.zeros((EDGES, FUNCTIONS), dtype=SUM_TYPE)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        place = density + (atom * n_functions + k[None, :]) * channels + c[:, None]
        d = tl.load(place, mask=(c < channels)[:, None] & (k < n_functions)[None, :], other=0.0)
        for number in tl.static_range(0, n_degrees):
            place = values + (edge * n_degrees + number) * channels + c[None, :]
            g = tl.load(place, mask=(e < n_edges)[:, None] & (c < channels)[None, :], other=0.0)
            product = tl.dot(g.to(d.dtype), d, input_precision=ROUNDING, out_dtype=SUM_TYPE)
            total += tl.where((degree == number)[None, :], product, 0.0)
    tl.store(
        out + edge * n_functions + k[None, :],
        total.to(out.dtype.element_ty),
        mask=(e < n_edges)[:, None] & (k < n_functions)[None, :],
    )
