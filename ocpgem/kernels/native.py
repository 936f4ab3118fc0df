"""SiLU with its derivatives, A B^T of many small matrices, sums over angles, on a CPU: silu.c, products.c, angular.c.

torch reads and writes activations once for each operation, and its exponential takes longer. Tensors are float32 and on
the CPU. `benchmarks/native_kernels.py` measures all of it beside torch's operations.
"""

import ctypes
import hashlib
import re
import sysconfig
from functools import cache
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor

from ocpgem.errors import one_line

_POINTER, _INT, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ARGUMENTS = {
    "ocpgem_silu": [_POINTER] * 5 + [_SIZE, _INT, _FLOAT, _FLOAT, _INT],
    "ocpgem_silu_and_gradient": [_POINTER] * 5 + [_SIZE, _INT],
    "ocpgem_silu_tangents": [_POINTER] * 6 + [_SIZE, _INT],
    "ocpgem_times_transposed": [_POINTER] * 3 + [_SIZE] * 8 + [_INT],
    "ocpgem_quadruplet_sum": [_POINTER, _POINTER, _INT],
    "ocpgem_read": [_POINTER] * 3 + [_SIZE] * 5 + [_INT],
    "ocpgem_accumulate": [_POINTER] * 3 + [_SIZE] * 5 + [_INT],
    "ocpgem_weigh": [_POINTER] * 3 + [_SIZE] * 5 + [_INT],
}
_LEAST_TERMS, _MOST_COLUMNS = 8, 15
WIDTH = 8
"""Channels that functions over channels compute together."""
_SOURCES = ("common.h", "product.h", "angular.c", "products.c", "quadruplets.c", "silu.c")
_FILE = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
_RUNTIME = re.compile(r"lib(g|i|)omp\d?[-.].*")


@cache
def library(folder: Path = Path(__file__).parent) -> tuple[ctypes.CDLL | None, str]:
    """Load the compiled functions; returns None and the reason where that cannot be."""
    if not (folder / _FILE).exists():
        return None, "what is written in C is not compiled: that takes gcc 12 or later and `make setup`"
    try:
        loaded = ctypes.CDLL(str(folder / _FILE))
        loaded.ocpgem_sources.restype = ctypes.c_char_p
        for name, arguments in _ARGUMENTS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = arguments, None
        loaded.ocpgem_quadruplet_memory.argtypes = [_POINTER]
        loaded.ocpgem_quadruplet_memory.restype = loaded.ocpgem_quadruplet_arguments.restype = _SIZE
        made_of: str = loaded.ocpgem_sources().decode()
    except (AttributeError, OSError) as error:  # of another system, or of an earlier version of the sources
        return None, f"{_FILE} cannot be used ({one_line(error)}); run `make setup`"
    sources = [folder / name for name in _SOURCES]  # an installed package has none
    if all(path.exists() for path in sources):
        here = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
        if made_of != here:
            return None, f"{_FILE} was compiled from other sources than these; run `make setup`"
    runtimes = _threads_come_from()
    if len(runtimes) > 1:  # whose threads would wait for each other's
        return None, f"torch brings an OpenMP of its own here ({', '.join(sorted(runtimes))})"
    return loaded, "compiled"


def _threads_come_from() -> set[str]:
    """The OpenMP libraries of this process, which torch and this library share; nothing where Linux does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = (line.rpartition("/")[2] for line in lines)
    return {name for name in names if _RUNTIME.fullmatch(name)}


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

    order: 0 to 3, of the derivative; base only with less than two factors. out may be any of the others.
    """
    factor, other, *_ = *factors, None, None
    functions().ocpgem_silu(
        out.data_ptr(), x.data_ptr(), _pointer(factor), _pointer(other), _pointer(base), x.numel(),
        order, alpha, scale, torch.get_num_threads(),
    )  # fmt: skip


