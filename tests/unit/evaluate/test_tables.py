"""Tables of metrics on the terminal and as JSON."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ocpgem.evaluate.metrics import ALL_METRICS, ROW, S2EFMetrics, Scores
from ocpgem.evaluate.tables import (
    as_csv,
    as_json,
    as_markdown,
    average,
    intervals_of,
    metrics_table,
    write_json,
)

RESULTS = {
    "val_id": {"energy_mae": 0.25, "energy_within_threshold": 0.0212, "forces_mae": 0.02254},
    "val_ood_cat": {"energy_mae": 0.75, "energy_within_threshold": 0.01},
}


def lines(results: dict[str, dict[str, float]]) -> list[list[str]]:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(results))
    return [line.replace("│", " ").replace("┃", " ").split() for line in console.export_text().splitlines()]


def test_the_table_has_units_splits_and_their_average() -> None:
    rows = lines(RESULTS)
    assert ["metric", "unit", "val_id", "val_ood_cat", "average"] in rows
    assert ["energy_mae", "eV", "0.2500", "0.7500", "0.5000"] in rows
    assert ["energy_within_threshold", "%", "2.12", "1.00", "1.56"] in rows
    assert ["forces_mae", "eV/Å", "0.02254", "-", "-"] in rows


def test_one_split_needs_no_average() -> None:
    rows = lines({"val_id": RESULTS["val_id"]})
    assert ["metric", "unit", "val_id"] in rows


def test_the_average_is_over_splits_not_systems() -> None:
    assert average(RESULTS) == pytest.approx({"energy_mae": 0.5, "energy_within_threshold": 0.0156})
    assert average({}) == {}


def test_json_holds_splits_average_and_units(tmp_path: Path) -> None:
    write_json(RESULTS, tmp_path / "metrics.json")
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["splits"] == RESULTS
    assert found["average"]["energy_mae"] == 0.5
    assert found["units"]["forces_mae"] == "eV/A"
    assert found["units"]["energy_within_threshold"] == "share"
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def scores(errors: list[float]) -> Scores:
    """The scores of systems with these energy errors."""
    metrics = S2EFMetrics()
    terms = np.zeros((len(errors), len(ALL_METRICS), 2))
    terms[:, ROW["energy_mae"]] = np.stack([errors, np.ones(len(errors))], axis=1)
    metrics.add(np.arange(len(errors)), terms)
    return metrics.scores(200)


SCORES = {"val_id": scores([0.1, 0.2, 0.3, 0.4]), "val_ood_cat": scores([0.5, 1.0])}
VALUES = {split: each.values for split, each in SCORES.items()}


def test_the_interval_of_the_average_is_narrower_than_those_of_its_splits() -> None:
    found = intervals_of(SCORES)
    widths = {split: high - low for split, ((low, high),) in ((s, f.values()) for s, f in found.items())}
    assert set(widths) == {"val_id", "val_ood_cat", "average"}
    assert 0 < widths["average"] < widths["val_ood_cat"]
    assert (
        found["average"]["energy_mae"][0]
        <= average(VALUES)["energy_mae"]
        <= found["average"]["energy_mae"][1]
    )


def test_csv_has_a_line_per_split_and_metric_and_the_average() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(VALUES, intervals_of(SCORES)))))
    assert [row["split"] for row in rows] == ["val_id", "val_ood_cat", "average"]
    assert {row["metric"] for row in rows} == {"energy_mae"}
    assert {row["unit"] for row in rows} == {"eV"}
    assert float(rows[0]["value"]) == pytest.approx(0.25)
    assert float(rows[0]["low"]) < 0.25 < float(rows[0]["high"])


def test_markdown_is_a_table_with_intervals() -> None:
    lines = as_markdown(VALUES, "a model", intervals_of(SCORES)).splitlines()
    assert lines[0] == "### a model"
    assert lines[2] == "| metric | unit | val_id | val_ood_cat | average |"
    assert lines[3].count("|") == lines[2].count("|") == lines[4].count("|")
    assert lines[4].startswith("| energy_mae | eV | 0.2500 (0.")
    assert "95 % confidence interval, bootstrap over systems, 1000 samples" in lines[-1]


def test_json_holds_intervals_and_counts() -> None:
    found = json.loads(as_json(VALUES, SCORES))
    assert found["counts"]["val_id"] == {"systems": 4, "frames": 4}
    assert found["confidence"]["level"] == 0.95
    low, high = found["confidence"]["intervals"]["val_ood_cat"]["energy_mae"]
    assert low == 0.5
    assert high == 1.0


def test_the_text_table_shows_intervals_below_the_values() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(VALUES, intervals=intervals_of(SCORES)))
    assert "(0.5000 to 1.000)" in console.export_text()
