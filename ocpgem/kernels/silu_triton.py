"""SiLU with its residual, or a derivative of it, in one pass; see `ocpgem.models.gemnet.activation`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def launch_silu(
    x: Tensor,
    factor: Tensor | None,
    base: Tensor | None,
    order: int,
    alpha: float,
    scale: float,
    out: Tensor,
) -> None:
    """out = scale * base + alpha * factor * (the derivative of SiLU of order 0 to 3)(x); out is contiguous."""
    x = x.contiguous()
    factor, base = (None if given is None else given.contiguous() for given in (factor, base))
    if x.numel():
        grid = (triton.cdiv(x.numel(), _BLOCK),)
        double = torch.float64 in (x.dtype, out.dtype)
        _silu[grid](
            x, x if factor is None else factor, x if base is None else base, out, x.numel(), alpha, scale,
            order, factor is not None, base is not None, tl.float64 if double else tl.float32, _BLOCK,
        )  # fmt: skip


@triton.jit
def _silu(  # type: ignore[no-untyped-def]
    x, factor, base, out, n, alpha, scale,
    ORDER: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_BASE: tl.constexpr, TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of elements; with s = sigmoid(v) and q = 1 - 2 s, SiLU(v) = v s and s' = s (1 - s)."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    v = tl.load(x + place, mask=inside, other=0.0).to(TYPE)
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
    found = found * alpha
    if HAS_FACTOR:
        found = found * tl.load(factor + place, mask=inside, other=0.0).to(TYPE)
    if HAS_BASE:
        found = found + scale * tl.load(base + place, mask=inside, other=0.0).to(TYPE)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=inside)
