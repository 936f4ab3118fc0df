"""Where the time of a training step goes on a CPU: dense products, SiLU, the rest.

    python benchmarks/step_profile.py [--models GemNet-dT,GemNet-OC]

One step under torch's profiler, on the systems of benchmarks/run.py. Wide products have 256 or more of each of rows,
columns and terms of a sum, and are no batch of matrices; the floor of a step is all products at the speed of one large
product. What the profiler keeps fragments glibc's heap, so that its steps take longer than others; with tcmalloc
(LD_PRELOAD) they do not.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from benchmarks.speed.machine import as_words, machine
from benchmarks.speed.ready import ready
from benchmarks.speed.structures import SIZES
from benchmarks.speed.timing import product_rate
from ocpgem.kernels import native

WIDE = 256
PRODUCTS = ("aten::mm", "aten::addmm_", "aten::addmm", "aten::bmm", "aten::baddbmm_", "aten::baddbmm")


def kind_of(event: Any) -> tuple[str, float]:
    """What an operation counts as, and its FLOP if it is a product; event: torch's, with shapes."""
    if event.key == "native times_transposed":
        return "products of small matrices, compiled (FLOP not counted)", 0.0
    if event.key.startswith(("_NativeSum", "_NativeGradient")):
        return "sums over quadruplets, compiled (FLOP not counted)", 0.0
    if event.key in ("native read", "native accumulate", "native weigh"):
        return "sums over angles, compiled (FLOP not counted)", 0.0
    if event.key not in PRODUCTS:
        return "SiLU" if "silu" in event.key else "all else", 0.0
    left, right = [shape for shape in event.input_shapes if len(shape) >= 2][-2:]
    flop = 2.0 * math.prod(left) * right[-1] * event.count
    wide = min(*left[-2:], *right[-2:]) >= WIDE and len(left) == 2
    return "wide products" if wide else "narrow products", flop


def show_compiled_functions() -> None:
    """Let the profiler see the compiled functions, which are no operations of torch's."""
    for name in (
        "silu",
        "silu_and_gradient",
        "silu_tangents",
        "times_transposed",
        "read",
        "accumulate",
        "weigh",
    ):
        setattr(native, name, record_function(f"native {name}")(getattr(native, name)))


def profiled(model: str) -> dict[str, dict[str, float]]:
    """Seconds and GFLOP of a step by kind, and the seconds of a step without the profiler."""
    step = ready(model, SIZES, "cpu").training_step()
    for _ in range(2):
        step()
    started = time.perf_counter()
    step()
    found = {"a step, not profiled": {"seconds": time.perf_counter() - started, "gflop": 0.0}}
    one_to_warm_up = schedule(wait=0, warmup=1, active=1, repeat=1)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, schedule=one_to_warm_up) as profiler:
        for _ in range(2):
            step()
            profiler.step()
    for event in profiler.key_averages(group_by_input_shape=True):
        kind, flop = kind_of(event)
        row = found.setdefault(kind, {"seconds": 0.0, "gflop": 0.0})
        row["seconds"] += event.self_cpu_time_total / 1e6
        row["gflop"] += flop / 1e9
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="GemNet-dT,GemNet-OC")
    arguments = parser.parse_args()
    show_compiled_functions()
    rate = product_rate("cpu")
    print(f"{as_words(machine())}; one large product {rate:.0f} GFLOP/s\n")
    print("| model | what | s | GFLOP | GFLOP/s |\n|---|---|---|---|---|")
    for model in arguments.models.split(","):
        for kind, row in sorted(profiled(model).items(), key=lambda item: -item[1]["seconds"]):
            cells = ["", ""]
            if row["gflop"]:
                cells = [f"{row['gflop']:.0f}", f"{row['gflop'] / row['seconds']:.0f}"]
            print(f"| {model} | {kind} | {row['seconds']:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
