"""Metrics of several splits, their average and confidence intervals, as text, JSON, CSV and Markdown."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocpgem.evaluate.metrics import ALL_METRICS, LEVEL, RESAMPLES, Metric, Scores, percentile_interval
from ocpgem.files import write_text

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Mapping[str, float]]  # split -> metric -> value
Intervals = dict[str, dict[str, tuple[float, float]]]  # split -> metric -> low, high
_METHOD = f"bootstrap over systems, {RESAMPLES} samples"


def average(results: Results) -> dict[str, float]:
    """The mean over the splits of every metric that all of them have, as the leaderboard ranks by."""
    splits = list(results.values())
    return {
        metric.name: sum(split[metric.name] for split in splits) / len(splits)
        for metric in ALL_METRICS
        if splits and all(metric.name in split for split in splits)
    }


def metric_rows(results: Results) -> list[tuple[Metric, list[str]]]:
    """The metrics that any split has, with a formatted value per split and, for several, their average."""
    columns = list(results.values())
    if len(columns) > 1:
        columns.append(average(results))
    present = [metric for metric in ALL_METRICS if any(metric.name in column for column in columns)]
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


def metrics_table(
    results: Results, title: str | None = None, intervals: "Intervals | None" = None
) -> "Table":
    """A table with a row per metric and a column per split, and their average where there are several.

    intervals: by split (and `average`), written below each value.
    """
    from rich.table import Table

    table = Table(title=title, caption=_caption(intervals))
    table.add_column("metric", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    titles = column_titles(results)
    for name in titles:
        table.add_column(name, justify="right", no_wrap=True, style="bold" if name == "average" else None)
    for metric, values in metric_rows(results):
        cells = [
            f"{value}\n[dim]{_interval_text(metric, intervals, name)}[/dim]" if intervals else value
            for name, value in zip(titles, values, strict=True)
        ]
        table.add_row(metric.name, metric.unit, *cells)
    return table


def intervals_of(scores: Mapping[str, Scores], level: float = LEVEL) -> Intervals:
    """The confidence intervals of every split, and of their average where there are several.

    Splits are independent samples of systems, so the average of one bootstrap sample of each is one of the average.
    """
    found = {split: each.intervals(level) for split, each in scores.items()}
    if len(scores) > 1:
        names = average({split: each.values for split, each in scores.items()})
        found["average"] = {
            name: percentile_interval(
                np.mean([each.samples[name] for each in scores.values()], axis=0), level
            )
            for name in names
            if all(name in each.samples for each in scores.values())
        }
    return found


def as_json(results: Results, scores: Mapping[str, Scores] | None = None) -> str:
    """Splits, their average and the units; shares stay between 0 and 1. Of scores, also counts and intervals."""
    units = {
        metric.name: "share" if metric.unit == "%" else metric.unit.replace("Å", "A")
        for metric in ALL_METRICS
    }
    content: dict[str, Any] = {"splits": results, "average": average(results), "units": units}
    if scores is not None:
        content["confidence"] = {"level": LEVEL, "method": _METHOD, "intervals": intervals_of(scores)}
        content["counts"] = {
            split: {"systems": each.n_systems, "frames": each.n_frames} for split, each in scores.items()
        }
    return json.dumps(content, indent=2) + "\n"


def as_csv(results: Results, intervals: Intervals | None = None) -> str:
    """A line per split and metric: split, metric, unit, value, low, high; shares stay between 0 and 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "metric", "unit", "value", "low", "high"])
    columns = dict(results) | ({"average": average(results)} if len(results) > 1 else {})
    for split, values in columns.items():
        for metric in ALL_METRICS:
            if metric.name in values:
                unit = "share" if metric.unit == "%" else metric.unit.replace("Å", "A")
                bounds = (intervals or {}).get(split, {}).get(metric.name, ("", ""))
                writer.writerow([split, metric.name, unit, values[metric.name], *bounds])
    return text.getvalue()


def as_markdown(results: Results, title: str, intervals: Intervals | None = None) -> str:
    """A Markdown table like that on the terminal."""
    titles = column_titles(results)
    lines = [
        f"### {title}",
        "",
        f"| metric | unit | {' | '.join(titles)} |",
        "|---|---|" + "---:|" * len(titles),
    ]
    for metric, values in metric_rows(results):
        cells = [
            f"{value} {_interval_text(metric, intervals, name)}".rstrip()
            for name, value in zip(titles, values, strict=True)
        ]
        lines.append(f"| {metric.name} | {metric.unit} | {' | '.join(cells)} |")
    caption = _caption(intervals)
    return "\n".join([*lines, *(["", caption] if caption else [])]) + "\n"


def write_json(results: Results, path: Path) -> None:
    """Write `as_json`; the file is never partial."""
    write_text(path, as_json(results))


def _interval_text(metric: Metric, intervals: Intervals | None, split: str) -> str:
    bounds = (intervals or {}).get(split, {}).get(metric.name)
    if bounds is None:
        return ""
    return f"({format_value(metric, bounds[0])} to {format_value(metric, bounds[1])})"


def _caption(intervals: Intervals | None) -> str | None:
    if not any((intervals or {}).values()):
        return None
    return f"in parentheses: {100 * LEVEL:.0f} % confidence interval, {_METHOD}"
