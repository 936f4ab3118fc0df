"""Triton kernels behind a few functions of the models: torch's own operations unless `OCPGEM_KERNELS=triton` is set.

They are not the default: as they are they ran in Triton's interpreter alone, and no GPU has timed them.
With TRITON_INTERPRET=1 they run on a CPU, slowly: that is for tests.
"""

import os

import torch
from torch import Tensor

from ocpgem.errors import RequestError

ENVIRONMENT_VARIABLE = "OCPGEM_KERNELS"


def _choose_backend() -> str:
    """Return "torch" or "triton"; raises RequestError for a choice that cannot be."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "") or "torch"
    if wanted not in ("torch", "triton"):
        raise RequestError(
            f"{ENVIRONMENT_VARIABLE} is {wanted!r}; it must be torch or triton, or not be set (torch)"
        )
    if wanted == "torch":
        return wanted
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"{ENVIRONMENT_VARIABLE} is triton, but Triton cannot be imported ({error}); "
            "torch for CUDA brings it along; else run `pip install triton` or unset the variable"
        ) from None
    if not torch.cuda.is_available() and not _interpreted():
        raise RequestError(
            f"{ENVIRONMENT_VARIABLE} is triton, but torch sees no GPU; unset it, "
            "or set TRITON_INTERPRET=1 too, which runs the kernels on the CPU, slowly, for tests"
        )
    return wanted


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "on", "true", "y", "yes")


BACKEND = _choose_backend()
"""What computes the sums over angles and the activations of residual layers: "torch" or "triton"."""


def use_triton(x: Tensor) -> bool:
    """Say whether a kernel computes what starts from `x`.

    Not while torch.compile looks, which fuses by itself, and not for tensors of sizes only, as estimates use.
    """
    if BACKEND == "torch" or torch.compiler.is_compiling():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and (x.is_cuda or _interpreted())