def silu_and_gradient(x: Tensor, grad: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """SiLU(x), and grad * SiLU'(x) + base."""
    value, of_x = torch.empty_like(x), torch.empty_like(x)
    functions().ocpgem_silu_and_gradient(
        value.data_ptr(), of_x.data_ptr(), x.data_ptr(), grad.data_ptr(), _pointer(base), x.numel(),
        torch.get_num_threads(),
    )  # fmt: skip
    return value, of_x


def silu_tangents(x: Tensor, tangent: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tangent * SiLU'(x), tangent * grad * SiLU''(x), which overwrites tangent, and grad * SiLU'(x)."""
    behind, of_x = torch.empty_like(x), torch.empty_like(x)
    functions().ocpgem_silu_tangents(
        behind.data_ptr(), tangent.data_ptr(), of_x.data_ptr(), x.data_ptr(), tangent.data_ptr(),
        grad.data_ptr(), x.numel(), torch.get_num_threads(),
    )  # fmt: skip
    return behind, tangent, of_x


def times_transposed(left: Tensor, right: Tensor) -> Tensor | None:
    """left @ right^T, [n, rows, k] @ [n, columns, k]^T; None where that is better left to torch."""
    if not left.dim() == right.dim() == 3 or left.shape[::2] != right.shape[::2]:
        return None  # torch repeats a factor, or says what is wrong
    (n, rows, terms), columns = left.shape, right.shape[1]
    if not left.stride(2) == right.stride(2) == 1 or terms < _LEAST_TERMS or columns > _MOST_COLUMNS:
        return None
    out = left.new_empty(n, rows, columns)
    functions().ocpgem_times_transposed(
        out.data_ptr(), left.data_ptr(), right.data_ptr(), n, rows, terms, columns,
        *left.stride()[:2], *right.stride()[:2], torch.get_num_threads(),
    )  # fmt: skip
    return out


def read(weights: Tensor, density: Tensor, n_degrees: int) -> Tensor:
    """As `angular_triton.read`; tensors are contiguous and channels a multiple of `WIDTH`, as below."""
    n_atoms, n_edges, n_functions = weights.shape
    channels = density.shape[2]
    _require_sizes(density, (n_atoms, n_functions, channels), n_functions, n_degrees)
    out = weights.new_empty(n_atoms, n_edges, n_degrees, channels)
    sizes = n_atoms, n_edges, n_functions, n_degrees, channels
    _compute("ocpgem_read", out, weights, density, sizes)
    return out


def accumulate(weights: Tensor, values: Tensor) -> Tensor:
    """As `angular_triton.accumulate`."""
    n_atoms, n_edges, n_functions = weights.shape
    n_degrees, channels = values.shape[2:]
    _require_sizes(values, (n_atoms, n_edges, n_degrees, channels), n_functions, n_degrees)
    out = weights.new_empty(n_atoms, n_functions, channels)
    sizes = n_atoms, n_edges, n_functions, n_degrees, channels
    _compute("ocpgem_accumulate", out, weights, values, sizes)
    return out


def weigh(density: Tensor, values: Tensor) -> Tensor:
    """As `angular_triton.weigh`."""
    n_atoms, n_edges, n_degrees, channels = values.shape
    n_functions = density.shape[1]
    _require_sizes(density, (n_atoms, n_functions, channels), n_functions, n_degrees)
    out = density.new_empty(n_atoms, n_edges, n_functions)
    sizes = n_atoms, n_edges, n_functions, n_degrees, channels
    _compute("ocpgem_weigh", out, density, values, sizes)
    return out


def _compute(name: str, out: Tensor, left: Tensor, right: Tensor, sizes: tuple[int, ...]) -> None:
    function = getattr(functions(), name)
    function(out.data_ptr(), left.data_ptr(), right.data_ptr(), *sizes, torch.get_num_threads())


def _require_sizes(of: Tensor, sizes: tuple[int, ...], n_functions: int, n_degrees: int) -> None:
    """Raise ValueError for a tensor of other sizes than those of the other one, which is read by its address alone."""
    if tuple(of.shape) != sizes or sizes[-1] % WIDTH:
        raise ValueError(
            f"sizes are {list(of.shape)}; they must be {list(sizes)}, the last a multiple of {WIDTH}"
        )
    if n_degrees not in (1, 1 + isqrt(n_functions - 1)):
        raise ValueError(f"{n_functions} functions are not of {n_degrees} degrees")


def functions() -> ctypes.CDLL:
    """The library, which must be there: see `library`."""
    loaded, reason = library()
    assert loaded is not None, reason
    return loaded


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
