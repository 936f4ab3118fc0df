"""Figures of a run: curves over its steps, parity of predictions and labels, errors by element.

All functions return a PNG, drawn without pyplot: nothing global changes and no display is needed.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from ocpgem.evaluate.history import History, Record, series
from ocpgem.evaluate.prediction_set import PredictionSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
Sets = Mapping[str, PredictionSet]  # split -> predictions with labels
MAX_POINTS = 40_000  # in one parity plot; more only cost time
_PANEL_INCHES = 3.7


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    background: str
    text: str
    grid: str
    line: str  # identity lines and reference marks
    cycle: tuple[str, ...]
    darkest: float  # where on the colour map of densities the lowest one lies


LIGHT = Theme(
    "#ffffff",
    "#1f2933",
    "#e4e7eb",
    "#7b8794",
    ("#2563eb", "#ea580c", "#059669", "#9333ea", "#b45309"),
    0.0,
)
DARK = Theme(
    "#1b2128",
    "#d9dee4",
    "#323b45",
    "#8b98a5",
    ("#60a5fa", "#fb923c", "#34d399", "#c084fc", "#fbbf24"),
    0.3,
)


def as_png(draw: "Callable[Concatenate[Theme, P], Figure]") -> "Callable[Concatenate[Theme, P], bytes]":
    """Draw and save under the settings of the theme: some of them are read only when the file is made."""

    @wraps(draw)
    def png(theme: Theme, *args: P.args, **kwargs: P.kwargs) -> bytes:
        import matplotlib as mpl

        buffer = io.BytesIO()
        with mpl.rc_context(_settings(theme)):
            draw(theme, *args, **kwargs).savefig(buffer, format="png")
        return buffer.getvalue()

    return png


@as_png
def training_curves(theme: Theme, history: History) -> "Figure":
    """Loss, force and energy errors of training and validation, and the learning rate, over the steps."""
    panels = [panel for panel in _PANELS if _has(history, panel)]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.9 * columns, 2.9 * rows)
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), history, panel, theme)
    return figure


@as_png
def energy_parity(theme: Theme, sets: Sets) -> "Figure":
    """Predicted against true energies, a panel per split."""
    return _parity_panels(sets, _draw_energy_parity, theme)


@as_png
def force_parity(theme: Theme, sets: Sets) -> "Figure":
    """Predicted against true force components of the free atoms, a panel per split."""
    return _parity_panels(sets, _draw_force_parity, theme)


@as_png
def parity(theme: Theme, title: str, each: PredictionSet) -> "Figure":
    """Predicted against true energies and, where there are any, force components of one data set, side by side."""
    with_forces = each.forces is not None and each.forces_true is not None
    figure = new_figure(_PANEL_INCHES * (1 + with_forces), 1.05 * _PANEL_INCHES)
    _draw_energy_parity(figure.add_subplot(1, 1 + with_forces, 1), f"Energy, {title}", each, theme)
    if with_forces:
        _draw_force_parity(figure.add_subplot(1, 2, 2), f"Forces, {title}", each, theme)
    return figure


@as_png
def error_by_element(theme: Theme, sets: Sets) -> "Figure":
    """The force MAE of each element's free atoms, a panel per split, beside that of predicting zero."""
    from ase.data import chemical_symbols

    found = sorted({int(z) for each in sets.values() for z in np.unique(each.atomic_numbers[~each.fixed])})
    figure = new_figure(max(4.9, min(11.0, 1.6 + 0.42 * len(found))), 0.5 + 2.1 * len(sets))
    for number, (split, each) in enumerate(sets.items(), start=1):
        ax = figure.add_subplot(len(sets), 1, number)
        error, zero = _errors_by_element(each, found)
        places = np.arange(len(found))
        ax.bar(places, error, width=0.7, color=theme.cycle[0])
        ax.scatter(
            places, zero, marker="_", s=130, color=theme.cycle[1], label="predicting zero force", zorder=3
        )
        ax.set_xticks(places, [chemical_symbols[z] for z in found])
        ax.set_ylabel("force MAE (eV/Å)")
        ax.set_title(split)
        ax.grid(False, axis="x")
        if number == 1:
            ax.legend(loc="upper left")
            ax.set_ylim(top=1.25 * np.nanmax(np.concatenate([error, zero])))
    return figure


