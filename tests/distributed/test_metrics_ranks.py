"""Metrics do not depend on how many ranks share the systems."""

import json
import sys
from pathlib import Path

import pytest

from ocpgem.launch.local import run_local

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/unit/evaluate"]
from datetime import timedelta
from ocpgem.evaluate.metrics import S2EFMetrics
from ocpgem.parallel import group
from test_metrics import as_batch, random_set, reference
group.init_from_environment("cpu", timedelta(seconds=120))
systems = random_set(23, seed=5)
metrics = S2EFMetrics()
for index in range(group.rank(), len(systems) if len(sys.argv) < 4 else 1, group.world_size()):
    metrics.update(*as_batch([systems[index]]))
metrics.merge_across_ranks()
results = group.gather_objects(metrics.result())
if group.is_main():
    found = {"results": results, "reference": reference(systems), "first": reference(systems[:1])}
    json.dump(found, open(sys.argv[2], "w"))
group.shutdown()
"""


def run(tmp_path: Path, nproc: int, *extra: str) -> dict:
    out = tmp_path / "result.json"
    assert run_local([str(ROOT), str(out), *extra], nproc, program=[sys.executable, "-c", PROGRAM]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("nproc", [1, 2, 3, 4])
def test_any_number_of_ranks_gives_the_reference(tmp_path: Path, nproc: int) -> None:
    found = run(tmp_path, nproc)
    assert len(found["results"]) == nproc
    for result in found["results"]:
        assert result == pytest.approx(found["reference"], rel=1e-12)


def test_a_rank_without_systems_changes_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, 2, "only the first system")
    for result in found["results"]:
        assert result == pytest.approx(found["first"], rel=1e-12)
