"""What a benchmark ran on, and with: what every record begins with."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.process import NotMeasuredError, allocator, shown_command
from ocpgem.launch.code_version import code_version

PACKAGES = ("torch", "torch-geometric", "torch-scatter", "numpy", "deepspeed", "triton")
RELEASED_PACKAGES = ("fairchem-core", "torch", "torch-geometric", "torch-scatter", "torch-sparse", "numpy")
_VERSIONS = """
import importlib.metadata, json, sys
found = {each.metadata["Name"].lower().replace("_", "-"): each.version for each in importlib.metadata.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""


def machine(device: str = "cpu", fairchem: str | None = None) -> dict[str, Any]:
    """The command that this process was started with, the machine, versions, allocator and commit.

    fairchem: the Python that has the released code, if it was given one.
    """
    return {
        "command": shown_command(sys.argv, fairchem),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "versions": versions(sys.executable, PACKAGES),
        **allocator(),
    } | {key: value for key, value in code_version().items() if key != "root"}


def as_words(facts: dict[str, Any]) -> str:
    """What `machine` found, in a line of Markdown."""
    preloaded = f" (LD_PRELOAD={facts['ld_preload']})" if "ld_preload" in facts else ""
    return (
        f"`{facts['command']}`; {facts['processor']}, {facts['cores']} cores, "
        f"threads of a process: {facts['threads']}, {facts['memory_gb']:g} GB, device {facts['device']}, "
        f"load {facts['load']:.1f}, torch {facts['versions']['torch']}, {facts['libc']}, "
        f"allocator {facts['allocator']}{preloaded}, commit {facts['commit']}{', changed' if facts['changed'] else ''}"
    )


def _processor() -> str:
    """The processor's own name, where Linux tells it, else that of its kind."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions(python: str, packages: Sequence[str] = RELEASED_PACKAGES) -> dict[str, str]:
    """Of those of the packages that a Python has; raises NotMeasuredError where it does not tell."""
    done = subprocess.run([python, "-c", _VERSIONS, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotMeasuredError(f"{python} does not tell the versions of its packages: {done.stderr.strip()}")
    found: dict[str, str] = json.loads(done.stdout)
    return found
