"""docs/scaling.md shows commands that run and tables that were recorded."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ocpgem.cli import main
from ocpgem.train.scaling import LINKS
from tests.tiny_runs import ROOT, clean_environment

TEXT = (ROOT / "docs" / "scaling.md").read_text()


def test_tables_are_those_that_the_benchmarks_recorded() -> None:
    recorded = [
        row
        for name in ("scaling_table.md", "predict_scaling.md")
        for row in (ROOT / "benchmarks" / "results" / name).read_text().splitlines()
    ]
    given = TEXT[: TEXT.index("| input |")] + TEXT[TEXT.index("Left out:") :]  # inputs are no results
    rows = [line for line in given.splitlines() if line.startswith("|")]
    assert len(rows) > 30
    assert [row for row in rows if row not in recorded] == []


def test_the_inputs_of_the_prediction_are_those_that_the_code_has() -> None:
    numbers = {
        row.split(" | ")[0].removeprefix("| ")[:1]: [float(cell) for cell in row.split(" | ")[1:4]]
        for row in TEXT[TEXT.index("| input |") : TEXT.index("Left out:")].splitlines()[2:]
        if row.startswith("| ")
    }
    links = [LINKS[name] for name in ("V100-32GB", "A100-80GB", "H100-80GB")]
    assert numbers == {
        "B": [link.in_node / 1e9 for link in links],
        "b": [link.between_nodes / 1e9 for link in links],
        "e": [link.reached for link in links],
        "l": [pytest.approx(1e6 * link.latency_in_node) for link in links],
        "L": [pytest.approx(1e6 * link.latency_between_nodes) for link in links],
    }


@pytest.mark.slow  # makes demo data and takes five dry runs
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [shlex.split(line) for line in TEXT.splitlines() if line.startswith("python ")]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    data, *runs = commands
    program = [sys.executable, str(ROOT / data[1]), *data[2:], "--frames", "100", "--workers", "1"]
    subprocess.run(program, check=True, capture_output=True, env=clean_environment())
    assert len(runs) == 5
    for words in runs:
        assert words[:3] == ["python", "main.py", "train"]
        assert main(words[2:]) == 0, words
        assert re.search(r"total .* fits on V100-32GB", capsys.readouterr().out), words
