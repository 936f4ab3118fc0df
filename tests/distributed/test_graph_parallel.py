"""Ranks that share the edges of a batch compute what one rank computes."""

import json
import sys
from pathlib import Path

import pytest

from ocpgem.launch.local import run_local
from tests.distributed.graph_ranks import TRIED
from tests.tiny_runs import ROOT


@pytest.mark.slow  # four ranks, every variant in groups of 2, 3 and 4
def test_groups_of_ranks_give_the_outputs_and_gradients_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = [sys.executable, str(Path(__file__).with_name("graph_ranks.py"))]
    assert run_local([str(tmp_path / "found.json")], 4, program=program) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    expected = {f"{case}, {n} ranks" for case in TRIED for n in (2, 3, 4)}
    assert set(found) == expected | {f"{case}, 3 atoms" for case in TRIED} | {"random"}
    assert {name: value for name, value in found.items() if value > 1e-10} == {}
    assert any(value > 0 for value in found.values())  # it would be no test if both had taken one path
