"""What benchmarks/run.py found, as tables: one a topic."""

from collections.abc import Sequence
from typing import Any

from benchmarks.speed.machine import as_words

RELEASED = "fairchem-core 1.10.0"
STEP = {
    "atoms": "atoms", "edges": "edges", "forward_s": "forward s", "forward_floor_s": "floor s of forward",
    "forward_over_floor": "forward / floor", "step_s": "step s", "step_floor_s": "floor s of step",
    "step_over_floor": "step / floor", "kept_gb": "kept GB", "kernels_forward": "kernels forward",
    "kernels_backward": "kernels backward", "waits": "waits",
}  # fmt: skip

TIMES = {
    ("GemNet-dT", "step"): 1.4,
    ("GemNet-OC", "step"): 1.65,
    ("GemNet-T (gradient forces)", "step"): 2.0,
    ("TUM GemNet-T", "step"): 2.5,
    ("GemNet-Q in the OC code", "step"): 2.0,
    ("GemNet-dT", "forward"): 1.5,
    ("GemNet-OC", "forward"): 2.2,
}
"""How many times as fast as the released code ours is meant to be."""
PARTS = {
    "triplet interaction of GemNet-dT": 5.0,
    "quadruplet interaction of GemNet-OC": 4.0,
    "all pairs within 6 A": 10.0,
    "all pairs within 12 A": 10.0,
    "graphs and indices of GemNet-dT": 10.0,
    "graphs and indices of GemNet-OC": 10.0,
}
"""The same of parts alone, of layers without gradient."""
MEMORY = {"highest": 0.4, "checkpointing": 0.15}
"""The share of the released code's memory that a step is meant to need."""


def as_table(result: dict[str, Any]) -> str:
    """All tables; `result` is what speed.json holds."""
    lines = ["# Speed and memory at published sizes", "", *_facts(result)]
    lines += _steps(result)
    for name, reason in result["failed"].items():
        lines += [
            "",
            f"{name} could not be measured: {reason.splitlines()[-1] if reason else 'no reason given'}",
        ]
    lines += (
        _targets(result)
        + _beside(result)
        + _memory(result)
        + _other_ways(result)
        + _precisions(result)
        + _accuracy(result)
        + _parts(result)
    )
    lines += _scaling(result) + _start_up(result)
    if "loader" in result:
        lines += _loader(result["loader"])
    if "ranks" in result:
        lines += _ranks(result["ranks"])
    return "\n".join(lines) + "\n"


