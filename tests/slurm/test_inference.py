"""Predictions and relaxations as jobs on a real cluster: on two nodes, interrupted by a signal, same results."""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from ocpgem.checkpoint import save_potential
from ocpgem.cli import main
from ocpgem.data.lmdb_store import write_dataset
from ocpgem.launch.job_states import Job, jobs_of_run, progress_of
from ocpgem.launch.records import history
from tests.slurm.cluster import PROFILE, Cluster, slurm, wait_for, wait_for_end, wait_for_event
from tests.structures import small_potential
from tests.tiny_runs import random_systems

# Two jobs of two ranks, each started twice; a start of Python with torch takes 5 to 10 s.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KINDS = ("predict", "relax")
N_SYSTEMS = {"predict": 1500, "relax": 350}  # 10 s of work and more, so that the signal arrives in its midst
N_COMPARED = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    """A model, the data of each command, and some of them to compare with."""
    folder = tmp_path_factory.mktemp("inference")
    save_potential(small_potential("gemnet_T").float(), folder / "model.pt")
    for kind in KINDS:
        write_dataset(folder / f"data-{kind}", random_systems(N_SYSTEMS[kind]))
    write_dataset(folder / "few", random_systems(N_COMPARED))
    return folder


def words_of(kind: str, place: Path, data: str, out: str) -> list[str]:
    options = {
        "predict": ["--dialect", "raw", "--batch-size", "2", "--workers", "0"],
        "relax": ["--steps", "8", "--batch-size", "4"],
    }
    target = place / (f"{out}.npz" if kind == "predict" else out)
    return [kind, str(place / "model.pt"), "--data", str(place / data), "--out", str(target), *options[kind]]


@pytest.fixture(scope="module")
def jobs(place: Path) -> dict[str, Job]:
    """Both jobs, submitted together; each gets a signal as soon as it tells how far it is."""
    shape = ["--cluster", PROFILE, "--nodes", "2", "--tasks-per-node", "1", "--set", "restarts.max=1"]
    found = {}
    for kind in KINDS:
        run = place / f"run-{kind}"
        words = words_of(kind, place, f"data-{kind}", f"out-{kind}")
        assert main(["submit", *words, "--run-dir", str(run), *shape]) == 0
        [found[kind]] = jobs_of_run(run)
    waiting = dict(found)

    def signal_who_is_on_the_way() -> bool:
        for kind, job in list(waiting.items()):
            if progress_of(job).step is not None:
                assert progress_of(job).total == N_SYSTEMS[kind]
                slurm("scancel", "--signal=USR2", job.number)
                del waiting[kind]
        return not waiting

    wait_for("progress of both", signal_who_is_on_the_way, found["relax"].run_dir)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_on_two_nodes_goes_on_after_a_signal_and_writes_what_one_rank_writes(
    kind: str, jobs: dict[str, Job], place: Path
) -> None:
    job = jobs[kind]
    run = job.run_dir
    event = wait_for_event(run, event="end")
    assert (event["reason"], event["code"], event["requeued"]) == ("signal", 75, True)
    assert wait_for_end(job) == "FINISHED"
    assert [each["event"] for each in history(run)] == ["start", "end", "start", "end"]
    log = "".join(file.read_text() for file in job.submission.log_files(0))
    assert "USR2 arrived; what is" in log
    assert ("systems were done before" if kind == "predict" else "of them by an earlier call") in log

    with patch.dict(os.environ):  # a group of one sets variables, which jobs of other tests would inherit
        assert main(words_of(kind, place, "few", f"few-{kind}")) == 0
    whole, few = (result(place, kind, name) for name in (f"out-{kind}", f"few-{kind}"))
    assert len(whole["ids"]) == len(set(whole["ids"].tolist())) == N_SYSTEMS[kind]
    assert whole["ids"][:N_COMPARED].tolist() == few["ids"].tolist()
    # What rounds differently in another batch grows from step to step of a relaxation.
    tolerance = 1e-4 if kind == "predict" else 1e-2
    for name in {"energy", "forces", "pos"} & set(few):
        np.testing.assert_allclose(whole[name][: len(few[name])], few[name], rtol=0, atol=tolerance)


def result(place: Path, kind: str, name: str) -> dict[str, np.ndarray]:
    with np.load(place / f"{name}.npz" if kind == "predict" else place / name / "relaxed.npz") as file:
        return dict(file)
