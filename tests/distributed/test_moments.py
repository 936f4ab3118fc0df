"""Kills and signals at chosen moments of the command line, and what the same command does afterwards."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ocpgem.errors import REQUEUE
from tests.distributed.states import same_state
from tests.tiny_runs import ROOT, clean_environment, run_main, tiny_settings, write_settings, write_tiny_data

KILLED_WHILE_WRITING = """
import os, signal
import ocpgem.train.checkpoint_files as files
files.verify = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
"""
SIGNALLED_IN_SECOND_SET = """
import os, signal
import ocpgem.train.loop as loop
evaluate, times = loop.evaluate, []
def evaluate_or_stop(potential, dataset, effort, label, take):
    if label == "validating second":
        times.append(1)
        if len(times) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
    return evaluate(potential, dataset, effort, label, take)
loop.evaluate = evaluate_or_stop
"""
SIGNALLED_IN_VALIDATION = """
import os, signal
import ocpgem.train.loop as loop
evaluate = loop.evaluate
def signalled(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return evaluate(*arguments)
loop.evaluate = signalled
"""
KILLED_BETWEEN_RENAMES = (
    SIGNALLED_IN_VALIDATION
    + """
from pathlib import Path
replace = Path.replace
Path.replace = lambda own, target: (
    os.kill(os.getpid(), signal.SIGKILL) if target.name.isdecimal() else replace(own, target)
)
"""
)
OUT_OF_MEMORY_IN_STEP_5 = """
import torch
from ocpgem.train.step import StepRunner
share = StepRunner._share
def share_or_no_memory(self, step_batch, *rest):
    if step_batch.step == 4:
        torch.empty(1 << 60)
    return share(self, step_batch, *rest)
StepRunner._share = share_or_no_memory
"""
KILLED_BEFORE_THE_NEXT_STEP = """
import os, signal
from ocpgem.train.loop import TrainingLoop
TrainingLoop._take_steps = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def run_patched(patch: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a process that a few lines have prepared."""
    program = f"{patch}\nimport sys\nfrom ocpgem.cli import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def trained(*words: object) -> subprocess.CompletedProcess[str]:
    """`train` with these words, which ends well."""
    done = run_main("train", *words)
    assert done.returncode == 0, done.stderr
    return done


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = {"seconds", "systems_per_second", "data_wait_share", "memory_gb", "time"}
    return [{key: value for key, value in record.items() if key not in clock} for record in found]


@pytest.mark.slow  # four runs of the command line
def test_fine_tuning_that_was_killed_in_its_first_checkpoint_starts_from_its_source_again(
    tmp_path: Path,
) -> None:
    train, val = write_tiny_data(tmp_path)
    base = write_settings(tmp_path / "base.yml", tiny_settings(train, val, steps=2))
    trained(base, "--run-dir", tmp_path / "base")
    settings = tiny_settings(
        train,
        val,
        steps=4,
        log_every_steps=1,
        checkpoint={"every_steps": 2},
        start_from={"checkpoint": str(tmp_path / "base")},
    )
    own = write_settings(tmp_path / "own.yml", settings)
    trained(own, "--run-dir", tmp_path / "whole")
    killed = run_patched(KILLED_WHILE_WRITING, "train", own, "--run-dir", tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoints" / "2.partial").is_dir()
    done = trained(own, "--run-dir", tmp_path / "run")
    assert "starting from" in done.stdout
    assert records(tmp_path / "run") == records(tmp_path / "whole")


@pytest.mark.slow  # four runs of the command line
def test_a_validation_that_a_signal_cut_short_counts_once(tmp_path: Path) -> None:
    train, val = write_tiny_data(tmp_path)
    settings = tiny_settings(
        train,
        val,
        steps=10,
        log_every_steps=1,
        validation={"every_steps": 2},
        # A threshold that nothing reaches: every validation but the first counts as no better.
        optim={
            "lr": 1e-3,
            "schedule": {"name": "plateau", "plateau": {"patience": 1, "factor": 0.5, "threshold": 0.99}},
        },
    )
    settings["data"]["val"]["second"] = str(val)
    config = write_settings(tmp_path / "config.yml", settings)
    trained(config, "--run-dir", tmp_path / "whole")
    cut = run_patched(SIGNALLED_IN_SECOND_SET, "train", config, "--run-dir", tmp_path / "run")
    assert cut.returncode == REQUEUE, cut.stderr
    # A kill after the validation was done again makes it be done once more.
    killed = run_patched(KILLED_BEFORE_THE_NEXT_STEP, "train", config, "--run-dir", tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL
    assert records(tmp_path / "run")[-1]["kind"] == "val"
    trained(config, "--run-dir", tmp_path / "run")
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    rates = [record["lr"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert len(set(rates)) > 1


@pytest.mark.slow  # four runs of the command line
def test_a_kill_while_the_only_checkpoint_is_replaced_loses_nothing(tmp_path: Path) -> None:
    train, val = write_tiny_data(tmp_path)
    settings = tiny_settings(
        train,
        val,
        steps=8,
        log_every_steps=1,
        validation={"every_steps": 4},
        checkpoint={"every_steps": 6, "keep": 1, "keep_best": False, "keep_every_steps": 4},
    )
    config = write_settings(tmp_path / "config.yml", settings)
    whole, run = tmp_path / "whole", tmp_path / "run"
    for path, patch, code in (
        (whole, "", 0),
        (run, SIGNALLED_IN_VALIDATION, REQUEUE),
        (run, KILLED_BETWEEN_RENAMES, -signal.SIGKILL),
    ):
        done = run_patched(patch, "train", config, "--run-dir", path)
        assert done.returncode == code, done.stderr
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {"4.partial", "4.replaced.partial", "latest"}
    done = trained(config, "--run-dir", run)
    assert f"resuming from {run}/checkpoints/4 (step 4)" in done.stdout
    assert records(run) == records(whole)
    assert same_state(run, whole, 8)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"4", "8", "latest"}


@pytest.mark.slow  # two runs of the command line
def test_what_is_advised_where_a_single_system_does_not_fit_lets_the_run_go_on(tmp_path: Path) -> None:
    train, _ = write_tiny_data(tmp_path)
    config = write_settings(tmp_path / "config.yml", tiny_settings(train))
    run = tmp_path / "run"
    stopped = run_patched(OUT_OF_MEMORY_IN_STEP_5, "train", config, "--run-dir", run)
    assert stopped.returncode == 1
    assert "ran out of memory with a micro-batch of 1 systems" in stopped.stderr
    assert "activation_checkpointing=true" in stopped.stderr
    assert "max_edges" not in stopped.stderr, "the loader refuses a limit below a single system"
    done = trained(config, "activation_checkpointing=true", "--run-dir", run)
    assert "(step 4)" in done.stdout


@pytest.mark.slow  # two runs of the command line
def test_a_lower_learning_rate_holds_from_the_next_step_on_and_is_told(tmp_path: Path) -> None:
    train, val = write_tiny_data(tmp_path)
    config = write_settings(
        tmp_path / "config.yml",
        tiny_settings(
            train, val, steps=2, log_every_steps=1, optim={"lr": 1e-3, "schedule": {"name": "constant"}}
        ),
    )
    for words in ((), ("steps=4", "optim.lr=1e-5", "data.max_edges=500", "activation_checkpointing=true")):
        done = trained(config, *words, "--run-dir", tmp_path / "run")
    assert "optim.lr was 0.001 and is 1e-05, from the next step on" in done.stdout
    rates = [record["lr"] for record in records(tmp_path / "run") if record["kind"] == "train"]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5])
