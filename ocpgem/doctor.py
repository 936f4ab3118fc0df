"""What is installed and what this machine can run: `python main.py doctor`."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from ocpgem.errors import OcpgemError
from ocpgem.launch.slurm import controller_answers

ROOT = Path(__file__).resolve().parent.parent
WHEEL_INDEX = "https://data.pyg.org/whl"
GIB = 2**30

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """One finding: `missing` means that ocpgem cannot work, `note` that something could be better."""

    name: str
    status: Status
    text: str


def main() -> int:
    """Print the report; returns 0, or 1 where something necessary is missing."""
    checks = report()
    for check in checks:
        head = f"{check.status:<8}{check.name:<14}"
        print(textwrap.fill(check.text, 110, initial_indent=head, subsequent_indent=" " * len(head)))
    missing = [check.name for check in checks if check.status == "missing"]
    if missing:
        print(f"\nocpgem cannot work here until this is mended: {', '.join(missing)}")
    return 1 if missing else 0


def report() -> list[Check]:
    """Look at everything and return the findings in reading order."""
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _packages,
        _torch,
        _segment_sums,
        _kernels,
        _slurm,
        _machine,
        _folders,
        _ability,
    )
    return [check for part in parts for check in part()]


def _python() -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    text = f"{platform.python_version()} at {sys.executable}"
    yield Check("Python", "ok" if fits else "missing", text if fits else f"{text}; 3.11 or 3.12 is needed")


def _packages() -> Iterator[Check]:
    """Compare what is installed with what pyproject.toml needs and requirements.lock pins."""
    tested = _tested_versions()
    wrong, other = [], []
    requirements = _requirements()
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed ({requirement} is needed)")
            continue
        pinned = tested.get(requirement.name.lower(), version)
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version} ({requirement} is needed)")
        elif version.partition("+")[0] != pinned.partition("+")[0]:  # not counting +cpu, +cu130
            other.append(f"{requirement.name} {version} (tested: {pinned})")
    if wrong:
        yield Check("packages", "missing", "; ".join(wrong) + "; `make setup` installs all")
    else:
        found = "; not the tested versions: " + ", ".join(other) if other else ""
        yield Check("packages", "note" if other else "ok", f"all {len(requirements)} are there{found}")


def _requirements() -> list[Requirement]:
    """Return what ocpgem needs: from pyproject.toml in a clone, else from the installed package."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        lines = metadata.requires("ocpgem") or []
    return [Requirement(line) for line in lines]


def _tested_versions() -> dict[str, str]:
    lock = ROOT / "requirements.lock"
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.lower(): version for name, version in pairs}


