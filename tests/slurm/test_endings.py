"""Jobs on a real cluster that are stopped, preempted, killed: what goes on where it was, and what does not."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ocpgem.checkpoint import load_potential
from ocpgem.cli import main
from ocpgem.launch.job_states import Job, jobs_of_run, state_of
from ocpgem.launch.records import history, saved_step
from ocpgem.launch.restarts import restarts_used
from ocpgem.launch.slurm import expand_nodes
from tests.slurm.cluster import (
    Cluster,
    losses_of,
    slurm,
    steps_of,
    submit,
    tensors_of,
    tiny_project,
    wait_for,
    wait_for_accounting,
    wait_for_end,
    wait_for_event,
    wait_for_step,
)
from tests.tiny_runs import ROOT, run_main

# Each starts jobs on a cluster, most of them twice; a start of Python with torch takes 5 to 10 s.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FOREVER = "steps=1000000"
STEPS = 150  # of a run that is signalled at its third: far from its end also where scancel takes its time


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    return tiny_project(tmp_path_factory.mktemp("endings"), steps=STEPS)


@pytest.fixture(scope="module", autouse=True)
def time_limited(project: Path) -> Iterator[Job]:
    """A run that reaches its time limit while the other tests run: SLURM looks at limits only every 30 s.

    On a busy machine most of its time may pass before the first step, hence the latest possible signal.
    """
    polite = 'setup=["export OMP_NUM_THREADS=1", "renice -n 15 $$ > /dev/null"]'
    limit = ["--time", "2", "--set", "signal_seconds=30", "--set", polite]
    job = submit(project, project.parent / "limited", *limit, "--snapshot-code", FOREVER)
    yield job
    main(["cancel", str(job.run_dir)])


def assert_no_step_lost_or_repeated(run: Path) -> None:
    steps = steps_of(run)
    assert steps == list(range(1, len(steps) + 1))


def test_a_signal_makes_a_plain_sbatch_job_save_and_go_on_to_the_same_weights(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = project.parent / "plain"
    script = [str(ROOT / "slurm" / "train.sbatch"), str(project), str(run)]
    environ = f"--export=ALL,OCPGEM_ROOT={ROOT},OMP_NUM_THREADS=1"
    number = slurm("sbatch", "--parsable", "--mem=1500M", "--time=10", environ, *script)
    wait_for_step(run, 3)
    slurm("scancel", "--signal=USR2", number)
    event = wait_for_event(run, event="end", requeued=True)
    assert (event["reason"], event["code"]) == ("signal", 75)
    assert event["step"] == saved_step(run) >= 3
    [job] = jobs_of_run(run)
    assert job.number == number
    assert wait_for_end(job) == "FINISHED"
    local = project.parent / "plain-local"
    done = run_main("train", project, "--run-dir", local)
    assert done.returncode == 0, done.stderr
    assert_no_step_lost_or_repeated(run)
    assert losses_of(run) == losses_of(local)
    expected, found = (tensors_of(each / "checkpoints" / str(STEPS)) for each in (local, run))
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    capsys.readouterr()
    assert main(["logs", str(run)]) == 0
    log = capsys.readouterr().out
    places = [
        log.index(text)
        for text in (
            "(first start, step 0)",
            f"step 3/{STEPS}",
            "stopped by the signal",
            "(restart 1, step",
            f"step {STEPS}/{STEPS}",
        )
    ]
    assert places == sorted(places)


def test_a_preemption_is_no_restart_that_counts_and_a_bound_on_those_holds(project: Path) -> None:
    """Preempted, signalled with no restart allowed, submitted again by hand, cancelled: no step lost or repeated."""
    run = project.parent / "preempted"
    shape = ["--set", "directives={nodelist: n4, exclusive: true}", "--set", "restarts.max=0", FOREVER]
    job = submit(project, run, *shape)
    wait_for_step(run, 3)
    urgent = ["--partition=high", "--nodelist=n4", "--exclusive", "--time=1", "--output=/dev/null"]
    slurm("sbatch", *urgent, "--wrap", "sleep 1")
    event = wait_for_event(run, event="end", reason="preemption", requeued=True)
    assert event["code"] == 75
    wait_for_event(run, event="start", restart=1, step=event["step"])
    wait_for_step(run, event["step"] + 3)
    assert restarts_used(history(run)) == 0, "a preemption is not counted as a time-out"

    slurm("scancel", "--signal=USR1", job.number)
    event = wait_for_event(run, event="end", reason="restarts used up")
    assert (event["code"], event["requeued"]) == (75, False)
    assert "after 0 restarts, as many as restarts.max allows; submit it again" in event["text"]
    assert wait_for_end(job) == "STOPPED"
    wait_for_no_job(job)

    again = submit(project, run, *shape)
    wait_for_event(run, event="start", job=again.number, step=event["step"])
    wait_for_step(run, event["step"] + 3)
    assert main(["cancel", str(run)]) == 0
    assert state_of(again).name == "CANCELLED"
    assert_no_step_lost_or_repeated(run)
    assert saved_step(run) == steps_of(run)[-1]
    load_potential(run)
    wait_for_no_job(again)


def wait_for_no_job(job: Job) -> None:
    """Wait until SLURM has nothing of a job left."""
    wait_for("no job left", lambda: slurm("squeue", "-h", "-j", job.number) == "")


def test_a_run_goes_on_from_its_last_checkpoint_when_a_node_dies(project: Path, cluster: Cluster) -> None:
    run = project.parent / "crashed"
    submit(project, run, "--exclude", "n4", FOREVER, nodes=2)
    wait_for_step(run, 7)
    first = expand_nodes(wait_for_event(run, event="start", restart=0)["nodes"])
    cluster.control("crash-node", first[1])
    try:
        again = wait_for("a second start", lambda: starts(run)[1:2], run)[0]
        assert first[1] not in expand_nodes(again["nodes"])
        assert again["step"] >= 5
        wait_for_step(run, steps_of(run)[-1] + 3)
        assert f"(step {again['step']})" in (run / "log.txt").read_text()
        assert_no_step_lost_or_repeated(run)
    finally:
        assert main(["cancel", str(run)]) == 0
        cluster.control("start-node", first[1])
        wait_for(
            "an idle node",
            lambda: slurm("sinfo", "-h", "-N", "-p", "main", "-n", first[1], "-o", "%T") == "idle",
        )


def starts(run: Path) -> list[dict[str, Any]]:
    return [each for each in history(run) if each["event"] == "start"]


def test_a_failing_rank_ends_the_whole_job_within_seconds_and_is_not_requeued(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = project.parent / "failing"
    job = submit(project, run, "--exclude", "n4", FOREVER, nodes=2)
    wait_for_step(run, 2)
    os.kill(process_of(job, 1), signal.SIGKILL)
    begin = time.monotonic()
    assert wait_for_end(job) == "FAILED"
    assert time.monotonic() - begin < 90  # 3 s on an idle machine
    [event] = [each for each in history(run) if each["event"] == "end"]
    assert event["reason"] == "crash"
    assert not event["requeued"]
    assert "rank 1 on n" in event["text"]
    assert "Killed" in event["text"]
    wait_for_no_job(job)
    assert wait_for_accounting(job) == ["FAILED"]
    capsys.readouterr()
    assert main(["jobs", str(run)]) == 0
    assert "Killed" in capsys.readouterr().out.replace("\n", " ")


def process_of(job: Job, rank: int) -> int:
    """The process of a rank of a job."""
    wanted = {f"SLURM_JOB_ID={job.number}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
    for folder in Path("/proc").iterdir():
        try:
            found = set((folder / "environ").read_text(errors="replace").split("\0"))
            command = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if wanted <= found and any(word.endswith("main.py") for word in command):
            return int(folder.name)
    raise AssertionError(f"rank {rank} of job {job.number} has no process")


def test_a_time_limit_is_survived(time_limited: Job) -> None:
    run = time_limited.run_dir
    event = wait_for_event(run, event="end", reason="time limit")
    assert event["requeued"]
    assert event["code"] == 75
    wait_for_event(run, event="start", restart=1)
    wait_for_step(run, event["step"] + 3)
    assert_no_step_lost_or_repeated(run)
    assert restarts_used(history(run)) >= 1  # more where the other tests took minutes
    command = json.loads((run / "environment.json").read_text())["command"]
    assert command[0] == str(Path(time_limited.submission.folder) / "code" / "main.py"), (
        "the copy is what runs"
    )
    states = slurm("sacct", "-D", "-X", "-n", "-P", "-j", time_limited.number, "-o", "State").split()
    assert states[0] == "REQUEUED"
    assert set(states[:-1]) == {"REQUEUED"}
