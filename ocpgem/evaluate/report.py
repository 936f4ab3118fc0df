"""The report of a run: figures as PNG, and one HTML file that holds everything."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem import __version__
from ocpgem.errors import DataError, OcpgemError
from ocpgem.evaluate import error_figures, figures
from ocpgem.evaluate.figures import Theme
from ocpgem.evaluate.history import History, read_history, series
from ocpgem.evaluate.prediction_set import OtherDialectError, PredictionSet, read_raw, score
from ocpgem.evaluate.report_page import Page, listing, picture, table
from ocpgem.evaluate.tables import Results, column_titles, metric_rows

_CURVES_NOTE = "A thick loss line is a running mean. Validation sees every record of its split exactly once."
_ENERGY_NOTE = (
    "Brighter points lie where there are more of them. "
    "The second error is that of always predicting the median energy."
)
_FORCE_NOTE = (
    "Force components of the free atoms. The second error is that of always predicting zero. Of very many "
    f"components {figures.MAX_POINTS:,} are drawn; all count in the errors."
)

_ADSORBATE_NOTE = "The adsorbate is what carries tag 2. Of many adsorbates the commonest are shown."
_SPREAD_NOTE = (
    "Root mean squares in bins of equally many predictions, of forces the lengths of vectors. On the line the spread "
    "tells the error; above it the members agree more than they are right."
)


@dataclass(frozen=True)
class _Run:
    """What is known of a run; predictions without labels or of another dialect are left out of the sets."""

    path: Path
    history: History
    sets: dict[str, PredictionSet]
    left_out: list[str]


@dataclass(frozen=True)
class _Figure:
    """A figure of the report, under this name also in the folder `figures`."""

    name: str
    title: str
    draw: Callable[[Theme], bytes]
    note: str = ""


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` and the PNGs in `figures/` of a run directory; returns the path of the HTML file.

    Needs metrics.jsonl; predictions (raw dialect, labelled) in `predictions/` add parity plots, errors by
    element and a table of metrics. Raises RequestError where there is no run, DataError for a damaged file.
    """
    run = _read(Path(run_dir))
    facts = _facts(run.path)
    page = Page(run.path.resolve().name, _subtitle(run.history))
    _add_tiles(page, run)
    _add_tables(page, run)
    folder = _figures_folder(run.path)
    for each in _figures_of(run):
        light = each.draw(figures.LIGHT)
        _write(folder / f"{each.name}.png", light)
        page.section(each.title, picture(light, each.draw(figures.DARK), each.title), note=each.note)
    _write(folder / "overview.png", figures.overview(figures.LIGHT, run.history, run.sets))
    for title, content in facts.items():
        page.folded(title, content)
    target = run.path / "report.html"
    _write(target, page.html(f"made by ocpgem {__version__}").encode())
    return target


