"""Runs side by side: what differs, how they ended, and what is refused."""

import json
from pathlib import Path

import pytest

from ocpgem.errors import RequestError
from ocpgem.evaluate.compare import comparison_curves, comparison_table, differing_settings, read_runs
from ocpgem.evaluate.figures import LIGHT


def make_run(folder: Path, lr: float, offset: float, n_steps: int = 40) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: 0\noptim: {{lr: {lr}, betas: [0.9, 0.99]}}\n")
    records = [
        {
            "kind": "train",
            "step": step,
            "loss": offset + 10 / step,
            "systems_per_second": 50.0,
            "seconds": step * 0.9,
        }
        for step in range(1, n_steps + 1)
    ]
    records += [
        {
            "kind": "val",
            "split": "val_id",
            "step": step,
            "energy_mae": offset / step,
            "forces_mae": 1 / step,
            "seconds": step * 0.9,
        }
        for step in (20, 40)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_the_table_shows_only_settings_that_differ_and_the_best_numbers(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a", 1e-3, 1.0), make_run(tmp_path / "b", 1e-4, 2.0)])
    assert differing_settings(runs) == ["optim.lr"]
    assert [run.name for run in runs] == ["a", "b"]
    last = sum(10 / step for step in range(21, 41)) / 20
    assert runs[1].numbers() == ["40", f"{2 + last:.4g}", "0.0500", "0.0250", "50.0", "0.01"]
    table = comparison_table(runs)
    assert [column.header for column in table.columns] == ["run", "a", "b"]
    assert list(table.columns[1].cells)[:2] == ["0.001", "40"]
    many = comparison_table([*runs] * 4)
    assert [column.header for column in many.columns][:3] == ["run", "optim.lr", "step"]
    assert many.row_count == 8


def test_curves_are_drawn_also_without_validation(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(number), 10**-number, number) for number in range(1, 8)]
    file = runs[0] / "metrics.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if '"train"' in line))
    picture = comparison_curves(LIGHT, read_runs(runs))
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "x" / "run", 1, 1), make_run(tmp_path / "y" / "run", 2, 1)])
    assert [run.name for run in runs] == ["x/run", "y/run"]


def test_what_cannot_be_compared_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1, 1)
    with pytest.raises(RequestError, match="at least two"):
        read_runs([run])
    with pytest.raises(RequestError, match="is given twice"):
        read_runs([run, tmp_path / "." / "a"])
    (tmp_path / "b").mkdir()
    with pytest.raises(RequestError, match="is not the folder of a run"):
        read_runs([run, tmp_path / "b"])