@as_png
def overview(theme: Theme, history: History, sets: Sets) -> "Figure":
    """One picture of a run: how it learned, and the parity of energies and forces on its first split."""
    panels = [panel for panel in (_PANELS[0], _PANELS[1], _PANELS[2]) if _has(history, panel)][:2]
    split, first = next(iter(sets.items()), ("", None))
    draw: list[Callable[[Axes], None]] = [
        lambda ax, panel=panel: _draw_panel(ax, history, panel, theme)  # type: ignore[misc]
        for panel in panels
    ]
    if first is not None and has_labels(first):
        draw.append(lambda ax: _draw_energy_parity(ax, f"Energy, {split}", first, theme))
        if first.forces is not None and first.forces_true is not None:
            draw.append(lambda ax: _draw_force_parity(ax, f"Forces, {split}", first, theme))
    figure = new_figure(_PANEL_INCHES * len(draw), 3.4)
    for number, each in enumerate(draw, start=1):
        each(figure.add_subplot(1, len(draw), number))
    return figure


@as_png
def activation_variances(
    theme: Theme, names: Sequence[str], without: Sequence[float], with_factors: Sequence[float]
) -> "Figure":
    """The variance of each activation with and without scale factors, from input to output, as the GemNet paper has it.

    names, without, with_factors: one entry for each activation, in the order of the forward pass.
    """
    figure = new_figure(6.4, 1.3 + 0.17 * len(names))
    ax = figure.add_subplot()
    rows = np.arange(len(names))
    ax.axvline(1, color=theme.line, lw=0.9)
    for values, label, colour in (
        (without, "without factors", theme.cycle[1]),
        (with_factors, "with factors", theme.cycle[0]),
    ):
        ax.plot(values, rows, marker="o", ms=3.5, lw=1.2, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_yticks(rows, names, fontsize=7)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.set_xlabel("variance of the activation")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def has_labels(predictions: PredictionSet) -> bool:
    """Whether true energies are at hand."""
    return predictions.energy_true is not None


@dataclass(frozen=True)
class _Panel:
    """One number over the steps."""

    name: str
    title: str
    unit: str
    may_be_log: bool = True


_PANELS = (
    _Panel("loss", "Training loss", ""),
    _Panel("forces_mae", "Force MAE", "eV/Å"),
    _Panel("energy_mae", "Energy MAE", "eV"),
    _Panel("lr", "Learning rate", "", may_be_log=False),
)


def _lines(history: History, panel: _Panel) -> dict[str, list[Record]]:
    """The records with this number, by the name of their line."""
    everything = {"train": history.train, **history.validation}
    return {name: records for name, records in everything.items() if len(series(records, panel.name)[0])}


def _has(history: History, panel: _Panel) -> bool:
    return bool(_lines(history, panel))


def _draw_panel(ax: "Axes", history: History, panel: _Panel, theme: Theme) -> None:
    lines = _lines(history, panel)
    lowest, highest = math.inf, 0.0
    for number, (name, records) in enumerate(lines.items()):
        steps, values = series(records, panel.name)
        colour = theme.cycle[number % len(theme.cycle)]
        noisy = panel.name == "loss" and len(values) > 30 and values.min() > 0
        ax.plot(steps, values, color=colour, alpha=0.3 if noisy else 1, lw=1 if noisy else 1.7, label=name,
                marker="o" if len(values) < 25 else None, ms=3)  # fmt: skip
        if noisy:
            ax.plot(steps, running_mean(values, max(5, len(values) // 20)), color=colour, lw=1.9)
        lowest, highest = min(lowest, values.min()), max(highest, values.max())
    if panel.may_be_log and lowest > 0 and highest > 4 * lowest:
        logarithmic(ax, lowest, highest)
    elif not panel.may_be_log:
        ax.set_ylim(bottom=0)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    ax.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
    ax.set_xlabel("step")
    ax.set_xlim(0, 1.02 * history.n_steps)
    if len(lines) > 1 or "train" not in lines:
        ax.legend()


def logarithmic(ax: "Axes", lowest: float, highest: float) -> None:
    """A logarithmic axis whose marks are plain numbers, several even within less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    marks = (1.0, 2.0, 3.0, 5.0, 7.0) if highest < 10 * lowest else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=marks if highest < 100 * lowest else (1.0,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _parity_panels(
    sets: Sets, draw: "Callable[[Axes, str, PredictionSet, Theme], None]", theme: Theme
) -> "Figure":
    columns = len(sets) if len(sets) <= 3 else math.ceil(len(sets) / 2)
    rows = math.ceil(len(sets) / columns)
    figure = new_figure(_PANEL_INCHES * columns, _PANEL_INCHES * rows)
    for number, (split, each) in enumerate(sets.items(), start=1):
        draw(figure.add_subplot(rows, columns, number), split, each, theme)
    return figure


def _draw_energy_parity(ax: "Axes", title: str, each: PredictionSet, theme: Theme) -> None:
    assert each.energy_true is not None, "parity needs labels"
    true, ours = each.energy_true.astype(float), each.energy.astype(float)
    mae, median_mae = np.abs(ours - true).mean(), np.abs(np.median(true) - true).mean()
    text = f"MAE {mae:#.3g} eV\n{median_mae:#.3g} eV by the median\n{len(true):,} systems"
    _draw_parity(ax, true, ours, text, theme)
    ax.set(title=title, xlabel="true energy (eV)", ylabel="predicted energy (eV)")


def _draw_force_parity(ax: "Axes", title: str, each: PredictionSet, theme: Theme) -> None:
    assert each.forces is not None, "parity needs forces"
    assert each.forces_true is not None, "parity needs labels"
    free = ~each.fixed
    true, ours = each.forces_true[free].ravel().astype(float), each.forces[free].ravel().astype(float)
    if len(true) == 0:
        ax.set(title=title)
        ax.text(0.5, 0.5, "no free atoms", transform=ax.transAxes, ha="center")
        return
    mae, zero_mae = np.abs(ours - true).mean(), np.abs(true).mean()
    text = f"MAE {mae:#.3g} eV/Å\n{zero_mae:#.3g} eV/Å by zero\n{free.sum():,} atoms"
    _draw_parity(ax, true, ours, text, theme)
    ax.set(title=title, xlabel="true force component (eV/Å)", ylabel="predicted (eV/Å)")


def _draw_parity(ax: "Axes", true: NDArray[Any], ours: NDArray[Any], text: str, theme: Theme) -> None:
    low, high = min(true.min(), ours.min()), max(true.max(), ours.max())
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    if len(true) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(true), MAX_POINTS, replace=False)
        true, ours = true[chosen], ours[chosen]
    ax.plot(limits, limits, color=theme.line, lw=0.9, zorder=3)
    density = np.log(point_density(true, ours, limits))
    order = np.argsort(density)
    share = (density - density.min()) / max(float(np.ptp(density)), 1e-9)
    colour = theme.darkest + (1 - theme.darkest) * share
    size = float(np.clip(6000 / len(true), 2.0, 22.0))
    ax.scatter(
        true[order], ours[order], c=colour[order], s=size, cmap="viridis", vmin=0, vmax=1, lw=0, zorder=2
    )
    ax.set(xlim=limits, ylim=limits, aspect="equal")
    ax.text(0.04, 0.96, text, transform=ax.transAxes, va="top", fontsize=8.5, linespacing=1.35,
            bbox={"facecolor": theme.background, "alpha": 0.75, "lw": 0, "pad": 2})  # fmt: skip


def point_density(x: NDArray[Any], y: NDArray[Any], limits: tuple[float, float]) -> NDArray[Any]:
    """How many points share the neighbourhood of each, from a smoothed histogram; above 0."""
    from scipy.ndimage import gaussian_filter

    n_bins = 60
    counts, edges, _ = np.histogram2d(x, y, bins=n_bins, range=(limits, limits))
    smooth = gaussian_filter(counts, 1.0)
    place = [np.clip(np.searchsorted(edges, values, side="right") - 1, 0, n_bins - 1) for values in (x, y)]
    return np.maximum(smooth[place[0], place[1]], 0.05)


def running_mean(values: NDArray[Any], width: int) -> NDArray[Any]:
    """The geometric mean of positive values over a centred window that shrinks at both ends."""
    half = width // 2
    total = np.concatenate([[0.0], np.cumsum(np.log(values))])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.exp((total[last] - total[first]) / (last - first))


def _errors_by_element(each: PredictionSet, elements: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The force MAE of each element, and that of predicting zero; NaN where no free atom is of it."""
    assert each.forces is not None, "needs forces"
    assert each.forces_true is not None, "needs labels"
    free = ~each.fixed
    numbers = each.atomic_numbers[free].astype(int)
    count = np.bincount(numbers, minlength=max(elements) + 1)[elements]
    means = []
    for values in (each.forces[free].astype(float) - each.forces_true[free], each.forces_true[free]):
        total = np.bincount(numbers, np.abs(values).mean(axis=1), minlength=max(elements) + 1)[elements]
        means.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    return means[0], means[1]


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def _settings(theme: Theme) -> Any:
    return {
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.text,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
    }
