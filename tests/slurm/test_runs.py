"""Jobs on a real cluster that end well: same numbers as without SLURM, arrays, evaluation, what is refused."""

import json
import socket
from pathlib import Path

import pytest
import torch

from ocpgem.cli import main
from ocpgem.launch import job_states
from ocpgem.launch.job_states import Job, jobs_of_run, state_of
from ocpgem.launch.records import LINK_FILE, read_submission
from tests.slurm.cluster import (
    PROFILE,
    Cluster,
    losses_of,
    slurm,
    steps_of,
    submit,
    tensors_of,
    tiny_project,
    wait_for_accounting,
    wait_for_end,
    wait_for_step,
)
from tests.tiny_runs import listing, run_main

# Each starts a cluster's jobs: a start of several Python processes with torch takes 5 to 10 s.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 40


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Path:
    return tiny_project(tmp_path_factory.mktemp("runs"), steps=STEPS)


@pytest.fixture(scope="module")
def four_ranks(project: Path, cluster: Cluster) -> Job:
    """A finished run on 2 nodes x 2 ranks, during which the cluster's controller was away."""
    run = project.parent / "four"
    job = submit(project, run, nodes=2, tasks=2)
    before = wait_for_step(run)
    cluster.control("stop-controller")
    wait_for_step(run, before + 3)
    cluster.control("start-controller")
    wait_for_end(job)
    return job


