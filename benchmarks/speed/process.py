"""Time, memory and allocator of a process. Imports nothing of ocpgem: the released code is measured with it, too."""

import os
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


class NotMeasuredError(Exception):
    """Something could not be measured; the message says why. What else there is, is measured all the same."""


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median of some `times`."""
    return statistics.median(times(call, repeats))


def times(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of some calls, after one that does not count; a GPU is waited for."""
    call()
    found = []
    for _ in range(repeats):
        wait_for_gpu()
        started = time.perf_counter()
        call()
        wait_for_gpu()
        found.append(time.perf_counter() - started)
    return found


def wait_for_gpu() -> None:
    """Until a GPU, if one is in use, has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peaks(device: str) -> dict[str, float]:
    """The most memory in GB that this process held so far, and that its tensors held on a GPU.

    Not `ru_maxrss`, which begins with that of the process which started this one.
    """
    found = {"peak_process_gb": _status_gb("VmHWM")}
    if device != "cpu":
        found["peak_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def held_gb() -> float:
    """The memory in GB that this process holds now."""
    return _status_gb("VmRSS")


def _status_gb(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024 / 1e9


def shown_command(words: Sequence[str], fairchem: str | None = None) -> str:
    """How a benchmark was started, from `sys.argv`, but for where things lie on this machine.

    fairchem: the Python that has the released code, if it was given one.
    """
    program, *shown = [word if fairchem is None else word.replace(fairchem, "PYTHON") for word in words]
    if "--out" in shown:
        place = shown.index("--out")
        del shown[place : place + 2]
    own = (word for word in shown if not word.startswith("--out="))
    return shlex.join(["python", f"benchmarks/{Path(program).name}", *own])


def allocator() -> dict[str, str]:
    """What hands out memory on the CPU in this process, and the libraries that it was told to load first, if any."""
    loaded = Path("/proc/self/maps").read_text(errors="replace")
    names = [name for name in ("tcmalloc", "jemalloc", "mimalloc") if f"/lib{name}" in loaded]
    found = {"allocator": names[0] if names else "the system's"}
    if "LD_PRELOAD" in os.environ:
        found["ld_preload"] = os.environ["LD_PRELOAD"]
    return found
