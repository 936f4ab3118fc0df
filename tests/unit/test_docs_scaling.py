"""docs/scaling.md shows commands that run and tables that were recorded."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ocpgem.cli import main
from tests.tiny_runs import ROOT, clean_environment

TEXT = (ROOT / "docs" / "scaling.md").read_text()


def test_tables_are_those_that_the_benchmark_recorded() -> None:
    recorded = (ROOT / "benchmarks" / "results" / "scaling_table.md").read_text().splitlines()
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert [row for row in rows if row not in recorded] == []


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
