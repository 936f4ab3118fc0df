"""The speed benchmark runs as documented, on one small system."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed.costs import operations

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)  # the first test waits for a run of all parts


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick run of all parts, in which one model cannot be measured."""
    folder = tmp_path_factory.mktemp("speed")
    words = ("--quick", "--plain", "--models", "GemNet-dT,TUM GemNet-T", "--fairchem", "/bin/false")
    done = run(*words, "--out", str(folder))
    assert done.returncode == 1, done.stderr
    assert "GemNet-dT could not be measured: /bin/false" in done.stderr
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "speed.json").read_text())
    return found


def exchanges(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["label"]: each for each in result["ranks"]["ranks"]["2"]["traffic"]}


@pytest.mark.slow  # starts processes that import torch, and measures a model of published size
def test_quick_run_writes_results_and_figure_also_when_one_model_fails(
    folder: Path, result: dict[str, Any]
) -> None:
    model = result["models"]["TUM GemNet-T"]
    assert model["waits"] == 0
    assert 0 < model["forward_s"] < model["step_s"]
    assert result["machine"]["torch"]
    assert set(result["scaling"]) == {"neighbors", "atoms", "batch"}
    table = (folder / "speed.md").read_text()
    assert "main help" in table
    assert "GemNet-dT could not be measured" in table
    assert (folder / "speed_scaling.svg").stat().st_size > 1000


@pytest.mark.slow  # shares the run of the test above
def test_the_row_of_plain_chains_is_theirs_in_every_cell(result: dict[str, Any]) -> None:
    plain, usual = result["models"]["GemNet-dT (plain chains)"], operations("GemNet-dT")
    assert {key: plain[key] for key in usual} == operations("GemNet-dT", plain=True) != usual
    assert plain["step_s"] > 0
    assert not {"forward_s", "kept_gb", "peak_counted_gb"} & set(plain)  # which are those of all chains


@pytest.mark.slow  # shares the run of the test above
def test_loader_and_ranks_are_part_of_it(folder: Path, result: dict[str, Any]) -> None:
    rates = result["loader"]["systems_per_second"]
    assert set(rates) == {"search", "stored edges", "pickled with edges"}
    assert all(value > 0 for value in rates.values())
    for each in result["ranks"]["ranks"].values():
        assert min(each["weak"], each["strong"], each["all_reduce_s"]) > 0
    table = (folder / "speed.md").read_text()
    assert "| stored edges | " in table
    assert "| 2 | " in table


@pytest.mark.slow  # shares the run of the test above
def test_the_gradients_that_ranks_send_are_those_of_the_formula(result: dict[str, Any]) -> None:
    ranks = result["ranks"]["ranks"]
    size = 4 * ranks["2"]["parameters"]
    assert ranks["1"]["traffic"][0]["sent_bytes"] == 0
    for label, each in exchanges(result).items():
        gathered = 0 if label.startswith("ZeRO-0") else size
        assert each["collectives"]["all_reduce"]["bytes"] == size, label
        # Each rank's part is filled up to a multiple of a few numbers.
        assert each["collectives"].get("all_gather", {"bytes": 0})["bytes"] == pytest.approx(
            gathered, rel=1e-3
        )
        assert each["sent_bytes"] == pytest.approx(each["formula_bytes"], rel=1e-3)
        assert each["agreements"] < 10


@pytest.mark.slow  # shares the run of the test above
def test_small_buckets_are_more_messages_and_overlap_sends_them_during_the_backward_pass(
    result: dict[str, Any],
) -> None:
    each = exchanges(result)
    assert each["ZeRO-1, 1 bucket"]["collectives"]["all_reduce"]["calls"] == 1
    for label in ("ZeRO-1, 8 buckets", "ZeRO-1, 8 buckets, overlap"):
        assert each[label]["collectives"]["all_reduce"]["calls"] > 4, label
    early = {label: numbers["sent_during_backward"] for label, numbers in each.items()}
    assert early.pop("ZeRO-1, 8 buckets, overlap") > 0.5
    assert set(early.values()) == {0.0}
    assert all(numbers["products"] > 50 for numbers in each.values())


@pytest.mark.parametrize(
    ("option", "value"), [("--models", "GemNet-Z"), ("--sizes", "5"), ("--sizes", "many")]
)
def test_a_wrong_request_says_so(option: str, value: str) -> None:
    done = run("--quick" if option == "--models" else "--device=cpu", option, value)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
