"""The speed benchmark runs as documented, on one small system."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow  # starts processes that import torch, and measures a model of published size
def test_quick_run_writes_results_and_figure_also_when_one_model_fails(tmp_path: Path) -> None:
    done = run(
        "--quick", "--models", "GemNet-dT,TUM GemNet-T", "--fairchem", "/bin/false", "--out", str(tmp_path)
    )
    assert done.returncode == 1, done.stderr
    assert "GemNet-dT could not be measured: /bin/false" in done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    model = result["models"]["TUM GemNet-T"]
    assert model["waits"] == 0
    assert 0 < model["forward_s"] < model["step_s"]
    assert result["machine"]["torch"]
    assert set(result["scaling"]) == {"neighbors", "atoms", "batch"}
    table = (tmp_path / "speed.md").read_text()
    assert "main help" in table
    assert "GemNet-dT could not be measured" in table
    assert (tmp_path / "speed_scaling.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("option", "value"), [("--models", "GemNet-Z"), ("--sizes", "5"), ("--sizes", "many")]
)
def test_a_wrong_request_says_so(option: str, value: str) -> None:
    done = run("--quick" if option == "--models" else "--device=cpu", option, value)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
