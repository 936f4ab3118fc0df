"""Several runs side by side: what differs in their settings, how they ended, and their curves in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocpgem.config.tree import read_tree
from ocpgem.errors import RequestError
from ocpgem.evaluate.figures import Theme, as_png, logarithmic, new_figure, running_mean
from ocpgem.evaluate.history import History, read_history, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_SMOOTHED_STEPS = 20
_MOST_COLUMNS = 6
_PANELS = (
    ("loss", "training loss", None),
    ("energy_mae", "energy MAE (eV)", "validation"),
    ("forces_mae", "force MAE (eV/Å)", "validation"),
)


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    name: str
    settings: dict[str, Any]
    """Dotted path -> value."""
    history: History

    @property
    def split(self) -> str | None:
        """The first validation set, the one that picks the best model."""
        return next(iter(self.history.validation), None)

    def best(self, metric: str) -> float | None:
        """The smallest value of a metric on the first validation set."""
        if self.split is None:
            return None
        _, values = series(self.history.validation[self.split], metric)
        return float(values.min()) if len(values) else None

    def numbers(self) -> list[str]:
        """Last step, mean of the last losses, best errors, median throughput, hours."""
        _, loss = series(self.history.train, "loss")
        _, rate = series(self.history.train, "systems_per_second")
        return [
            str(self.history.n_steps),
            f"{loss[-_SMOOTHED_STEPS:].mean():.4g}" if len(loss) else "-",
            *(
                "-" if value is None else f"{value:.4f}"
                for value in map(self.best, ("energy_mae", "forces_mae"))
            ),
            f"{np.median(rate):.1f}" if len(rate) else "-",
            f"{self.history.seconds / 3600:.2f}",
        ]


NUMBERS = ("step", "loss", "energy MAE (eV)", "force MAE (eV/Å)", "systems/s", "hours")


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs to compare. Raises RequestError for fewer than two, or one given twice."""
    if len(folders) < 2:
        raise RequestError("compare needs at least two run directories")
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for folder in folders if resolved.count(folder.resolve()) > 1), None)
    if twice is not None:
        raise RequestError(f"{twice} is given twice")
    return [
        ComparedRun(name, _settings(folder), read_history(folder))
        for name, folder in zip(_short_names(resolved), folders, strict=True)
    ]


def differing_settings(runs: Sequence[ComparedRun]) -> list[str]:
    """The settings that are not the same in all runs, in the order of the configuration."""
    paths = dict.fromkeys(path for run in runs for path in run.settings)
    return [path for path in paths if len({repr(run.settings.get(path)) for run in runs}) > 1]


def comparison_table(runs: Sequence[ComparedRun]) -> "Table":
    """What is special about each run and what came of it: a column for each run, or a row for each of many."""
    from rich.table import Table

    differing = differing_settings(runs)
    titles = ["run", *differing, *NUMBERS]
    columns = [
        [run.name, *(str(run.settings.get(path, "-")) for path in differing), *run.numbers()] for run in runs
    ]
    rows = list(zip(titles, *columns, strict=True)) if len(runs) <= _MOST_COLUMNS else [titles, *columns]
    table = Table()
    for number, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if number else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


@as_png
def comparison_curves(theme: Theme, runs: Sequence[ComparedRun]) -> "Figure":
    """Training loss and validation errors of all runs over their steps, a colour each."""
    panels = [panel for panel in _PANELS if any(len(_curve(run, panel)[1]) for run in runs)]
    legend_rows = -(-len(runs) // 2)
    figure = new_figure(4.6 * len(panels), 3.4 + 0.2 * legend_rows)
    for number, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(1, len(panels), number), runs, panel, theme)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _draw(ax: "Axes", runs: Sequence[ComparedRun], panel: tuple[str, str, str | None], theme: Theme) -> None:
    styles = ("-", "--", ":", "-.")
    drawn = []
    for number, run in enumerate(runs):
        steps, values = _curve(run, panel)
        few = len(steps) <= 30
        shown = values if few or values.min() <= 0 else running_mean(values, _SMOOTHED_STEPS)
        drawn.append(shown)
        ax.plot(
            steps,
            shown,
            color=theme.cycle[number % len(theme.cycle)],
            linestyle=styles[number // len(theme.cycle) % len(styles)],
            marker="o" if few else None,
            markersize=3,
            label=run.name,
        )
    _, label, _ = panel
    ax.set_title(label if panel[2] is None else f"{label}, {panel[2]}")
    ax.set_xlabel("step")
    every = np.concatenate(drawn)
    if len(every) and every.min() > 0 and every.max() > 4 * every.min():
        logarithmic(ax, float(every.min()), float(every.max()))


def _curve(run: ComparedRun, panel: tuple[str, str, str | None]) -> tuple[Any, Any]:
    name, _, kind = panel
    if kind is None:
        return series(run.history.train, name)
    return series(run.history.validation[run.split] if run.split is not None else [], name)


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "config.yaml"
    if not file.is_file():
        raise RequestError(f"{folder} has no config.yaml, so it is not the folder of a run")
    return dict(_flat("", read_tree(file.read_text(), str(file)).plain()))


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            pair
            for key, inner in value.items()
            for pair in _flat(f"{prefix}.{key}" if prefix else key, inner)
        ]
    return [(prefix, value)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """As much of the ends of the paths as tells them apart."""
    longest = max(len(folder.parts) for folder in folders)
    for depth in range(1, longest + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