def _table(title: str, text: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A heading, a paragraph and a table; columns without any value are left out, tables without rows, too."""
    shown = [n for n in range(len(columns)) if any(row[n] is not None for row in rows)]
    if not rows:
        return []
    lines = ["", f"## {title}", "", *([text, ""] if text else [])]
    lines += [_row([columns[n] for n in shown]), "|---" * len(shown) + "|"]
    return lines + [_row([_cell(row[n]) for n in shown]) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | str | None) -> str:
    if value is None:  # not measured
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"


def over(a: float | None, b: float | None) -> float | None:
    """a / b, where there are both."""
    return None if a is None or b is None else a / b


def best(found: dict[str, Any], key: str) -> float | None:
    """The smallest of all turns."""
    values: list[float] = found.get("rounds", {}).get(key, [])
    return min(values, default=found.get(key))


def fastest_product(found: Any) -> float:
    """GFLOP/s of the fastest of all large products that were measured, in any process; 0 if none was."""
    if isinstance(found, dict):
        own = found.get("gflops_of_product", 0.0)
        return max([*own, 0.0] if isinstance(own, list) else [own, *map(fastest_product, found.values())])
    return 0.0


def peak(found: dict[str, Any], of: str = "") -> float | None:
    """The most memory: of the GPU where there is one, else of the process; of: "" for a step, or "forward_"."""
    peak: float | None = found.get(f"{of}peak_device_gb", found.get(f"{of}peak_process_gb"))
    return peak


def _facts(result: dict[str, Any]) -> list[str]:
    its = ", ".join(f"{name} {version}" for name, version in (result.get("released_versions") or {}).items())
    return [as_words(result["machine"]) + (f". The released code has {its}." if its else ".")]


def _steps(result: dict[str, Any]) -> list[str]:
    labels = {"highest": "", "plain": " (plain chains)"}
    rate = fastest_product(result)
    rows = [
        [name + label, *map(with_floors(found[way], rate).get, STEP)]
        for name, found in result["models"].items()
        for way, label in labels.items()
        if way in found
    ]
    text = (
        "Ours in float32. Steps and forward passes without gradient each have a process of their own, as training and "
        "evaluation do. A step: forward, loss, backward, AdamW and moving average. Seconds are medians of all turns; "
        f"over their floor are the best. Floor: the dense products at {rate:.0f} GFLOP/s, the speed of the fastest of "
        "all [15000, 512] x [512, 512] products that were tried in all processes of this run."
    )
    return _table("Models", text, ["model", *STEP.values()], rows)


def with_floors(found: dict[str, Any], rate: float) -> dict[str, Any]:
    """What was found of a model, with the seconds of its products at a rate in GFLOP/s, and best turns over them."""
    floors = {
        f"{part}_floor_s": over(found.get(f"products_of_{part}_gflop"), rate) for part in ("forward", "step")
    }
    ratios = {
        f"{part}_over_floor": over(best(found, f"{part}_s"), floors[f"{part}_floor_s"])
        for part in ("forward", "step")
    }
    return found | floors | ratios


def _targets(result: dict[str, Any]) -> list[str]:
    """What was to be reached, what was, and what could be, if ours took no more than its floor."""
    columns = ("its / ours", "target", "median of turns", "best of turns", "at our floor")
    rows: list[list[Any]] = []
    rate = fastest_product(result)
    for (name, part), target in TIMES.items():
        ours = result["models"].get(name, {}).get("highest", {})
        its = result["released"].get(name, {}).get("float32", {})
        key = f"{part}_s"
        if key in ours and key in its:
            floor = over(ours.get(f"products_of_{part}_gflop"), rate)
            ratios = [
                over(its[key], ours[key]),
                over(best(its, key), best(ours, key)),
                over(best(its, key), floor),
            ]
            rows.append([f"{name}, {part}", target, *ratios])
    for label, target in PARTS.items():
        found = result["layers"].get(label) or result["graphs"].get(label) or {}
        ours, its = found.get("ours", {}), found.get("released", {})
        key = "forward_s" if label in result["layers"] else "seconds"
        if key in ours and key in its:
            floor = over(ours.get("products_gflop"), rate)
            rows.append([label, target, over(its[key], ours[key]), None, over(its[key], floor)])
    text = (
        "Of time: above the target is better. Layers, searches and indices are measured in one turn. At our floor: if "
        "ours were as fast as its dense products allow, and the released code as in this run."
    )
    return _table("Targets", text, columns, rows)


def _memory(result: dict[str, Any]) -> list[str]:
    """Where the memory of a step's process is; on a CPU."""
    columns = (
        "model", "setting", "runtime GB", "weights, moments, average GB", "tensors GB, counted", "their sum GB",
        "process GB", "its process GB", "sum / its", "process / its", "target",
    )  # fmt: skip
    rows = []
    for name, ways in result["models"].items():
        its = result["released"].get(name, {}).get("float32", {}).get("peak_process_gb")
        for way, setting in {"highest": "", "checkpointing": "`activation_checkpointing: true`"}.items():
            found = ways.get(way, {})
            if "peak_counted_gb" in found:
                parts = [found["runtime_gb"], found["state_gb"], found["peak_counted_gb"]]
                row = [name, setting, *parts, sum(parts), found["peak_process_gb"], its]
                target = None if its is None else MEMORY[way]
                rows.append([*row, over(sum(parts), its), over(found["peak_process_gb"], its), target])
    text = (
        "Runtime: what a process holds before it has a model. Tensors: the most that a step holds beside weights, "
        "moments of AdamW and moving average, counted. What the process holds beyond their sum are gaps between "
        "blocks, and copies that libraries make. Process: the most memory that it ever held. Its: "
        f"{RELEASED}, which keeps activations."
    )
    return _table("Memory of a step", text, columns, rows)


def _beside(result: dict[str, Any]) -> list[str]:
    columns = (
        "model", "atoms", "our forward s", "its forward s", "its / our forward", "best / best", "our step s",
        "its step s", "its / our step", "best / best", "our peak GB", "its peak GB", "our / its peak",
        "our / its forward peak", "energies differ by", "forces differ by",
    )  # fmt: skip
    rows = []
    for name, found in result["released"].items():
        ours, its = result["models"].get(name, {}).get("highest", {}), found["float32"]
        row = [name, ours.get("atoms")]
        for part in ("forward_s", "step_s"):
            row += [ours.get(part), its[part], over(its[part], ours.get(part))]
            row.append(over(best(its, part), best(ours, part)))
        row += [peak(ours), peak(its), over(peak(ours), peak(its))]
        row.append(over(peak(ours, "forward_"), peak(its, "forward_")))
        rows.append([*row, its["energy_relative_difference"], its["forces_relative_difference"]])
    text = (
        f"Both in float32, with the same weights on the same systems, each in a process of its own. Its: {RELEASED}. "
        "Seconds are medians of all turns; best / best is the ratio of the best of its turns to the best of ours. "
        "Its / our time above 1: ours is faster; our / its peak below 1: ours needs less memory (of the GPU where "
        "there is one, else of the process). On a CPU with glibc, ours keeps freed memory, as our runs do. Its times "
        "include search and indices, which our loader's workers do: see parts below. Differences of outputs: the "
        "largest, relative to the largest value. Of neighbours that are equally far, such as an atom's own images in "
        "the small cells of --quick, each code may keep another one."
    )
    return _table(f"Beside {RELEASED}", text, columns, rows)


def _other_ways(result: dict[str, Any]) -> list[str]:
    columns = (
        "model", "setting", "atoms", "step s", "step / usual step", "peak GB, counted", "peak GB", "usual peak GB",
        "peak / its peak", "usual peak / its peak",
    )  # fmt: skip
    settings = {
        "checkpointing": "activation_checkpointing: true",
        "blocks": "compile: blocks",
        "full": "compile: full",
    }
    rows = []
    for name, ways in result["models"].items():
        usual, its = ways.get("highest", {}), peak(result["released"].get(name, {}).get("float32", {}))
        for way, setting in settings.items():
            if way in ways:
                found = ways[way]
                row = [name, f"`{setting}`", found["atoms"], found["step_s"]]
                row += [over(found["step_s"], usual.get("step_s")), found.get("peak_counted_gb")]
                row += [peak(found), peak(usual), over(peak(found), its), over(peak(usual), its)]
                rows.append(row)
    text = (
        "Ours with activations computed again instead of kept, or translated by torch.compile, "
        f"and the usual step without either. Its: {RELEASED}, which keeps activations."
    )
    return _table("Other ways of computing a step", text, columns, rows)


def _precisions(result: dict[str, Any]) -> list[str]:
    columns = (
        "model", "precision", "forward s", "step s", "its float32 step / this", "its TF32 step / this", "peak GB",
    )  # fmt: skip
    rows = []
    for name, ways in result["models"].items():
        its = result["released"].get(name, {})
        for precision in ("highest", "high", "bf16"):
            ours = ways.get(precision)
            if ours is None:
                continue
            row = [name, precision, ours.get("forward_s"), ours.get("step_s")]
            row += [over(its.get(way, {}).get("step_s"), ours.get("step_s")) for way in ("float32", "tf32")]
            rows.append([*row, peak(ours)])
    text = (
        "highest: float32; high: TF32 products, which only a GPU has; bf16: dense layers in bfloat16. "
        f"Its: {RELEASED}; above 1, ours is faster."
    )
    return _table("Precisions", text, columns, rows)


def _accuracy(result: dict[str, Any]) -> list[str]:
    columns = (
        "model", "precision", "energy error, mean", "energy error, max", "forces error, mean", "forces error, max"
    )  # fmt: skip
    kinds = [f"{key}_error_{kind}" for key in ("energy", "forces") for kind in ("mean", "max")]
    rows = [
        [name, precision, *map(errors.get, kinds)]
        for name, found in result["errors"].items()
        for precision, errors in found.items()
    ]
    text = (
        "Of the same weights, random ones, against float64: of energies and of force vectors, relative to their mean "
        "magnitude. On a CPU, which multiplies in float32, high is what a GPU would compute: factors of all products "
        "are rounded to TF32."
    )
    return _table("Accuracy of precisions", text, columns, rows)


def _parts(result: dict[str, Any]) -> list[str]:
    rows: list[list[Any]] = []
    rate = fastest_product(result)
    for label, found in result["layers"].items():
        ours, its = found.get("ours", {}), found.get("released", {})
        floor = over(ours.get("products_gflop"), rate)
        # the gradients by input and by weight are as many products each
        for key, name, factor in (
            ("forward_s", "forward", 1),
            ("forward_backward_s", "forward + backward", 3),
        ):
            times = [ours.get(key), its.get(key), over(its.get(key), ours.get(key))]
            floors = [None, None] if floor is None else [factor * floor, over(its.get(key), factor * floor)]
            magnitudes = found.get("magnitudes_relative_difference")
            rows.append([f"{label}, {name}", *times, *floors, None, None, magnitudes])
    for label, found in result["graphs"].items():
        ours, its = found["ours"], found.get("released", {})
        times = [ours["seconds"], its.get("seconds"), over(its.get("seconds"), ours["seconds"])]
        rows.append([label, *times, None, None, ours["edges"], its.get("edges"), None])
    columns = (
        "part", "our s", "its s", "its / our time", "floor s", "its / floor", "our edges", "its edges",
        "magnitudes differ by",
    )  # fmt: skip
    n_systems, n_atoms = result.get("graph_systems", 0), result.get("graph_atoms", 0)
    text = (
        "A layer: of the first block, on the systems of a step, with the arguments (bases and indices among them) that "
        "it gets in its model; magnitudes: the mean magnitude of what it returns; floor: its dense products, as "
        f"above. Graphs: on the CPU, of {n_systems} systems, {n_atoms:,} atoms; edges are those of the main graph, or "
        f"all pairs. Its: {RELEASED}; above 1, ours is faster."
    )
    return _table("Parts alone", text, columns, rows)


def _scaling(result: dict[str, Any]) -> list[str]:
    numbers = {
        "forward_backward_s": "forward + backward s",
        "kept_gb": "kept GB",
        "peak_counted_gb": "peak GB, counted",
    }
    rows = [
        [model, axis, point[axis], point["edges"], *map(point.get, numbers)]
        for model, found in result.get("scaling", {}).items()
        for axis, points in found.items()
        for point in points
    ]
    text = (
        "Models of width 64 within 10 A: limits of neighbours on one system of 100 atoms, systems of several sizes and "
        "batches of systems of 75 atoms with at most 50 neighbours; one measurement of each."
    )
    return _table("Scaling", text, ("model", "against", "value", "edges", *numbers.values()), rows)


def _start_up(result: dict[str, Any]) -> list[str]:
    rows = [[name.removesuffix("_s").replace("_", " "), value] for name, value in result["start_up"].items()]
    return _table("Start", "", ("command", "seconds"), rows)


def _loader(found: dict[str, Any]) -> list[str]:
    rows = [[name, f"{value:,.0f}"] for name, value in found["systems_per_second"].items()]
    return _table("Loader", "", ("loader, one core", "systems/s"), rows)


def _ranks(found: dict[str, Any]) -> list[str]:
    """Scaling over ranks and bytes that a rank sends under ZeRO-1, of benchmarks/scaling.py."""
    rows = []
    for size, each in found["ranks"].items():
        sent = next(case["sent_bytes"] for case in each["traffic"] if case["label"] == "ZeRO-1, 1 bucket")
        rows.append([str(size), each["weak"], each["strong"], f"{sent:,.0f}"])
    return _table("Ranks", "", ("ranks", "weak: s a step", "strong: s a step", "bytes sent by a rank"), rows)
