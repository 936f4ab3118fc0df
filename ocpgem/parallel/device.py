"""Which device a rank computes on, and what it does with memory there."""

import ctypes

import torch

from ocpgem.errors import RequestError, one_line

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""Names of glibc's mallopt(3): how much may be free at the end of the heap, from what size on and how many blocks may
lie outside of it, which are handed back when they are freed."""
_LARGE_BYTES = 2**23


def choose_device() -> torch.device:
    """The GPU where there is one (ranks pick theirs by LOCAL_RANK), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def find_device(wanted: str | torch.device) -> torch.device:
    """The device of this name; raises RequestError where torch knows none or this machine has none."""
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except Exception as error:  # torch raises many kinds, from AssertionError to ModuleNotFoundError
        present = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise RequestError(
            f"device {str(wanted)!r} cannot be used here ({one_line(error):.100}); "
            f"this machine has {', '.join(present)}"
        ) from error
    return device


def set_up_device(spare_memory: bool = False) -> torch.device:
    """`choose_device` for a process that does nothing but compute.

    On a CPU it keeps the memory that it frees; spare_memory: it hands large blocks back.
    """
    device = choose_device()
    if device.type == "cpu":
        (hand_back_large_blocks if spare_memory else keep_freed_memory)()
    return device


def keep_freed_memory() -> None:
    """Let this process keep the memory of tensors on the CPU that it frees, for the tensors that come next.

    glibc hands large blocks back to Linux, which has to clear each page before it hands it out again; what a training
    step loses so, `benchmarks/allocators.py` measures. What is kept stays until the end, with gaps that fit no tensor.
    Does nothing where the allocator is not glibc's.
    """
    _set_malloc({_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0})


def hand_back_large_blocks() -> None:
    """Let this process hand back freed blocks of 8 MiB and more at once, and keep smaller ones.

    What activation checkpointing saves would else remain as gaps; `benchmarks/allocators.py --checkpointing` measures
    what it saves and costs. Does nothing where the allocator is not glibc's.
    """
    _set_malloc({_M_TRIM_THRESHOLD: -1, _M_MMAP_THRESHOLD: _LARGE_BYTES})


def _set_malloc(options: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows cannot open None
        return
    for name, value in options.items():
        mallopt(name, value)
