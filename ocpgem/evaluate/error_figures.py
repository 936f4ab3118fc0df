"""Figures of errors by group, and of the spread of an ensemble against its error."""

import math
from typing import TYPE_CHECKING

import numpy as np

from ocpgem.evaluate import breakdown
from ocpgem.evaluate.breakdown import Breakdown, Calibration
from ocpgem.evaluate.figures import Sets, Theme, as_png, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ADSORBATES = 24


@as_png
def error_by_adsorbate(theme: Theme, sets: Sets) -> "Figure":
    """Energy and force MAE of the commonest adsorbates, a row of panels per split."""
    names, totals = np.unique(
        [name for each in sets.values() for name in breakdown.adsorbates(each)], return_counts=True
    )
    shown = sorted(
        names[np.argsort(-totals, kind="stable")][:_MOST_ADSORBATES].tolist(), key=lambda n: (len(n), n)
    )
    order = shown + sorted(set(names.tolist()) - set(shown))
    width = min(6.2, max(4.0, 0.8 + 0.42 * len(shown)))

    def panel(each: "breakdown.PredictionSet", forces: bool) -> Breakdown:
        found = breakdown.by_adsorbate(each, order, forces)
        n = len(shown)
        return Breakdown(shown, found.counts[:n], found.error[:n], found.guess[:n])

    return _rows(theme, sets, panel, width, "adsorbate", rotate=True)


@as_png
def error_by_size(theme: Theme, sets: Sets) -> "Figure":
    """Energy and force MAE by the number of atoms, a row of panels per split."""
    edges = breakdown.size_bins(np.concatenate([each.natoms for each in sets.values()]))
    return _rows(theme, sets, lambda each, forces: breakdown.by_size(each, edges, forces), 4.6, "atoms")


@as_png
def error_by_magnitude(theme: Theme, sets: Sets) -> "Figure":
    """The force MAE by the length of the true force, a panel per split, with the share of the atoms in each group."""
    columns = min(2, len(sets))
    rows = math.ceil(len(sets) / columns)
    figure = new_figure(5.2 * columns, 0.4 + 2.7 * rows)
    for number, (split, each) in enumerate(sets.items(), start=1):
        ax = figure.add_subplot(rows, columns, number)
        found = breakdown.by_magnitude(each)
        share = found.counts / found.counts.sum()
        names = [f"{name}\n{_percent(part)}" for name, part in zip(found.names, share, strict=True)]
        _bars(ax, Breakdown(names, found.counts, found.error, found.guess), theme, "predicting zero force")
        ax.set_yscale("log")
        ax.set(
            title=split,
            ylabel="force MAE (eV/Å)",
            xlabel="length of the true force (eV/Å), share of the atoms",
        )
        if number == 1:
            ax.legend(loc="upper left")
    return figure


@as_png
def spread_against_error(theme: Theme, sets: Sets) -> "Figure":
    """The error of an ensemble against its spread, energies and forces, a row of panels per split."""
    found = [
        (f"{what}, {split}", unit, compare(each))
        for split, each in sets.items()
        for what, unit, compare in (
            ("Energy", "eV", breakdown.calibration_of_energies),
            ("Forces", "eV/Å", breakdown.calibration_of_forces),
        )
    ]
    panels = [(title, unit, each) for title, unit, each in found if each is not None]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.2 * columns, 3.5 * rows)
    for number, (title, unit, each) in enumerate(panels, start=1):
        _draw_calibration(figure.add_subplot(rows, columns, number), title, unit, each, theme)
    return figure


def has_spread(each: "breakdown.PredictionSet") -> bool:
    """Whether there is anything for `spread_against_error` to show."""
    return any(
        compare(each) is not None
        for compare in (breakdown.calibration_of_energies, breakdown.calibration_of_forces)
    )


def _rows(  # type: ignore[no-untyped-def]
    theme: Theme, sets: Sets, panel, width: float, label: str, rotate: bool = False
) -> "Figure":
    """Energies left, forces right where there are any; panel: (predictions, of forces) -> breakdown."""
    forces = {split: each.forces is not None and each.forces_true is not None for split, each in sets.items()}
    columns = 2 if any(forces.values()) else 1
    figure = new_figure(width * columns, 0.5 + (2.6 if rotate else 2.4) * len(sets))
    for row, (split, each) in enumerate(sets.items()):
        kinds = [(False, "energy MAE (eV)", "the median energy"), (True, "force MAE (eV/Å)", "zero force")]
        for column, (of_forces, ylabel, guess) in enumerate(kinds[: 1 + forces[split]]):
            ax = figure.add_subplot(len(sets), columns, row * columns + column + 1)
            _bars(ax, panel(each, of_forces), theme, f"predicting {guess}")
            ax.set(title=split, ylabel=ylabel)
            if rotate:
                ax.tick_params(axis="x", labelrotation=60)
            if row == len(sets) - 1:
                ax.set_xlabel(label)
            if row == 0:
                ax.legend(loc="upper left")
                ax.set_ylim(top=1.3 * ax.get_ylim()[1])
    return figure


def _bars(ax: "Axes", found: Breakdown, theme: Theme, guess: str) -> None:
    places = np.arange(len(found.names))
    ax.bar(places, found.error, width=0.7, color=theme.cycle[0])
    ax.scatter(places, found.guess, marker="_", s=130, color=theme.cycle[1], label=guess, zorder=3)
    ax.set_xticks(places, found.names)
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.grid(False, axis="x")


def _percent(share: float) -> str:
    """A share in whole percent; what is there but too little for one is not called 0 %."""
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _draw_calibration(ax: "Axes", title: str, unit: str, each: Calibration, theme: Theme) -> None:
    values = np.concatenate([each.spread, each.error])
    positive = values[values > 0]
    limits = (0.7 * positive.min(), 1.4 * positive.max())
    ax.plot(limits, limits, color=theme.line, lw=0.9)
    ax.plot(each.spread, each.error, marker="o", ms=4, lw=1.2, color=theme.cycle[0])
    ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal", title=title)
    ax.set(xlabel=f"spread of the members ({unit})", ylabel=f"error of their mean ({unit})")
    text = f"error / spread {each.ratio:.2f}\nrank correlation {each.rank:.2f}"
    # Below the line, where an ensemble seldom is: its members agree more than they are right.
    ax.text(0.96, 0.04, text, transform=ax.transAxes, va="bottom", ha="right", fontsize=8.5, linespacing=1.35)
