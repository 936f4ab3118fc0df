"""Tables of metrics on the terminal and as JSON."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from ocpgem.evaluate.tables import average, metrics_table, write_json

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
