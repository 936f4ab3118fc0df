"""What the tests on the cluster share: submitting, waiting for events, looking at runs."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ocpgem.cli import main
from ocpgem.launch.job_states import Job, jobs_of_run, state_of
from ocpgem.launch.records import history
from tests.tiny_runs import ROOT, tiny_settings, write_settings, write_tiny_data

PROFILE = str(ROOT / "slurm" / "local_cluster.yaml")
PATIENCE = 240.0
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A cluster that slurm/local_cluster.sh runs in `folder`."""

    folder: Path
    port: int

    def control(self, *words: str) -> str:
        """Run the script, as start or crash-node n2."""
        environ = os.environ | {
            "CLUSTER_DIR": str(self.folder),
            "CLUSTER_PORT": str(self.port),
            "CLUSTER_GRACE": "60",
        }
        done = subprocess.run(
            [ROOT / "slurm" / "local_cluster.sh", *words],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def slurm(*words: str) -> str:
    """What a command of SLURM prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def tiny_project(folder: Path, **changes: Any) -> Path:
    """A configuration with its data; a run of one rank unless the profile is changed."""
    train, val = write_tiny_data(folder)
    settings = {
        "log_every_steps": 1,
        "checkpoint": {"every_steps": 5},
        "validation": {"every_steps": 100_000},
    }
    return write_settings(
        folder / "tiny.yml", tiny_settings(train, val, **(settings | changes), data={"batch_size": 8})
    )


def submit(config: Path, run: Path, *words: str, nodes: int = 1, tasks: int = 1) -> Job:
    """Submit a training run and return its newest job."""
    shape = ["--nodes", str(nodes), "--tasks-per-node", str(tasks)]
    assert main(["submit", str(config), "--cluster", PROFILE, "--run-dir", str(run), *shape, *words]) == 0
    return jobs_of_run(run)[-1]


def wait_for(
    what: str, look: Callable[[], T | None], run: Path | None = None, patience: float = PATIENCE
) -> T:
    """Wait until `look` finds something; the logs of the run are shown where it does not."""
    limit = time.monotonic() + patience
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > limit:
            logs = "" if run is None else "\n".join(file.read_text() for file in run.glob("jobs/*/*_log.out"))
            raise AssertionError(f"waited {patience:.0f} s for {what}\n{history(run) if run else ''}\n{logs}")
        time.sleep(0.2)


def wait_for_step(run: Path, step: int = 1) -> int:
    """Wait until a run has reported `step`."""
    return wait_for(f"step {step}", lambda: (steps := steps_of(run)) and steps[-1] >= step and steps[-1], run)


def wait_for_end(job: Job) -> str:
    """Wait until a job has ended; returns its state."""
    return wait_for(
        f"the end of job {job.number}",
        lambda: (state := state_of(job)).ended and state.name,
        job.run_dir,
    )


def wait_for_accounting(job: Job) -> list[str]:
    """The states of a job's allocations in the accounting, once it knows their ends: it lags behind."""

    def look() -> list[str] | None:
        states = slurm("sacct", "-D", "-X", "-n", "-P", "-j", job.number, "-o", "State").split("\n")
        return None if {"", "RUNNING", "PENDING", "COMPLETING"} & set(states) else states

    return wait_for(f"the accounting of job {job.number}", look, job.run_dir)


def wait_for_event(run: Path, **facts: Any) -> dict[str, Any]:
    """Wait for a line of the history of a run's jobs."""

    def look() -> dict[str, Any] | None:
        return next((each for each in history(run) if facts.items() <= each.items()), None)

    return wait_for(f"{facts}", look, run)


def steps_of(run: Path) -> list[int]:
    """The steps that a run has reported."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and '"train"' in line]


def losses_of(run: Path) -> list[float]:
    return [
        json.loads(line)["loss"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"train"' in line
    ]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor in the files of a checkpoint."""
    found: dict[str, torch.Tensor] = {}

    def collect(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{name}/{key}", inner)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                collect(f"{name}/{number}", inner)

    for file in sorted(folder.rglob("*.pt")):
        # DeepSpeed pickles objects of its own; a test wrote these files a moment ago.
        collect(str(file.relative_to(folder)), torch.load(file, map_location="cpu", weights_only=False))
    return found
