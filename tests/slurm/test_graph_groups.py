"""GemNet-XL as configured for OC20, at reduced width, on two nodes: graph groups within nodes and across them."""

import json
from pathlib import Path

import pytest

from ocpgem.cli import main
from ocpgem.launch.job_states import jobs_of_run
from tests.slurm.cluster import PROFILE, Cluster, losses_of, steps_of, wait_for_end
from tests.tiny_runs import ROOT, TINY_MODEL, write_settings, write_tiny_data

# Two jobs of four and two ranks; a start of Python with torch takes 5 to 10 s.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 3
SCALES = {
    "TripInteraction_1_had_rbf": 0.9,
    "TripInteraction_1_sum_cbf": 1.1,
    "IntBlock_1_sum": 0.8,
    **{f"OutBlock_{output}_{kind}": 1.2 for output in (0, 1) for kind in ("sum", "had")},
}
"""As GemNet-XL's authors name them."""


def test_gemnet_xl_trains_in_groups_within_a_node_and_across_nodes(cluster: Cluster, tmp_path: Path) -> None:
    train, val = write_tiny_data(tmp_path)
    (tmp_path / "gemnet-xl.json").write_text(json.dumps(SCALES))
    settings = {
        "includes": [str(ROOT / "configs" / "s2ef" / "all" / "gemnet_xl.yml")],
        "steps": STEPS,
        "log_every_steps": 1,
        "model": TINY_MODEL | {"variant": "gemnet_XL"},
        "data": {
            "train": str(train),
            "val": {"val_id": str(val)},
            "batch_size": 4,
            "eval_batch_size": 2,
            "workers": 0,
        },
        "scale_factors": {"file": str(tmp_path / "gemnet-xl.json")},
    }
    config = write_settings(tmp_path / "xl.yml", settings)
    jobs = {}
    for name, tasks in (("within", "2"), ("across", "1")):
        words = ["--cluster", PROFILE, "--run-dir", str(tmp_path / name), "--nodes", "2"]
        assert main(["submit", str(config), *words, "--tasks-per-node", tasks, "parallel.graph=2"]) == 0
        jobs[name] = jobs_of_run(tmp_path / name)[-1]
    assert {name: wait_for_end(job) for name, job in jobs.items()} == dict.fromkeys(jobs, "FINISHED")
    within, across = (tmp_path / name for name in jobs)
    assert steps_of(within) == steps_of(across) == list(range(1, STEPS + 1))
    assert losses_of(across) == pytest.approx(losses_of(within), rel=1e-4)
    for run in (within, across):
        fitted = json.loads((run / "preparation.json").read_text())["scale_factors"]
        assert fitted["model.blocks.0.to_atoms.scale_sum"] == pytest.approx(0.8)
        assert any("released names" in file.read_text() for file in run.glob("jobs/*/*_0_log.out"))