def test_two_nodes_of_two_ranks_train_as_four_local_ranks_bit_for_bit(four_ranks: Job, project: Path) -> None:
    local = project.parent / "local"
    done = run_main("train", project, "--run-dir", local, "--nproc", 4, timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses_of(four_ranks.run_dir) == losses_of(local)
    expected, found = (
        tensors_of(local / "checkpoints" / str(STEPS)),
        tensors_of(four_ranks.run_dir / "checkpoints" / str(STEPS)),
    )
    assert set(found) == set(expected)
    assert len(found) > 100
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_a_run_survives_a_controller_that_is_restarted(four_ranks: Job) -> None:
    assert state_of(four_ranks).name == "FINISHED"
    assert steps_of(four_ranks.run_dir) == list(range(1, STEPS + 1))
    assert wait_for_accounting(four_ranks) == ["COMPLETED"]


def test_what_was_submitted_can_be_told_later(four_ranks: Job, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(four_ranks.submission.folder)
    assert (folder / "config.yaml").read_text() == (four_ranks.run_dir / "config.yaml").read_text()
    code = four_ranks.submission.facts["code"]
    assert len(code["commit"]) == 40
    assert (folder / "uncommitted.patch").is_file() == code["changed"]
    assert sorted(file.name for file in folder.glob("*_log.out")) == [
        f"{four_ranks.number}_{n}_log.out" for n in range(4)
    ]
    assert main(["jobs", str(four_ranks.run_dir)]) == 0
    out = capsys.readouterr().out
    assert "FINISHED" in out
    assert f"{STEPS}/{STEPS}" in out
    assert main(["logs", str(four_ranks.run_dir)]) == 0
    out = capsys.readouterr().out
    assert (
        out.index("begins on n")
        < out.index("step 1/")
        < out.index(f"step {STEPS}/")
        < out.index("finished after step")
    )


def test_a_stale_result_folder_is_not_believed(four_ranks: Job, project: Path, tmp_path: Path) -> None:
    """A cluster that is set up anew gives the same numbers out again; what an old folder says is not about them."""
    old = tmp_path / "old" / "jobs" / "001"
    old.mkdir(parents=True)
    text = (Path(four_ranks.submission.folder) / "request.json").read_text()
    (old / "request.json").write_text(
        text.replace(four_ranks.submission.folder, str(old)).replace(
            str(four_ranks.run_dir), str(tmp_path / "old")
        )
    )
    (old / f"{four_ranks.number}_0_result.pkl").write_bytes(b"said to be a success")
    [job] = jobs_of_run(tmp_path / "old")
    assert job.number == four_ranks.number
    submission = read_submission(old)
    submission.submitted -= 7 * 86_400
    submission.write()
    [job] = jobs_of_run(tmp_path / "old")
    state = state_of(job)
    assert state.name == "UNKNOWN"
    assert "number" in state.detail
    assert main(["cancel", str(tmp_path / "old")]) == 0  # and it ends nobody else's job


def test_a_sweep_is_an_array_of_runs_that_share_a_node_without_colliding(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = project.parent / "sweep.yml"
    sweep.write_text("grid: {optim.lr: [1.0e-3, 1.0e-4]}\n")
    home = project.parent / "sweep"
    words = [
        "submit",
        str(project),
        "--cluster",
        PROFILE,
        "--run-dir",
        str(home),
        "--sweep",
        str(sweep),
        "--nodes",
        "1",
    ]
    assert main([*words, "--set", "directives={nodelist: n1}", "steps=4"]) == 0
    names = ["000_lr=0.001", "001_lr=0.0001"]
    jobs = [job for name in names for job in jobs_of_run(home / name)]
    assert [job.number.partition("_")[2] for job in jobs] == ["0", "1"]
    asked: list[str] = []
    monkeypatch.setattr(job_states, "ask", lambda *words: asked.append(words[0]) or slurm(*words))
    assert [state.active for state in job_states.states_of(jobs)] == [True, True]
    assert asked == ["scontrol"], "once for both"
    monkeypatch.undo()
    assert [wait_for_end(job) for job in jobs] == ["FINISHED", "FINISHED"]
    listed = slurm("sacct", "-X", "-n", "-P", "-j", jobs[0].submission.job_id or "", "-o", "NodeList")
    assert listed.split() == ["n1", "n1"]
    for name, rate in zip(names, (1e-3, 1e-4), strict=True):
        assert steps_of(home / name) == [1, 2, 3, 4]
        assert f"lr: {rate:.6g}".rstrip("0") in (home / name / "config.yaml").read_text()
        assert (home / name / "jobs" / "001" / LINK_FILE).is_file()
    capsys.readouterr()
    assert main(["compare", *(str(home / name) for name in names), "--out", str(home / "compare.png")]) == 0
    out = capsys.readouterr().out
    assert "optim.lr" in out
    assert (home / "compare.png").stat().st_size > 10_000


def test_an_evaluation_shards_the_data_over_ranks(four_ranks: Job, project: Path, tmp_path: Path) -> None:
    run, val = four_ranks.run_dir, project.parent / "val"
    words = ["evaluate", str(run), "--data", f"val={val}", "--workers", "0", "--json"]
    shape = ["--cluster", PROFILE, "--nodes", "2", "--tasks-per-node", "1"]
    assert main(["submit", *words, str(tmp_path / "two.json"), *shape]) == 0
    job = jobs_of_run(run)[-1]
    assert job.submission.kind == "evaluate"
    assert wait_for_end(job) == "FINISHED"
    done = run_main(*words, tmp_path / "one.json")
    assert done.returncode == 0, done.stderr
    two, one = (json.loads((tmp_path / name).read_text()) for name in ("two.json", "one.json"))
    assert two["splits"]["val"] == pytest.approx(one["splits"]["val"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "gpu"], "the cluster has no partition gpu; it has main, high, short"),
        (
            ["--gpus-per-node", "3", "--tasks-per-node", "1"],
            "gpus_per_node is 3; in the partition main its nodes have at most 2",
        ),
        (["--nodes", "5", "--tasks-per-node", "1"], "nodes is 5; the partition main has 4"),
        (["--exclude", "n[1-3]"], "nodes is 2; the partition main has 1 without n[1-3]"),
        (
            ["--partition", "short", "--time", "1:00:00"],
            "time is 1:00:00; the partition short allows at most",
        ),
        (["--mem", "5000M"], "memory in MB is 5000; in the partition main its nodes have at most 4000"),
        (["--cpus-per-task", "9"], "tasks_per_node x cpus_per_task is 18"),
        (
            ["--constraint", "a100"],
            "constraint is a100; 0 nodes of the partition main have it (features there: rehearsal)",
        ),
        (["--account", "nobodys"], "account is nobodys; yours are"),
        (["--set", "directives={reservation: workshop}"], "SLURM would refuse this job"),
    ],
)
def test_a_mistake_is_refused_before_queueing(
    project: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = listing(project.parent), slurm("squeue", "-h")
    run = str(project.parent / "refused")
    assert main(["submit", str(project), "--cluster", PROFILE, "--run-dir", run, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert (listing(project.parent), slurm("squeue", "-h")) == before


def test_a_run_directory_in_use_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = project.parent / "in-use"
    job = submit(project, run, "--set", "directives={begin: now+1hour}")
    assert main(["submit", str(project), "--cluster", PROFILE, "--run-dir", str(run)]) == 2
    assert f"is in use by job {job.number} (PENDING)" in capsys.readouterr().err
    assert main(["cancel", str(run)]) == 0
    assert f"cancelled job {job.number}" in capsys.readouterr().out
    assert socket.gethostname() not in slurm("squeue", "-h", "-o", "%i %N")
    assert slurm("squeue", "-h", "-j", job.number) == ""
