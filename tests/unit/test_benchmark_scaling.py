"""The scaling benchmark runs as documented: real ranks, whose messages are those of the formula."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.tiny_runs import ROOT, clean_environment


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/scaling.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("scaling")
    done = run("--quick", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    table = (folder / "scaling.md").read_text()
    assert "| 2 | ZeRO-1, 8 buckets, overlap |" in table
    result: dict[str, Any] = json.loads((folder / "scaling.json").read_text())
    return result


def exchanges(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["label"]: each for each in found["ranks"]["2"]["traffic"]}


@pytest.mark.slow  # trains in one and in two processes
def test_the_gradients_sent_are_those_of_the_formula(found: dict[str, Any]) -> None:
    size = 4 * found["ranks"]["2"]["parameters"]
    assert found["ranks"]["1"]["traffic"][0]["sent_bytes"] == 0
    for label, each in exchanges(found).items():
        gathered = 0 if label.startswith("ZeRO-0") else size
        assert each["collectives"]["all_reduce"]["bytes"] == size, label
        # Each rank's part is filled up to a multiple of a few numbers.
        assert each["collectives"].get("all_gather", {"bytes": 0})["bytes"] == pytest.approx(
            gathered, rel=1e-3
        )
        assert each["sent_bytes"] == pytest.approx(each["formula_bytes"], rel=1e-3)
        assert each["agreements"] < 10


@pytest.mark.slow  # shares the runs of the test above
def test_small_buckets_are_more_messages_and_overlap_sends_them_during_the_backward_pass(
    found: dict[str, Any],
) -> None:
    each = exchanges(found)
    assert each["ZeRO-1, 1 bucket"]["collectives"]["all_reduce"]["calls"] == 1
    for label in ("ZeRO-1, 8 buckets", "ZeRO-1, 8 buckets, overlap"):
        assert each[label]["collectives"]["all_reduce"]["calls"] > 4, label
    early = {label: numbers["sent_during_backward"] for label, numbers in each.items()}
    assert early.pop("ZeRO-1, 8 buckets, overlap") > 0.5
    assert set(early.values()) == {0.0}
    assert all(numbers["products"] > 50 for numbers in each.values())


@pytest.mark.slow  # shares the runs of the test above
def test_seconds_are_those_of_steps(found: dict[str, Any]) -> None:
    for each in found["ranks"].values():
        assert each["weak"] > 0
        assert each["strong"] > 0
        assert each["all_reduce_s"] > 0
