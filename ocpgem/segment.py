"""Sums over consecutive rows: torch's own operations or, on machines with GPUs, torch-scatter's if it is installed.

Both give the same numbers up to rounding and may be differentiated any number of times. torch-scatter's own
`segment_csr` may not: its backward leaves the graph, so a second derivative loses terms without an error.
Here the kernels only compute; the derivatives are written below.

`OCPGEM_SEGMENT=torch` or `=scatter` in the environment forces one of them.
"""

import os
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import RequestError

ENVIRONMENT_VARIABLE = "OCPGEM_SEGMENT"


def _choose_backend() -> tuple[str, str]:
    """Return the backend ("scatter" or "torch") and the reason; raises RequestError for a wrong choice."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wanted not in ("", "torch", "scatter"):
        raise RequestError(
            f"{ENVIRONMENT_VARIABLE} is {wanted!r}; it must be torch or scatter, or not be set"
        )
    if wanted == "torch":
        return "torch", f"{ENVIRONMENT_VARIABLE}=torch"
    try:
        import torch_scatter  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: built for another torch
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        if wanted == "scatter":
            raise RequestError(
                f"{ENVIRONMENT_VARIABLE} is scatter, but torch-scatter cannot be imported ({first_line}); "
                "run `make setup-full` or unset the variable"
            ) from None
        missing = isinstance(error, ModuleNotFoundError)
        return "torch", "torch-scatter is not installed" if missing else f"torch-scatter fails: {first_line}"
    if not wanted and not torch.cuda.is_available():
        return "torch", "the fastest on a CPU"
    return "scatter", "torch-scatter is installed"


BACKEND, REASON = _choose_backend()
"""What sums the segments ("scatter" or "torch"), and why."""


def scatter_has_cuda() -> bool:
    """Say whether the torch-scatter in use has CUDA kernels; else sums on a GPU are torch's own."""
    return BACKEND == "scatter" and torch.ops.torch_scatter.cuda_version() != -1


_SCATTER_HAS_CUDA = scatter_has_cuda()


def segment_sum(values: Tensor, ptr: Tensor) -> Tensor:
    """Sum the rows ptr[i] to ptr[i + 1] of `values` into row i; an empty segment gives zeros.

    values: [n_rows, ...]; ptr: int64 [n_segments + 1], not decreasing, from 0 to n_rows, on the same device.
    Returns [n_segments, ...] of the same dtype. Twice differentiable in `values`; waits for no device.
    """
    return _SegmentSum.apply(values, ptr)


def ordered_sum(values: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """`segment_sum` of values[order], without a derivative; order: int64 [n], rows of `values`, ptr: from 0 to n."""
    if torch.compiler.is_compiling():
        return _sum_as_one(values.index_select(0, order), ptr)
    if _bags_fit(values):
        return _sum_bags(values, order, ptr)
    return _sum(values.index_select(0, order), ptr)


class _SegmentSum(torch.autograd.Function):
    """Sum of segments; its derivative repeats each row over its segment."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ptr: Tensor) -> Tensor:
        ctx.save_for_backward(ptr)
        ctx.n_rows = values.shape[0]
        return _sum_as_one(values, ptr) if torch.compiler.is_compiling() else _sum(values, ptr)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ptr,) = ctx.saved_tensors
        return _SegmentRepeat.apply(grad, ptr, ctx.n_rows), None


class _SegmentRepeat(torch.autograd.Function):
    """Row i for each row of segment i; its derivative is the sum of segments."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ptr: Tensor, n_rows: int) -> Tensor:
        ctx.save_for_backward(ptr)
        return values.index_select(0, _segment_of_row(ptr, n_rows))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ptr,) = ctx.saved_tensors
        return _SegmentSum.apply(grad, ptr), None, None


def _segment_of_row(ptr: Tensor, n_rows: int) -> Tensor:
    return torch.repeat_interleave(ptr.diff(), output_size=n_rows)


def _sum(values: Tensor, ptr: Tensor) -> Tensor:
    if _bags_fit(values):
        return _sum_bags(values, torch.arange(values.shape[0]), ptr)
    if BACKEND == "scatter" and _is_plain(values) and (_SCATTER_HAS_CUDA or not values.is_cuda):
        return torch.ops.torch_scatter.segment_sum_csr(values.contiguous(), ptr, None)
    if (
        values.is_cuda and values.is_floating_point()
    ):  # one thread a sum: repeatable, which atomic additions are not
        return torch.segment_reduce(values.contiguous(), "sum", offsets=ptr, axis=0, unsafe=True)
    sums = values.new_zeros((ptr.shape[0] - 1, *values.shape[1:]))
    return sums.index_add_(0, _segment_of_row(ptr, values.shape[0]), values)


def _is_plain(values: Tensor) -> bool:
    """Not a tensor of sizes only, as estimates use."""
    return type(values) in (Tensor, torch.nn.Parameter)


def _bags_fit(values: Tensor) -> bool:
    """Whether torch's sum over bags of embeddings, the fastest on a CPU, takes these values."""
    if BACKEND == "scatter" or values.device.type != "cpu" or not _is_plain(values):
        return False
    return values.dtype in (torch.float32, torch.float64) and values.numel() > 0


def _sum_bags(values: Tensor, rows: Tensor, ptr: Tensor) -> Tensor:
    """The sum of the given rows of each segment, read where they lie."""
    table = values.reshape(values.shape[0], -1)
    sums: Tensor = torch.embedding_bag(table, rows, ptr, mode=0, include_last_offset=True)[0]
    return sums.view(ptr.shape[0] - 1, *values.shape[1:])


@torch.library.custom_op("ocpgem::segment_sum", mutates_args=())
def _sum_as_one(values: Tensor, ptr: Tensor) -> Tensor:
    """`_sum` as one operation that torch.compile does not look into, since it knows nothing of torch-scatter."""
    return _sum(values, ptr)


@_sum_as_one.register_fake
def _(values: Tensor, ptr: Tensor) -> Tensor:
    return values.new_empty((ptr.shape[0] - 1, *values.shape[1:]))
