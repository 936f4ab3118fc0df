"""Time and memory of everything between a structure and a training step, at published sizes, on this machine.

    python benchmarks/run.py [--quick] [--models GemNet-dT,GemNet-OC] [--sizes 58,104] [--device cpu] [--out FOLDER]

Writes speed.json (with machine, versions and commit), speed.md, speed_scaling.svg and, with --fairchem,
speed_beside.svg. Steps and forward passes of a model have a process each, as training and evaluation do, so that memory
is their own. Options:

    --plain            dense chains as autograd would keep them; cells of what does not depend on that stay empty
    --checkpointing    steps that compute activations again instead of keeping them
    --compile LIST     of blocks, full: steps with that setting; minutes each for translation
    --precisions LIST  of highest, high, bf16: steps in each; high is timed on a GPU alone
    --models-only      steps and forward passes, not layers, graphs, scaling, loader, ranks and start-up
    --fairchem PYTHON  the released models, searches and layers, with the same weights on the same systems, in a Python
                       that has fairchem-core 1.10.0 (docs/performance.md says how to make one)

Our usual step and forward pass and, beside them, those of the released code are measured --rounds times in turns;
medians and the best of all turns are shown; other ways of computing a step are measured once. Errors against float64
are those of all precisions; on a CPU, factors of products are rounded to TF32 as a GPU does. What is done is written
after every model and every other part. Loader and ranks are benchmarks/loader_throughput.py and benchmarks/scaling.py,
which write records of their own as well.
--quick: one small system, one repetition, a few points, to see in minutes that everything runs.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import recorded
from benchmarks.recorded import RESULTS
from benchmarks.speed import beside, steps
from benchmarks.speed.costs import MODELS, default_sizes
from benchmarks.speed.figures import draw_beside, draw_scaling
from benchmarks.speed.machine import machine, versions
from benchmarks.speed.process import NotMeasuredError
from benchmarks.speed.ready import COMPILED, PRECISIONS
from benchmarks.speed.structures import SIZES
from benchmarks.speed.tables import as_table
from benchmarks.speed.timing import (
    GRAPH_SIZES,
    GRAPHS,
    of_graphs,
    of_program,
    product_rate,
    scaling,
    start_up,
)
from ocpgem.models.gemnet.config import GemNetConfig

PARTS: dict[str, Callable[..., Any]] = {
    "step": steps.of_step,
    "forward": steps.of_forward,
    "errors": steps.errors,
    "interaction": steps.of_interaction,
    "export": beside.export,
}
"""What is measured in a process of its own."""
LAYERS = {
    "triplet interaction of GemNet-dT": ("GemNet-dT", "triplets", "trip_interaction"),
    "quadruplet interaction of GemNet-OC": ("GemNet-OC", "quadruplets", "quad_interaction"),
}
"""Layers that are measured alone: the model, and what ours and the released code call the layer."""
RELEASED_PARTS = dict(zip(GRAPHS, ("search_6A", "search_12A", "indices", "indices"), strict=True))
"""What `benchmarks/speed/released.py` calls the parts of `GRAPHS`."""


def main() -> None:
    arguments = _arguments()
    if arguments.one is not None:
        part, given = json.loads(arguments.one)
        print(json.dumps(PARTS[part](**given)))
        return
    result: dict[str, Any] = {"machine": machine(arguments.device, arguments.fairchem), "failed": {}}
    result["machine"]["gflops_of_product"] = product_rate(arguments.device)
    if arguments.fairchem:
        result["released_versions"] = attempt(result, "the released code", versions, arguments.fairchem)
    result |= {key: {} for key in ("models", "errors", "released", "layers", "graphs", "start_up")}
    for name in arguments.models:
        measure_model(name, arguments, result)
        write(result, arguments.out)
    if not arguments.models_only:
        measure_the_rest(arguments, result)
    print(as_table(result), end="")
    if result["failed"]:
        raise SystemExit(f"not measured: {', '.join(result['failed'])}; see above")


def measure_the_rest(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Everything but steps and forward passes."""
    measure_layers(arguments, result)
    write(result, arguments.out)
    measure_graphs(arguments, result)
    write(result, arguments.out)
    result["scaling"] = scaling(arguments.device, arguments.repeats, arguments.quick)
    write(result, arguments.out)
    draw_scaling(result, arguments.out / "speed_scaling.svg")
    released_loader = ("--fairchem", arguments.fairchem) if result.get("released_versions") else ()
    for part, program, options in (
        ("loader", "loader_throughput", released_loader),
        ("ranks", "scaling", ()),
    ):
        found = attempt(result, part, of_program, program, arguments.out, arguments.quick, *options)
        if found is not None:
            result[part] = found
            write(result, arguments.out)
    result["start_up"] = start_up(arguments.repeats)
    write(result, arguments.out)


