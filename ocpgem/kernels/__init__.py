"""Kernels behind a few functions of the models, in place of torch's own operations.

On a CPU compiled functions (`native`, `native_quadruplets`) compute activations, sums over angles and some products of
small matrices where set-up could compile them. On a GPU Triton computes activations and sums over angles if
`OCPGEM_KERNELS=triton` is set, which turns the compiled functions off: no GPU has timed these kernels, so they are not
the default. With TRITON_INTERPRET=1 they run on a CPU, slowly: that is for tests. `OCPGEM_KERNELS=torch` leaves all to
torch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ocpgem.errors import RequestError
from ocpgem.kernels import native

ENVIRONMENT_VARIABLE = "OCPGEM_KERNELS"


def _choose_backend() -> tuple[str, str]:
    """Return "torch", "native" or "triton", and the reason; raises RequestError for a choice that cannot be."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wanted not in ("", "torch", "native", "triton"):
        raise RequestError(
            f"{ENVIRONMENT_VARIABLE} is {wanted!r}; it must be torch, native or triton, or not be set"
        )
    chosen = f"{ENVIRONMENT_VARIABLE}={wanted}"
    if wanted == "torch":
        return "torch", chosen
    if wanted == "triton":
        _require_triton()
        return "triton", chosen
    library, reason = native.library()
    if library is not None:
        return "native", reason
    if wanted == "native":
        raise RequestError(f"{ENVIRONMENT_VARIABLE} is native, but {reason}; or unset the variable")
    return "torch", reason


def _require_triton() -> None:
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


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") in ("1", "on", "true", "y", "yes")


BACKEND, REASON = _choose_backend()
"""What computes activations and sums over angles where it can, "torch", "native" or "triton", and why."""


@contextmanager
def torch_only() -> Iterator[None]:
    """Within the context torch's own operations compute everything, so that they can be counted."""
    global BACKEND  # noqa: PLW0603
    before, BACKEND = BACKEND, "torch"
    try:
        yield
    finally:
        BACKEND = before


def use_triton(x: Tensor) -> bool:
    """Say whether a kernel computes what starts from `x`.

    Not while torch.compile looks, which fuses by itself, and not for tensors of sizes only, as estimates use.
    """
    if BACKEND != "triton" or torch.compiler.is_compiling():
        return False
    return type(x) in (Tensor, torch.nn.Parameter) and (x.is_cuda or _interpreted())


def use_native(*tensors: Tensor | None) -> bool:
    """Say whether compiled functions compute what starts from these tensors, None among them for what is left out."""
    if BACKEND != "native" or torch.compiler.is_compiling():
        return False
    return all(
        type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu and x.dtype == torch.float32 and not x.is_neg()
        for x in tensors
        if x is not None
    )
