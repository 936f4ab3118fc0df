"""Time and memory of everything between a structure and a training step, at published sizes, on this machine.

    python benchmarks/run.py [--quick] [--models GemNet-dT,GemNet-OC] [--sizes 58,104] [--device cpu] [--out FOLDER]

Writes speed.json (with machine, versions and commit), speed.md and speed_scaling.svg. Every model is measured in a
process of its own, so that its peak memory is its own. --plain adds dense chains as autograd would keep them, to
compare in the same run; cells of what does not depend on that stay empty. --fairchem PYTHON runs the released models,
too, with the same weights on the same systems, in a Python that can import torch, PyG and (pip install --no-deps)
fairchem-core==1.10.0 and torch-sparse. Loader and ranks are benchmarks/loader_throughput.py and benchmarks/scaling.py.
--quick: one small system, one repetition, a few points, to see that everything runs.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.speed.costs import MODELS
from benchmarks.speed.structures import SIZES
from benchmarks.speed.timing import of_graphs, of_model, of_program, product_rate, scaling, start_up
from ocpgem.launch.code_version import code_version

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "atoms": "atoms", "edges": "edges", "forward_s": "forward s", "step_s": "step s",
    "floor_of_step_s": "floor s", "step_over_floor": "step / floor", "kept_gb": "kept GB",
    "peak_counted_gb": "peak GB, counted", "peak_process_gb": "peak GB, process",
    "kernels_forward": "kernels forward", "kernels_backward": "kernels backward", "waits": "waits",
}  # fmt: skip

RELEASED = {
    "released_forward_s": "its forward s", "released_forward_over_ours": "its / our forward",
    "released_step_s": "its step s", "released_step_over_ours": "its / our step",
    "released_peak_process_gb": "its peak GB, process", "released_energy_relative_difference": "energies differ by",
    "released_forces_relative_difference": "forces differ by",
}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    if arguments.one is not None:
        found = of_model(
            arguments.one,
            arguments.sizes,
            arguments.device,
            arguments.repeats,
            arguments.plain,
            arguments.fairchem,
        )
        print(json.dumps(found))
        return
    result: dict[str, Any] = {"machine": machine(arguments.device), "models": {}, "failed": {}}
    for name in arguments.models:
        for plain in (False, True) if arguments.plain else (False,):
            key = name + (" (plain chains)" if plain else "")
            found = in_own_process(name, plain, arguments)
            if isinstance(found, str):
                result["failed"][key] = found
                print(f"{key} could not be measured: {found}", file=sys.stderr, flush=True)
                continue
            result["models"][key] = found
            print(f"{key}: step {found['step_s']:.2f} s", flush=True)
    result["graphs_16_systems"] = of_graphs(2 if arguments.quick else 16, arguments.repeats)
    result["scaling"] = scaling(arguments.device, arguments.repeats, arguments.quick)
    for part, program in (("loader", "loader_throughput"), ("ranks", "scaling")):
        of_part = of_program(program, arguments.quick)
        if isinstance(of_part, str):
            result["failed"][part] = of_part
        else:
            result[part] = of_part
    result["start_up"] = start_up(arguments.repeats)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    (arguments.out / "speed.md").write_text(as_table(result))
    draw(result["scaling"], arguments.out / "speed_scaling.svg")
    print(as_table(result), end="")
    if result["failed"]:
        raise SystemExit(f"not measured: {', '.join(result['failed'])}; see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--fairchem", metavar="PYTHON", help="a Python that has fairchem-core==1.10.0")
    parser.add_argument("--models", default="", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="atoms of the slabs of a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.models = [name for name in arguments.models.split(",") if name] or list(MODELS)
    for name in arguments.models:
        if name not in MODELS:
            parser.error(f"--models: {name!r} is none of {', '.join(MODELS)}")
    if arguments.fairchem and arguments.device != "cpu":
        parser.error("--fairchem compares on a CPU; add --device cpu")
    if arguments.quick:
        arguments.sizes, arguments.repeats = "20", 1
    try:
        arguments.sizes = tuple(int(size) for size in arguments.sizes.split(","))
    except ValueError:
        parser.error(f"--sizes: {arguments.sizes!r} is not a list of numbers like 58,104")
    if not all(20 <= size <= 225 for size in arguments.sizes):
        parser.error("--sizes: slabs have 20 to 225 atoms")
    return arguments


def in_own_process(name: str, plain: bool, arguments: argparse.Namespace) -> dict[str, Any] | str:
    """What was measured of a model, or why it could not be: the others are measured all the same."""
    command = [
        sys.executable, __file__, "--one", name, "--sizes", ",".join(map(str, arguments.sizes)),
        "--device", arguments.device, "--repeats", str(arguments.repeats), *(["--plain"] if plain else []),
        *(["--fairchem", arguments.fairchem] if arguments.fairchem and not plain else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # by Linux, most likely
        return f"killed by signal {-done.returncode}, probably for want of memory"
    if done.returncode:
        return done.stderr.strip() or f"exit code {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine(device: str) -> dict[str, Any]:
    return {
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "gflops_of_product": product_rate(device) / 1e9,
        "python": platform.python_version(),
        "torch": torch.__version__,
    } | {key: value for key, value in code_version().items() if key != "root"}


def as_table(result: dict[str, Any]) -> str:
    facts = result["machine"]
    lines = [
        "# Speed and memory at published sizes",
        "",
        f"`{facts['command']}`; {facts['machine']}, {facts['threads']} of {facts['cores']} cores, "
        f"device {facts['device']}, load {facts['load']:.1f}, torch {facts['torch']}, "
        f"commit {facts['commit']}. Floor: the dense products of a step at the speed of a [15000, 512] x [512, 512] "
        "product in the same process.",
        "",
        "| model | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, found in result["models"].items():
        shown = [_cell(found.get(key)) for key in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    for name, reason in result["failed"].items():
        lines += ["", f"{name} could not be measured: {reason.splitlines()[-1]}"]
    released = {name: found for name, found in result["models"].items() if "released_step_s" in found}
    if released:
        lines += ["", "| beside fairchem-core 1.10.0 | " + " | ".join(RELEASED.values()) + " |"]
        lines.append("|---" * (len(RELEASED) + 1) + "|")
        for name, found in released.items():
            lines.append(f"| {name} | " + " | ".join(f"{found[key]:.3g}" for key in RELEASED) + " |")
    lines += ["", "| part | seconds |", "|---|---|"]
    parts = result["graphs_16_systems"] | result["start_up"]
    lines += [
        f"| {name.removesuffix('_s').replace('_', ' ')} | {value:.3f} |" for name, value in parts.items()
    ]
    if "loader" in result:
        rates = result["loader"]["systems_per_second"]
        lines += ["", "| loader, one core | systems/s |", "|---|---|"]
        lines += [f"| {name} | {value:,.0f} |" for name, value in rates.items()]
    if "ranks" in result:
        lines += ["", *_ranks(result["ranks"])]
    return "\n".join(lines) + "\n"


def _ranks(found: dict[str, Any]) -> list[str]:
    """Scaling over ranks and bytes that a rank sends under ZeRO-1, of benchmarks/scaling.py."""
    ranks = found["ranks"]
    lines = ["| ranks | weak: s a step | strong: s a step | bytes sent by a rank |", "|---|---|---|---|"]
    for size, each in ranks.items():
        sent = next(case["sent_bytes"] for case in each["traffic"] if case["label"] == "ZeRO-1, 1 bucket")
        lines.append(f"| {size} | {each['weak']:.3f} | {each['strong']:.3f} | {sent:,.0f} |")
    return lines


def _cell(value: float | None) -> str:
    if value is None:  # not counted
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def draw(scaling: dict[str, list[dict[str, float]]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(scaling), figsize=(4 * len(scaling), 3), layout="constrained")
    for axis, (name, points) in zip(axes, scaling.items(), strict=True):
        axis.plot([point[name] for point in points], [point["step_s"] for point in points], "o-")
        axis.set(xlabel=name, ylabel="forward + backward, s", xlim=(0, None), ylim=(0, None))
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