def write(result: dict[str, Any], folder: Path) -> None:
    """What was found so far, as numbers and as tables."""
    recorded.write(folder, "speed", result, as_table(result).splitlines())
    if result["released"]:
        draw_beside(result, folder / "speed_beside.svg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", default="", help=f"of {', '.join(COMPILED)}")
    parser.add_argument("--precisions", help="default: highest on a CPU, all on a GPU")
    parser.add_argument("--fairchem", metavar="PYTHON")
    parser.add_argument("--models-only", action="store_true")
    parser.add_argument("--models", default="", help=f"of {', '.join(MODELS)}; default: all")
    sizes = f"default: {','.join(map(str, SIZES))}, of large models only the first"
    parser.add_argument("--sizes", help=f"atoms of the slabs of a step; {sizes}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.models = _names(parser, "--models", arguments.models, tuple(MODELS)) or list(MODELS)
    usual = "highest" if arguments.device == "cpu" else ",".join(PRECISIONS)
    precisions = arguments.precisions or usual
    arguments.precisions = _names(parser, "--precisions", precisions, PRECISIONS)
    arguments.compile = _names(parser, "--compile", arguments.compile, COMPILED)
    for option in ("repeats", "rounds"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option}: at least 1")
    if arguments.quick:
        arguments.sizes, arguments.repeats, arguments.rounds = "20", 1, 1
    if arguments.models_only and arguments.out == RESULTS:
        parser.error("--models-only: say with --out where, which leaves the complete record as it is")
    if arguments.sizes is not None:
        arguments.sizes = _sizes(parser, arguments.sizes)
    return arguments


def _names(parser: argparse.ArgumentParser, option: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    names = [name for name in value.split(",") if name]
    for name in names:
        if name not in allowed:
            parser.error(f"{option}: {name!r} is none of {', '.join(allowed)}")
    return names


def _sizes(parser: argparse.ArgumentParser, value: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in value.split(","))
    except ValueError:
        parser.error(f"--sizes: {value!r} is not a list of numbers like 58,104")
    if not all(20 <= size <= 225 for size in sizes):
        parser.error("--sizes: slabs have 20 to 225 atoms")
    return sizes


def in_own_process(part: str, **given: Any) -> Any:
    """What a function of `PARTS` returns for some arguments; raises NotMeasuredError if it fails."""
    command = [sys.executable, __file__, "--one", json.dumps([part, given])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:  # by Linux, most likely
        raise NotMeasuredError(f"killed by signal {-done.returncode}, probably for want of memory")
    if done.returncode:
        raise NotMeasuredError(done.stderr.strip() or f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def attempt(result: dict[str, Any], label: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """call(*given, **named); None where that could not be measured, which the result then says of `label`."""
    try:
        return call(*given, **named)
    except NotMeasuredError as error:
        result["failed"][label] = str(error)
        print(f"{label} could not be measured: {error}", file=sys.stderr, flush=True)
        return None


def measure_model(name: str, arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """A step of the model in every way that is asked for, its errors, and the released code's step."""
    sizes, device = arguments.sizes or default_sizes(name), arguments.device
    ways = [way for way in ("plain", "checkpointing") if getattr(arguments, way)]
    # torch.compile has no second derivatives
    if GemNetConfig.model_validate(MODELS[name]).forces != "gradient":
        ways += arguments.compile
    common = {"model": name, "sizes": sizes, "device": device}
    measure_in_turns(name, sizes, arguments, result)
    untimed = {"highest", "high" if device == "cpu" else ""}
    for way in [*ways, *(precision for precision in arguments.precisions if precision not in untimed)]:
        given = common | {"repeats": arguments.repeats, "way": way}
        found = attempt(result, f"{name} ({way})", step_and_forward, **given)
        if found is not None:
            result["models"].setdefault(name, {})[way] = found
            print(f"{name} ({way}): step {found['step_s']:.2f} s", flush=True)
    given = common | {"precisions": PRECISIONS}
    found = attempt(result, f"{name} (errors)", in_own_process, "errors", **given)
    if found is not None:
        result["errors"][name] = found


def measure_in_turns(
    name: str, sizes: tuple[int, ...], arguments: argparse.Namespace, result: dict[str, Any]
) -> None:
    """Our step and forward pass and, if asked for, those of the released code, one after the other, `rounds` times."""
    given = {"model": name, "sizes": sizes, "device": arguments.device, "repeats": arguments.repeats}
    measures: dict[str, Callable[[], Any]] = {name: lambda: step_and_forward(**given, way="highest")}
    if arguments.fairchem and beside.has_released(name):
        measures[f"{name} (released)"] = lambda: released_steps(name, sizes, arguments)
    rounds: dict[str, list[dict[str, Any]]] = {label: [] for label in measures}
    for _ in range(arguments.rounds):
        for label in list(measures):
            found = attempt(result, label, measures[label])
            if found is None:
                del measures[label]
                continue
            rounds[label].append(found)
            step_s = found.get("float32", found)["step_s"]
            print(f"{label}: step {step_s:.2f} s", flush=True)
    ours, its = rounds[name], rounds.get(f"{name} (released)", [])
    if ours:
        result["models"][name] = {"highest": medians(ours)}
    if its:
        result["released"][name] = {way: medians([each[way] for each in its]) for way in its[0]}


def step_and_forward(**given: Any) -> dict[str, Any]:
    """What `steps.of_step` and, for ways that an evaluation has as well, `steps.of_forward` find."""
    found: dict[str, Any] = in_own_process("step", **given)
    return found | in_own_process("forward", **given) if given["way"] in ("highest", "high") else found


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of what several measurements found: the median of each number that is not the same in all, else the first.

    All values of those numbers are in `rounds`, by name.
    """
    found, varied = {}, {}
    for key, first in rounds[0].items():
        values = [each[key] for each in rounds]
        found[key] = first
        if any(value != first for value in values):
            found[key], varied[key] = statistics.median(values), values
    return found | ({"rounds": varied} if varied else {})


def released_steps(name: str, sizes: tuple[int, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """The released code's step and forward pass in float32 and, on a GPU, in TF32; by how much its outputs differ."""
    device = ("--device", arguments.device)
    ways: dict[str, tuple[str, ...]] = {"float32": device}
    if arguments.device != "cpu":
        ways["tf32"] = (*device, "--tf32")
    found = {}
    with beside.exported(in_own_process, name, sizes, arguments.device, predict=True) as folder:
        for way, options in ways.items():
            given = (arguments.fairchem, folder)
            found[way] = beside.released(*given, "step", arguments.repeats, *options)
            found[way] |= beside.released(*given, "forward", arguments.repeats, *options)
            found[way] |= beside.differences(folder)
    return found


def measure_layers(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Layers alone, ours and the released ones, and by how much the mean magnitudes of their outputs differ."""
    sizes, device = arguments.sizes or SIZES, arguments.device
    for label, (model, name, its_name) in LAYERS.items():
        given = {"name": name, "model": model, "sizes": sizes, "device": device}
        ours = attempt(result, label, in_own_process, "interaction", **given, repeats=arguments.repeats)
        its = None
        if arguments.fairchem:
            its = attempt(result, f"{label} (released)", released_layer, model, its_name, arguments)
        found = {side: seconds for side, seconds in (("ours", ours), ("released", its)) if seconds}
        if ours and its:
            found["magnitudes_relative_difference"] = abs(ours["magnitude"] / its["magnitude"] - 1)
        result["layers"][label] = found


def released_layer(model: str, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """An interaction of the released code alone."""
    sizes, device = arguments.sizes or SIZES, arguments.device
    with beside.exported(in_own_process, model, sizes, device, predict=False) as folder:
        return beside.released(arguments.fairchem, folder, name, arguments.repeats, "--device", device)


def measure_graphs(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    """Searches, graphs and indices on the CPU, ours and the released ones."""
    n_systems = 2 if arguments.quick else len(GRAPH_SIZES)
    result |= {"graph_systems": n_systems, "graph_atoms": sum(GRAPH_SIZES[:n_systems])}
    result["graphs"] = {
        label: {"ours": found} for label, found in of_graphs(n_systems, arguments.repeats).items()
    }
    for model in dict.fromkeys(model for model, _ in GRAPHS.values()) if arguments.fairchem else ():
        released = attempt(
            result, f"graphs for {model} (released)", released_graphs, model, n_systems, arguments
        )
        for label, found in (released or {}).items():
            ours = result["graphs"][label]
            ours["released"] = found
            ours["same_number_of_edges"] = ours["ours"]["edges"] == found["edges"]


def released_graphs(model: str, n_systems: int, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The released code's searches, graphs and indices, of those of `GRAPHS` that are for the model."""
    with beside.exported(in_own_process, model, GRAPH_SIZES[:n_systems], "cpu", predict=False) as folder:
        return {
            label: beside.released(arguments.fairchem, folder, RELEASED_PARTS[label], arguments.repeats)
            for label, (its_model, _) in GRAPHS.items()
            if its_model == model
        }


if __name__ == "__main__":
    main()
