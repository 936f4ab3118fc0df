"""SiLU and its derivatives on a CPU by the compiled functions of silu.c, several of them in one pass.

torch reads and writes activations once for each operation, and its exponential takes half of that time. Tensors are
float32, contiguous, on the CPU and of equal sizes; see `ocpgem.kernels.use_native`.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ocpgem.errors import one_line

_POINTER, _INT, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_RUNTIMES = ("libgomp", "libiomp", "libomp")


@cache
def library(folder: Path = Path(__file__).parent) -> tuple[ctypes.CDLL | None, str]:
    """Load the compiled functions; returns None and the reason where that cannot be."""
    found = sorted(folder.glob("_silu*.so"))
    if not found:
        return None, "silu.c is not compiled: that takes a C compiler (gcc 12 or later) and `make setup`"
    try:
        loaded = ctypes.CDLL(str(found[0]))
        loaded.ocpgem_silu.argtypes = [_POINTER] * 5 + [_SIZE, _INT, _FLOAT, _FLOAT, _INT]
        loaded.ocpgem_silu_and_gradient.argtypes = [_POINTER] * 5 + [_SIZE, _INT]
        loaded.ocpgem_silu_tangents.argtypes = [_POINTER] * 6 + [_SIZE, _INT]
    except (AttributeError, OSError) as error:  # of another system, or of another version of silu.c
        return None, f"{found[0].name} cannot be used ({one_line(error)}); run `make setup`"
    for name in ("ocpgem_silu", "ocpgem_silu_and_gradient", "ocpgem_silu_tangents"):
        getattr(loaded, name).restype = None
    runtimes = _threads_come_from()
    if len(runtimes) > 1:  # whose threads would wait for each other's
        return None, f"torch brings an OpenMP of its own here ({', '.join(sorted(runtimes))})"
    return loaded, "compiled from silu.c"


def _threads_come_from() -> set[str]:
    """The OpenMP libraries of this process, which torch and silu.c have to share; nothing where Linux does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    names = (line.rpartition("/")[2] for line in lines)
    return {name for name in names if name.startswith(_RUNTIMES)}


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
    _functions().ocpgem_silu(
        out.data_ptr(), x.data_ptr(), _pointer(factor), _pointer(other), _pointer(base), x.numel(),
        order, alpha, scale, torch.get_num_threads(),
    )  # fmt: skip


def silu_and_gradient(x: Tensor, grad: Tensor, base: Tensor | None) -> tuple[Tensor, Tensor]:
    """SiLU(x), and grad * SiLU'(x) + base."""
    value, of_x = torch.empty_like(x), torch.empty_like(x)
    _functions().ocpgem_silu_and_gradient(
        value.data_ptr(), of_x.data_ptr(), x.data_ptr(), grad.data_ptr(), _pointer(base), x.numel(),
        torch.get_num_threads(),
    )  # fmt: skip
    return value, of_x


def silu_tangents(x: Tensor, tangent: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tangent * SiLU'(x), tangent * grad * SiLU''(x), which overwrites tangent, and grad * SiLU'(x)."""
    behind, of_x = torch.empty_like(x), torch.empty_like(x)
    _functions().ocpgem_silu_tangents(
        behind.data_ptr(), tangent.data_ptr(), of_x.data_ptr(), x.data_ptr(), tangent.data_ptr(),
        grad.data_ptr(), x.numel(), torch.get_num_threads(),
    )  # fmt: skip
    return behind, tangent, of_x


def _functions() -> ctypes.CDLL:
    loaded, reason = library()
    assert loaded is not None, reason
    return loaded


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