def write_overview(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Draw one picture of a run, curves and parity side by side, to `path` or `figures/overview.png`."""
    run = _read(Path(run_dir))
    target = Path(path) if path else _figures_folder(run.path) / "overview.png"
    _write(target, figures.overview(figures.LIGHT, run.history, run.sets))
    return target


def _read(run_dir: Path) -> _Run:
    history = read_history(run_dir)
    sets: dict[str, PredictionSet] = {}
    left_out = []
    for path in sorted((run_dir / "predictions").glob("*.npz")):
        try:
            predictions = read_raw(path)
        except OtherDialectError:
            left_out.append(path.name)
            continue
        if len(predictions) and figures.has_labels(predictions):
            sets[path.stem] = predictions
        else:
            left_out.append(path.name)
    return _Run(run_dir, history, sets, left_out)


def _figures_of(run: _Run) -> list[_Figure]:
    found = [
        _Figure(
            "training_curves",
            "Training",
            lambda theme: figures.training_curves(theme, run.history),
            _CURVES_NOTE,
        )
    ]
    with_forces = {
        split: each
        for split, each in run.sets.items()
        if each.forces is not None and each.forces_true is not None and not each.fixed.all()
    }
    if run.sets:
        found.append(
            _Figure(
                "energy_parity",
                "Energies",
                lambda theme: figures.energy_parity(theme, run.sets),
                _ENERGY_NOTE,
            )
        )
    if with_forces:
        found.append(
            _Figure(
                "force_parity",
                "Forces",
                lambda theme: figures.force_parity(theme, with_forces),
                _FORCE_NOTE,
            )
        )
        found.append(
            _Figure(
                "error_by_element",
                "Force error by element",
                lambda theme: figures.error_by_element(theme, with_forces),
            )
        )
        found.append(
            _Figure(
                "error_by_force",
                "Force error by the size of the force",
                lambda theme: error_figures.error_by_magnitude(theme, with_forces),
            )
        )
    return found + _breakdowns_of(run)


def _breakdowns_of(run: _Run) -> list[_Figure]:
    """Errors by what the systems are made of, and by how much the members of an ensemble disagree."""
    found = []
    if run.sets:
        found.append(
            _Figure(
                "error_by_size",
                "Error by number of atoms",
                lambda theme: error_figures.error_by_size(theme, run.sets),
            )
        )
    tagged = {split: each for split, each in run.sets.items() if each.tags is not None}
    if tagged:
        found.append(
            _Figure(
                "error_by_adsorbate",
                "Error by adsorbate",
                lambda theme: error_figures.error_by_adsorbate(theme, tagged),
                _ADSORBATE_NOTE,
            )
        )
    spread = {split: each for split, each in run.sets.items() if error_figures.has_spread(each)}
    if spread:
        found.append(
            _Figure(
                "spread_against_error",
                "Spread of the ensemble against its error",
                lambda theme: error_figures.spread_against_error(theme, spread),
                _SPREAD_NOTE,
            )
        )
    return found


def _add_tiles(page: Page, run: _Run) -> None:
    page.tile(f"{run.history.n_steps:,}", "steps")
    page.tile(_duration(run.history.seconds), "run time")
    _, speed = series(run.history.train, "systems_per_second")
    if len(speed):
        page.tile(f"{np.median(speed):.3g}", "systems per second")
    for split, records in list(run.history.validation.items())[:1]:
        for name, label in (("forces_mae", "force MAE (eV/Å)"), ("energy_mae", "energy MAE (eV)")):
            _, values = series(records, name)
            if len(values):
                page.tile(f"{values.min():#.3g}", f"{label}, best on {split}")


def _add_tables(page: Page, run: _Run) -> None:
    parts = []
    if run.sets:
        results = {split: score(each) for split, each in run.sets.items()}
        parts.append(_metrics_html(results, "Predictions"))
    last = {split: records[-1] for split, records in run.history.validation.items()}
    if last:
        step = max(record["step"] for record in last.values())
        parts.append(_metrics_html(_numbers_only(last), f"Last validation, step {step:,}"))
    note = (
        f"Not shown, for want of labels or of another dialect: {', '.join(run.left_out)}."
        if run.left_out
        else ""
    )
    if parts:
        page.section("Metrics", *parts, note=note)


def _metrics_html(results: Results, heading: str) -> str:
    rows = [[metric.title, metric.name, metric.unit, *values] for metric, values in metric_rows(results)]
    return table(["metric", "name", "unit", *column_titles(results)], rows, heading, left=(0, 1, 2))


def _numbers_only(records: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        split: {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        for split, record in records.items()
    }


def _facts(run_dir: Path) -> dict[str, str]:
    """The configuration and the environment as parts of a page, where the run has recorded them."""
    found = {}
    config = run_dir / "config.yaml"
    if config.is_file():
        found["Configuration"] = listing(config.read_text(errors="replace"))
    environment = run_dir / "environment.json"
    if environment.is_file():
        try:
            facts = json.loads(environment.read_text())
            rows = [[str(key), _fact(value)] for key, value in facts.items()]
        except (ValueError, AttributeError) as error:
            raise DataError(f"{environment} is damaged: {error}") from error
        found["Environment"] = table(["", ""], rows, left=(0, 1))
    return found


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


def _subtitle(history: History) -> str:
    epochs = [record["epoch"] for record in history.train if isinstance(record.get("epoch"), int | float)]
    passes = f", {epochs[-1]:.3g} epochs" if epochs else ""
    return f"Report of a training run: {history.n_steps:,} steps{passes} in {_duration(history.seconds)}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{minutes} min"


def _figures_folder(run_dir: Path) -> Path:
    folder = run_dir / "figures"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OcpgemError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def _write(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OcpgemError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
