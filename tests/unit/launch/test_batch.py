"""What a batch script says before the ranks start, without SLURM."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ocpgem.launch.records import Element, Submission, append_history, history, new_folder
from tests.tiny_runs import ROOT


def begin(run: Path, kind: str = "train", **environ: str) -> subprocess.CompletedProcess[str]:
    folder = new_folder(run)
    Submission(str(folder), kind, "run", [Element(str(run), [])], 50, True, "4711").write()
    for step in (3, 12, 12, 12, 12, 12):
        append_history(run, "start", job="4711", folder=str(folder), step=step)
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_RESTART_COUNT": "6",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "ocpgem.launch.batch", "begin", "--job", str(folder)],
        env=job | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def at_step(run: Path, step: int) -> Path:
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text(str(step))
    return run


def test_it_prints_where_the_ranks_meet(tmp_path: Path) -> None:
    done = begin(at_step(tmp_path / "run", 15), SLURM_CPUS_PER_TASK="8")
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("export MASTER_ADDR=localhost MASTER_PORT=2")
    assert second == "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"
    assert third == "export SRUN_CPUS_PER_TASK=8"
    assert "job 4711 begins on localhost" in done.stderr
    assert "(restart 6, step 15)" in done.stderr
    assert history(tmp_path / "run")[-1]["step"] == 15


@pytest.mark.parametrize(
    ("kind", "changes", "code", "text"),
    [
        ("train", {}, 1, "started 5 times at step 12 without getting further"),
        ("relax", {}, 0, "begins on localhost"),
        ("relax", {"SLURM_RESTART_COUNT": "51"}, 1, "was started 52 times, more than restarts.max allows"),
    ],
)
def test_a_job_that_starts_in_vain_ends(
    tmp_path: Path, kind: str, changes: dict[str, Any], code: int, text: str
) -> None:
    done = begin(at_step(tmp_path / "run", 12), kind, **changes)
    assert done.returncode == code
    assert text in done.stderr
    last = history(tmp_path / "run")[-1]
    assert (last["event"], last.get("reason")) == (("end", "no progress") if code else ("start", None))
