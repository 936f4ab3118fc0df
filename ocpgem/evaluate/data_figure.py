"""The figure of `data inspect`: elements, labels and edges of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.inspect import Inspection
from ocpgem.data.sizes import CUTOFF, MAX_NEIGHBORS
from ocpgem.evaluate.figures import Theme, as_png, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 50


@as_png
def data_figure(theme: Theme, found: Inspection, title: str) -> Figure:
    """Elements above; energies, forces and atoms; neighbours, lengths of edges and edges of a record."""
    figure = new_figure(11.0, 8.6)
    grid = figure.add_gridspec(3, 3, height_ratios=[1.15, 1, 1])
    _elements(figure.add_subplot(grid[0, :]), found, theme)
    _energies(figure.add_subplot(grid[1, 0]), found, theme)
    _forces(figure.add_subplot(grid[1, 1]), found, theme)
    _histogram(figure.add_subplot(grid[1, 2]), found.sizes["n_atoms"], theme, "atoms of a record", "records")
    _neighbours(figure.add_subplot(grid[2, 0]), found, theme)
    _histogram(figure.add_subplot(grid[2, 1]), found.edges.lengths, theme, "length of an edge, A", "edges")
    label = f"edges of a record ({CUTOFF:g} A, nearest {MAX_NEIGHBORS})"
    _histogram(figure.add_subplot(grid[2, 2]), found.sizes["n_edges"], theme, label, "records")
    figure.suptitle(
        f"{title}: {len(found.dataset):,} records", fontsize=12, fontweight="bold", color=theme.text
    )
    figure.supxlabel(found.notice, fontsize=8.5, color=theme.line)
    return figure


def _elements(ax: Axes, found: Inspection, theme: Theme) -> None:
    """Share of the atoms, and of the records that hold it, for every element in the order of the periodic table."""
    from ase.data import chemical_symbols

    atoms, records = found.elements()
    species = sorted(atoms)
    place = np.arange(len(species))
    held = [100 * records[z] / len(found.sample) for z in species]
    share = [100 * atoms[z] / sum(atoms.values()) for z in species]
    ax.bar(place, held, 0.8, color=theme.line, alpha=0.3, label="of the records hold it")
    ax.bar(place, share, 0.5, color=theme.cycle[0], label="of the atoms")
    ax.set_xticks(place, [chemical_symbols[z] for z in species], fontsize=8.5 if len(species) <= 45 else 6.5)
    ax.set_xlim(-0.7, len(species) - 0.3)
    ax.grid(axis="x", visible=False)
    ax.set_ylabel("%")
    ax.set_title(f"{len(species)} elements")
    ax.legend(loc="upper right", ncols=2)


def _energies(ax: Axes, found: Inspection, theme: Theme) -> None:
    known = {key: values for key in ("energy", "energy_relaxed") if len(values := found.energies(key))}
    ax.set_title("energies")
    if not known:
        _nothing(ax, "no energies", theme)
        return
    edges = _edges(np.concatenate(list(known.values())))
    for (key, values), color in zip(known.items(), theme.cycle, strict=False):
        ax.hist(values, edges, color=color, alpha=0.75, label=key)
    ax.set_yscale("log")  # single wrong labels far out should be seen
    ax.set_xlabel("eV")
    ax.set_ylabel("records")
    ax.legend()


def _forces(ax: Axes, found: Inspection, theme: Theme) -> None:
    norms = np.linalg.norm(found.free_forces, axis=1)
    above = norms[norms > 0]
    ax.set_title("forces on free atoms")
    if not len(above):
        _nothing(ax, "no forces" if not len(norms) else "all forces are zero", theme)
        return
    low, high = np.log10(above.min()), np.log10(above.max())
    ax.hist(above, np.logspace(low, max(high, low + 0.1), _BINS).tolist(), color=theme.cycle[0])
    ax.set_xscale("log")
    n_zero = len(norms) - len(above)
    ax.set_xlabel("norm, eV/A" + (f" ({n_zero:,} are zero)" if n_zero else ""))
    ax.set_ylabel("atoms")


def _neighbours(ax: Axes, found: Inspection, theme: Theme) -> None:
    degrees = found.edges.degrees
    _histogram(ax, degrees, theme, f"neighbours of an atom within {CUTOFF:g} A", "atoms")
    if degrees.max() > MAX_NEIGHBORS:
        ax.axvline(MAX_NEIGHBORS + 0.5, color=theme.cycle[1], linewidth=1.2)
        beyond = 100 * np.mean(degrees > MAX_NEIGHBORS)
        ax.set_title(f"{beyond:.0f} % of the atoms have more than {MAX_NEIGHBORS}")


def _histogram(ax: Axes, values: NDArray[Any], theme: Theme, xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if len(values):
        ax.hist(values, _edges(values), color=theme.cycle[0])
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        _nothing(ax, "none", theme)


def _edges(values: NDArray[Any]) -> list[float]:
    """Edges of equal bins; of whole numbers, bins that hold equally many of them."""
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.integer):
        width = max(1, -(-int(high - low + 1) // _BINS))
        edges = np.arange(low - 0.5, high + width + 0.5, width)
        return list(map(float, edges))
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    return list(map(float, np.linspace(low, high, _BINS + 1)))


def _nothing(ax: Axes, text: str, theme: Theme) -> None:
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color=theme.line)
    ax.set_xticks([])
    ax.set_yticks([])
