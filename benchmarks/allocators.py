"""Seconds and memory of a training step with each allocator that this machine has; CPU only.

Every allocator gets a process of its own. Memory is that of the whole process at its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.speed.machine import as_words, machine
from benchmarks.speed.process import peaks
from ocpgem.parallel.device import hand_back_large_blocks, keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
PRELOADED = {
    "tcmalloc": "libtcmalloc_minimal.so.4",
    "jemalloc": "libjemalloc.so.2",
    "mimalloc": "libmimalloc.so.2",
}
AS_IT_IS = "as it is"
GLIBC: dict[str, Callable[[], None]] = {
    AS_IT_IS: lambda: None,
    "keeping what is freed": keep_freed_memory,
    "handing back 8 MiB and more": hand_back_large_blocks,
}
"""Runs use the second, and with activation_checkpointing the third."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", default="GemNet-dT,GemNet-OC", help="names as in benchmarks/speed/costs.py"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps that are measured, after two others")
    parser.add_argument("--checkpointing", action="store_true", help="with activation_checkpointing")
    parser.add_argument("--in-this-process", choices=GLIBC, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    models, repeats, checkpointing = arguments.models, arguments.repeats, arguments.checkpointing
    if arguments.in_this_process:
        set_allocator = GLIBC[arguments.in_this_process]
        print(json.dumps(measured(models, repeats, checkpointing, set_allocator)))
        return
    ways: dict[str, tuple[str, dict[str, str]]] = {f"glibc, {name}": (name, {}) for name in GLIBC}
    ways |= {
        name: (AS_IT_IS, {"LD_PRELOAD": str(LIBRARIES / library)})
        for name, library in PRELOADED.items()
        if (LIBRARIES / library).exists()
    }
    print(f"{as_words(machine())}\n")
    print("| model | allocator | step s | page faults a step | peak GB, process |\n|---|---|---|---|---|")
    for model in models.split(","):
        for way, (setting, variables) in ways.items():
            command = [sys.executable, __file__, "--models", model, "--in-this-process", setting]
            command += ["--checkpointing"] if checkpointing else []
            done = subprocess.run(
                [*command, "--repeats", str(repeats)],
                env=os.environ | variables,
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            row = f"{found['step_s']:.2f} | {found['faults']:,.0f} | {found['peak_gb']:.2f}"
            print(f"| {model} | {way} | {row} |", flush=True)


def measured(
    model: str, repeats: int, checkpointing: bool, set_allocator: Callable[[], None]
) -> dict[str, float]:
    """The median step of one model, with the allocator that this process has."""
    import resource

    from benchmarks.speed.ready import ready
    from benchmarks.speed.structures import SIZES

    way = "checkpointing" if checkpointing else "highest"
    step = ready(model, SIZES, "cpu", way, set_allocator).training_step()
    seconds, faults = [], []
    for _ in range(repeats + 2):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    found = {"step_s": median(seconds[2:]), "faults": median(faults[2:])}
    return found | {"peak_gb": peaks("cpu")["peak_process_gb"]}


if __name__ == "__main__":
    main()
