"""What benchmarks/run.py found, as figures."""

from pathlib import Path
from typing import Any

from benchmarks.speed.tables import RELEASED, best, over, peak

LABELS = {"neighbors": "limit of neighbours", "atoms": "atoms of a system", "batch": "systems of 75 atoms"}


def draw_scaling(result: dict[str, Any], file: Path) -> None:
    """Seconds and memory of a step of narrow models against neighbours, atoms and batch."""
    scaling = result["scaling"]
    rows = {"forward_backward_s": "forward + backward, s", "kept_gb": "kept for the gradient, GB"}
    figure, axes = _figure(len(rows), len(LABELS), f"Narrow models (width 64), {_where(result)}")
    for of_row, (key, label) in zip(axes, rows.items(), strict=True):
        for axis, (name, text) in zip(of_row, LABELS.items(), strict=True):
            for model, found in scaling.items():
                points = found[name]
                axis.plot([each[name] for each in points], [each[key] for each in points], "o-", label=model)
            axis.set(xlabel=text, ylabel=label, xlim=(0, None), ylim=(0, None))
    axes[0][0].legend()
    _save(figure, file)


def draw_beside(result: dict[str, Any], file: Path) -> None:
    """Times and memory of the released code over ours, by model."""
    found = {
        name: (result["models"][name]["highest"], its["float32"])
        for name, its in result["released"].items()
        if name in result["models"]
    }
    quantities = {
        "step": lambda ours, its: over(best(its, "step_s"), best(ours, "step_s")),
        "forward pass": lambda ours, its: over(best(its, "forward_s"), best(ours, "forward_s")),
        "memory of a step": lambda ours, its: over(peak(its), peak(ours)),
    }
    figure, [[axis]] = _figure(1, 1, f"{RELEASED} over ocpgem, {_where(result)}", width=8)
    height = 0.8 / len(quantities)
    for number, (label, of) in enumerate(quantities.items()):
        values = [of(ours, its) or 0.0 for ours, its in found.values()]
        places = [place + (number - 1) * height for place in range(len(values))]
        bars = axis.barh(places, values, height, label=label)
        axis.bar_label(bars, fmt="%.2f", padding=2)
    axis.set_yticks(range(len(found)), list(found))
    axis.margins(x=0.12)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xlabel="times (times: best of turns; memory: median); above 1, ours is faster or needs less")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, file)


def _where(result: dict[str, Any]) -> str:
    facts = result["machine"]
    place = facts["device"] if facts["device"] != "cpu" else f"{facts['processor']}, {facts['threads']} cores"
    return f"{place}, commit {(facts['commit'] or 'unknown')[:8]}"


def _figure(rows: int, columns: int, title: str, width: float = 4) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, 3 * rows), layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontsize="medium")
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    import matplotlib.pyplot as plt

    figure.savefig(file)
    plt.close(figure)