def _torch() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("torch", "missing", f"cannot be imported: {error}")
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    yield Check("torch", "ok", f"{torch.__version__}, built for {built}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield _no_gpu(torch.__version__)
        return
    tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if (gpu.major, gpu.minor) >= (8, 0) else "no fast bf16 (compute capability below 8.0)"
        text = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, {bf16}, TF32 for matrix products is {tf32}"
        yield Check(f"GPU {index}", "ok", text)


def _no_gpu(version: str) -> Check:
    if shutil.which("nvidia-smi") is None:
        return Check(
            "GPU", "note", "none; everything runs on the CPU, which is enough for the demo and for tests"
        )
    wanted = version.partition("+")[0]
    text = (
        f"there is a driver but torch sees no GPU: install a CUDA build of torch {wanted} or see nvidia-smi"
    )
    return Check("GPU", "note", text)


def _segment_sums() -> Iterator[Check]:
    try:
        from ocpgem import segment
    except (ImportError, OSError):
        return  # without torch, which has been reported
    except OcpgemError as error:
        yield Check("segment sums", "missing", str(error))
        return
    import torch

    hint = f"wheels for GPUs: {WHEEL_INDEX}/torch-{torch.__version__}.html"
    if segment.BACKEND == "torch" and not torch.cuda.is_available():
        yield Check("segment sums", "ok", f"torch's own ({segment.REASON})")
    elif segment.BACKEND == "torch":
        text = f"torch's own ({segment.REASON}), same results; make setup-full adds torch-scatter; {hint}"
        yield Check("segment sums", "note", text)
    elif torch.cuda.is_available() and not segment.scatter_has_cuda():
        text = f"torch-scatter was built without CUDA: on a GPU torch sums by itself; {hint}"
        yield Check("segment sums", "note", text)
    else:
        yield Check("segment sums", "ok", f"torch-scatter {metadata.version('torch-scatter')}")


def _kernels() -> Iterator[Check]:
    try:
        from ocpgem import kernels
    except (ImportError, OSError):
        return
    except OcpgemError as error:
        yield Check("kernels", "missing", str(error))
        return
    import torch

    if kernels.BACKEND == "triton":
        yield Check("kernels", "ok", f"Triton {metadata.version('triton')}")
    elif torch.cuda.is_available():
        text = f"torch's own on GPUs; {kernels.ENVIRONMENT_VARIABLE}=triton tries Triton's (not measured yet)"
        yield Check("kernels", "ok", text)
    elif kernels.BACKEND == "native":
        text = "compiled functions for activations, sums over angles, some products; torch's own for the rest"
        yield Check("kernels", "ok", text)
    else:
        chosen = kernels.REASON.startswith(kernels.ENVIRONMENT_VARIABLE)
        yield Check("kernels", "ok" if chosen else "note", f"torch's own ({kernels.REASON})")


def _slurm() -> Iterator[Check]:
    clients = ("sbatch", "srun", "squeue", "scontrol", "sacct")
    found = [name for name in clients if shutil.which(name)]
    if not found:
        yield Check("SLURM", "note", "no clients on this machine: jobs cannot be submitted from here")
        return
    absent = [name for name in clients if name not in found]
    try:
        answer = subprocess.run(
            [found[0], "--version"], capture_output=True, text=True, timeout=5, check=False
        )
        version = answer.stdout.strip() or "unknown version"
    except (OSError, subprocess.TimeoutExpired):
        version = "does not answer"
    text = f"{version}; {', '.join(found)}" + (f"; not found: {', '.join(absent)}" if absent else "")
    silent = "scontrol" in found and not controller_answers()
    if silent:
        text += "; no controller answers (scontrol ping), so nothing can be submitted from here now"
    yield Check("SLURM", "note" if absent or silent or version == "does not answer" else "ok", text)


def _machine() -> Iterator[Check]:
    memory = _memory() / GIB
    text = f"{platform.system()} {platform.machine()}, {_cores()} cores, {memory:.0f} GiB of memory"
    yield Check(
        "machine", "ok" if memory >= 4 else "note", text if memory >= 4 else f"{text}; 4 GiB are advised"
    )
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < GIB / 2:
        size = shutil.disk_usage(shared).total / 2**20
        text = (
            f"/dev/shm has {size:.0f} MiB; data loader workers may run out of it (containers: --shm-size=8g)"
        )
        yield Check("shared memory", "note", text)
    found = _allocator()
    advice = "" if found == "tcmalloc" else "; tcmalloc holds less on CPUs (docs/performance.md)"
    yield Check("allocator", "ok", f"{found}{advice}")


def _allocator() -> str:
    """Return what hands out the memory of tensors on the CPU in this process."""
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "the system's"
    found = [name for name in ("tcmalloc", "jemalloc", "mimalloc") if f"/lib{name}" in loaded]
    return found[0] if found else "the system's"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Return the memory in bytes that this process may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _folders() -> Iterator[Check]:
    """Look for room and for the right to write where runs and caches go."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for name, folder in (("work folder", Path.cwd()), ("cache", cache / "ocpgem")):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / GIB
        problem = _writing_fails(existing)
        if problem:
            yield Check(name, "note", f"{folder} cannot be used: {problem}")
        else:
            enough = free >= 5
            text = f"{folder}, {free:.0f} GiB free" + ("" if enough else "; 5 GiB are advised")
            yield Check(name, "ok" if enough else "note", text)


def _writing_fails(folder: Path) -> str:
    """Write and read a small LMDB in `folder`, as data sets are; returns what went wrong, or nothing."""
    import lmdb

    try:
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".ocpgem-doctor-") as place,
            lmdb.open(place, map_size=2**20) as environment,
        ):
            with environment.begin(write=True) as transaction:
                transaction.put(b"key", b"value")
            with environment.begin() as transaction:
                return (
                    "" if transaction.get(b"key") == b"value" else "an LMDB does not return what was stored"
                )
    except (OSError, lmdb.Error) as error:
        return str(error)


def _ability() -> Iterator[Check]:
    """Say what all this means for training."""
    try:
        import torch
    except (ImportError, OSError):
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        text = f"training on {gpus} GPU{'s' if gpus > 1 else ''} (--nproc {gpus}), evaluation and prediction"
    else:
        text = "the demo, tests, small models and prediction on the CPU; OC20-sized training needs GPUs"
    yield Check("can run", "ok", text)
