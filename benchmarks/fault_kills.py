"""Kill -9 at random times: a rank chosen by chance, at a moment chosen by chance, again and again until a run is done.

    OMP_NUM_THREADS=1 python benchmarks/fault_kills.py [--kills 15] [--ranks 2 4] [--seed 0] [--out FILE.json]

So many kills hit one run for each number of ranks. After each kill the launcher must end by itself with an exit
code that says so, nothing that it started may be left, and nothing but sentences may have been printed; the same
command then goes on. In the end the weights, the optimiser, the moving average and the loss of every step must be, bit
for bit, those of a run that nobody killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.distributed import forked
from tests.distributed.processes import alive, descendants
from tests.distributed.states import same_state, train_records
from tests.tiny_runs import tiny_settings, write_settings, write_tiny_data

PATIENCE = 900.0
"""Seconds for anything to happen on a machine that may be busy."""

_DELAY = 0.1
"""Seconds after a step within which a rank is killed: one to three steps, or one save, on an idle machine."""

_STEPS_PER_KILL = 8
"""Steps that the run has for each kill, so that it does not end before the last one."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=15, help="for each number of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    forked.preload()
    with tempfile.TemporaryDirectory() as folder:
        found = [
            kill_until_done(
                Path(folder) / str(nproc), nproc, options.kills, random.Random(options.seed + nproc)
            )
            for nproc in options.ranks
        ]
    result = {"seed": options.seed, "kills": sum(len(run["kills"]) for run in found), "runs": found}
    text = json.dumps(result, indent=2)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)
    if any(run["problems"] for run in found):
        raise SystemExit(1)


def kill_until_done(folder: Path, nproc: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """One run that is killed `kills` times, compared with one that is not."""
    folder.mkdir()
    train, val = write_tiny_data(folder)
    steps = _STEPS_PER_KILL * kills + 10
    settings = tiny_settings(
        train, val, steps=steps, log_every_steps=1, validation={"every_steps": 4},
        checkpoint={"every_steps": 3}, optim={"lr": 5e-3},
    )  # fmt: skip
    config = write_settings(folder / "config.yml", settings)
    whole, run = folder / "whole", folder / "run"
    assert _train(config, whole, nproc).finish(PATIENCE) == 0
    problems: list[str] = []
    told: list[dict[str, Any]] = []
    while len(told) < kills:
        before = _identity(run / "metrics.jsonl")
        # The first kill hits the start of a run, later ones a run that has done some steps.
        target = _steps_done(run) + rng.randint(1, _STEPS_PER_KILL // 2) if told else 0
        delay = rng.uniform(0, _DELAY) if told else rng.uniform(0, 5)
        kill = _kill_at(_train(config, run, nproc), Moment(run, before, target, delay, rng.randrange(nproc)))
        told.append(kill)
        problems += [f"kill {len(told)}: {problem}" for problem in kill.pop("problems")]
        print(nproc, "ranks:", kill, flush=True)
    last = _train(config, run, nproc)
    if last.finish(PATIENCE) != 0:
        problems.append(f"the last run failed: {last.err.read_text()}")
    elif not same_state(whole, run, steps):
        problems.append("the final state is another than without kills")
    elif train_records(whole) != train_records(run):
        problems.append("the losses are others than without kills")
    shutil.rmtree(folder)
    return {"ranks": nproc, "steps": steps, "kills": told, "problems": problems}


def _train(config: Path, run: Path, nproc: int) -> forked.ForkedRun:
    words = ["train", config, "--run-dir", run, "--nproc", nproc]
    return forked.start(words, run.with_name("said"))


@dataclass
class Moment:
    """When a rank is killed: `delay` seconds after step `target`, 0 meaning the start."""

    run: Path
    before: int | None
    """Identity of the metrics file before this run began."""
    target: int
    delay: float
    victim: int


def _kill_at(under_way: forked.ForkedRun, moment: Moment) -> dict[str, Any]:
    metrics = moment.run / "metrics.jsonl"
    _wait_for(lambda: len(under_way.ranks()) > moment.victim, under_way)
    if moment.target:
        # A run that goes on writes the file anew; until then it holds the steps of the run that was killed.
        _wait_for(
            lambda: _identity(metrics) != moment.before and _steps_done(moment.run) >= moment.target,
            under_way,
        )
    time.sleep(moment.delay)
    pids = under_way.ranks()
    everything = descendants(under_way.launcher.pid)
    problems: list[str] = []
    os.kill(pids[moment.victim], signal.SIGKILL)
    killed_at, step = time.monotonic(), _steps_done(moment.run)
    code = under_way.finish(PATIENCE)
    took = time.monotonic() - killed_at
    said = under_way.err.read_text()
    if code == 0:
        problems.append("exit code 0")
    if "Traceback" in said or not said.strip():
        problems.append(f"said {said!r}")
    left = [pid for pid in everything if alive(pid)]
    if left:
        problems.append(f"processes {left} are left")
    return {
        "after_step": step,
        "rank": moment.victim,
        "exit_code": code,
        "seconds_to_end": round(took, 1),
        "said": said.strip().splitlines(),
        "problems": problems,
    }


def _steps_done(run: Path) -> int:
    records = train_records(run)
    return records[-1][0] if records else 0


def _identity(file: Path) -> int | None:
    return file.stat().st_ino if file.exists() else None


def _wait_for(event: Callable[[], bool], under_way: forked.ForkedRun) -> None:
    limit = time.monotonic() + PATIENCE
    while not event():
        assert under_way.launcher.poll() is None, under_way.err.read_text()
        assert time.monotonic() < limit
        time.sleep(0.005)


if __name__ == "__main__":
    main()
