"""Metrics of several splits as a table on the terminal and as JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ocpgem.evaluate.metrics import METRICS, Metric

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Mapping[str, float]]  # split -> metric -> value


def average(results: Results) -> dict[str, float]:
    """The mean over the splits of every metric that all of them have, as the leaderboard ranks by."""
    splits = list(results.values())
    return {
        metric.name: sum(split[metric.name] for split in splits) / len(splits)
        for metric in METRICS
        if splits and all(metric.name in split for split in splits)
    }


def metric_rows(results: Results) -> list[tuple[Metric, list[str]]]:
    """The metrics that any split has, with a formatted value per split and, for several, their average."""
    columns = list(results.values())
    if len(columns) > 1:
        columns.append(average(results))
    present = [metric for metric in METRICS if any(metric.name in column for column in columns)]
    return [
        (metric, [format_value(metric, column.get(metric.name)) for column in columns]) for metric in present
    ]


def column_titles(results: Results) -> list[str]:
    """The splits, and the average where there are several."""
    return [*results, *(["average"] if len(results) > 1 else [])]


def format_value(metric: Metric, value: float | None) -> str:
    """Shares in percent, everything else with four significant digits."""
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if metric.unit == "%" else f"{value:#.4g}"


def metrics_table(results: Results, title: str | None = None) -> "Table":
    """A table with a row per metric and a column per split, and their average where there are several."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("metric", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for name in column_titles(results):
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "average" else None)
    for metric, values in metric_rows(results):
        table.add_row(metric.name, metric.unit, *values)
    return table


def write_json(results: Results, path: Path) -> None:
    """Write splits, their average and the units; shares stay between 0 and 1. The file is never partial."""
    units = {
        metric.name: "share" if metric.unit == "%" else metric.unit.replace("Å", "A") for metric in METRICS
    }
    content = {"splits": results, "average": average(results), "units": units}
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
