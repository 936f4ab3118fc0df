"""Time limits, preemption and Ctrl-C: the run saves, says what happened, and its exit code asks for what comes next."""

import json
import os
import signal
from pathlib import Path

import pytest

from ocpgem.errors import INTERRUPTED, REQUEUE
from tests.distributed.processes import catches, finish, has_lines, rank_pid, training, wait_for
from tests.tiny_runs import run_main, tiny_settings, write_settings, write_tiny_data

N_STEPS = 100_000
"""More than can be done before the signal arrives."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    train, val = write_tiny_data(folder)
    settings = tiny_settings(
        train, val, steps=N_STEPS, log_every_steps=1, validation={"every_steps": 50_000},
        checkpoint={"every_steps": 50_000},
    )  # fmt: skip
    return write_settings(folder / "config.yml", settings)


@pytest.mark.slow  # two ranks start four times
def test_a_signal_to_any_rank_stops_all_with_a_checkpoint_and_asks_for_a_requeue(
    config: Path, tmp_path: Path
) -> None:
    run, step = tmp_path / "run", 0
    for number, rank in ((signal.SIGUSR2, 1), (signal.SIGTERM, 0), (signal.SIGUSR1, None)):
        with training(config, run, 2) as process:
            wait_for(lambda: has_lines(run / "metrics.jsonl", step + 3), process)  # noqa: B023
            if rank is None:
                process.send_signal(number)  # to the launcher, which passes it on
            else:
                os.kill(rank_pid(process, rank), number)
            done = finish(process)
        assert done.returncode == REQUEUE, done.stderr
        step = int((run / "checkpoints" / "latest").read_text())
        assert done.stdout.splitlines()[-1] == (
            f"stopped after step {step} of {N_STEPS} by {number.name}; the state is saved in "
            f"{run}/checkpoints/{step}; start the same command again to go on from there"
        )
        assert done.stderr in ("", "\nstopping after this step; a checkpoint will be written\n")
    done = run_main("train", config, f"steps={step + 1}", "--run-dir", run, "--nproc", 2)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, step + 2), step + 1]  # each once, and the last validation


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, REQUEUE, "error: SIGTERM arrived before the first step, so there is nothing to save; "
         "start the same command again\n"),
        (signal.SIGINT, INTERRUPTED, "interrupted\n"),
    ],
)  # fmt: skip
def test_a_signal_before_the_first_step_ends_the_run_at_once_and_leaves_nothing(
    config: Path, tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    with training(config, tmp_path / "run", 1) as process:
        wait_for(lambda: catches(process.pid, signal.SIGUSR2), process)
        process.send_signal(number)
        done = finish(process)
    assert (done.returncode, done.stderr) == (code, said)
    assert not (tmp_path / "run").exists()
