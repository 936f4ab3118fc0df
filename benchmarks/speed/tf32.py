"""TF32 products as a GPU computes them, on a CPU, to see what they do to numbers where there is no GPU.

A tensor core of a GPU rounds both factors of a product of matrices from 23 to 10 bits of mantissa, and adds the
products up in float32. Here torch rounds the factors, to the nearest, and multiplies what is left in float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ocpgem.kernels import torch_only

_DROPPED = 13
"""Bits of the mantissa of float32 that TF32 has not."""
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.addmm_, _aten.baddbmm, _aten.baddbmm_}


def rounded(x: Tensor) -> Tensor:
    """The nearest number of TF32, the even one of two; x: float32, and finite."""
    bits = x.contiguous().view(torch.int32)
    half = (1 << (_DROPPED - 1)) - 1 + ((bits >> _DROPPED) & 1)
    return ((bits + half) & -(1 << _DROPPED)).view(torch.float32)


class Tf32Products(TorchDispatchMode):
    """Within the context factors of all products of matrices in float32 are rounded; torch computes them all."""

    def __enter__(self) -> "Tf32Products":
        self._torch = torch_only()
        self._torch.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self._torch.__exit__(*given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _PRODUCTS:
            factors = (rounded(x) if x.dtype == torch.float32 else x for x in args[-2:])
            args = (*args[:-2], *factors)
        return func(*args, **(kwargs or {}))
