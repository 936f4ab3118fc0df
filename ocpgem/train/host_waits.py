"""Counts the operations for which the host would wait for a device, also where there is only a CPU."""

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The host needs a value (a number or the size of the result) that the device has yet to compute.
_READ_A_VALUE = frozenset(
    {
        "_local_scalar_dense", "_unique", "_unique2", "argwhere", "bincount", "equal", "histc", "is_nonzero",
        "linalg_eigh", "masked_select", "nonzero", "nonzero_numpy", "unique_consecutive", "unique_dim",
    }
)  # fmt: skip
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


class HostWaits(TorchDispatchMode):
    """Within the context, counts the operations (forward and backward) that on a GPU would make the host wait.

    These are values that Python reads (`item`, `bool`, `equal`), results whose size depends on values (`nonzero`,
    boolean masks as indices, `unique`, `bincount`, `repeat_interleave` without a size), copies between devices that may
    block, and tensors made from Python numbers, which a GPU would get by such a copy.

    A kernel that waits inside itself is not seen; `torch.cuda.set_sync_debug_mode` shows most of those on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        """How often each of them was met, as "operation at file:line" of the innermost line of this package."""

    @property
    def n(self) -> int:
        """Number of waits."""
        return self.found.total()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.found[f"{func} at {_own_line()}"] += 1
        return func(*args, **kwargs)


def count_host_waits(work: Callable[[], object]) -> Counter[str]:
    """Call `work` and return the operations in it for which the host would wait for a device, and how often."""
    with HostWaits() as waits:
        work()
    return waits.found


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if func.namespace != "aten":
        return False
    name = func._schema.name.removeprefix("aten::")
    if name in _READ_A_VALUE or name == "lift_fresh":
        return True
    if name in _INDEXING:
        indices = args[1] if len(args) > 1 else kwargs["indices"]
        return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in indices)
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("_to_copy", "copy_"):
        given = args[2] if name == "copy_" and len(args) > 2 else False
        return _copies_between_devices(name, args, kwargs) and not kwargs.get("non_blocking", given)
    return False


def _copies_between_devices(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if name == "copy_":
        return bool(args[0].device != args[1].device)
    wanted = kwargs.get("device")
    return wanted is not None and torch.device(wanted) != args[0].device


def _own_line() -> str:
    """Where in this package the operation was asked for; that of the backward pass is not known."""
    for frame in reversed(traceback.extract_stack()):
        if "/ocpgem/" in frame.filename and not frame.filename.endswith("host_waits.py"):
            return f"{frame.filename.rsplit('/ocpgem/', 1)[1]}:{frame.lineno}"
    return "unknown line"
