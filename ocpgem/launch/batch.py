"""What a batch script does before and after srun: `python -m ocpgem.launch.batch begin|end`.

Both kinds of script call it, the one that `submit` writes and `slurm/train.sbatch`. It imports nothing heavy.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ocpgem.errors import OcpgemError
from ocpgem.launch.rank_environment import meeting_point
from ocpgem.launch.records import (
    Element,
    Submission,
    add_to_project,
    append_history,
    folders,
    history_of,
    new_folder,
    read_submission,
    saved_step,
    tail,
)
from ocpgem.launch.restarts import (
    STARTS_WITHOUT_PROGRESS,
    Bounds,
    Ending,
    decide,
    find_dead_nodes,
    restarts_used,
    starts_at,
    why_it_failed,
)
from ocpgem.launch.slurm import JobFacts, ask_patiently, job_facts

_PATIENCE_SECONDS = 600.0  # for a controller that is being restarted
_MARK = "ocpgem: job"


def main() -> int:
    """Run `begin` or `end`."""
    parser = argparse.ArgumentParser(prog="python -m ocpgem.launch.batch")
    actions = parser.add_subparsers(required=True)
    begin_parser = actions.add_parser("begin", help="print the shell lines that tell the ranks where to meet")
    begin_parser.set_defaults(action=begin)
    end_parser = actions.add_parser("end", help="queue the job again where that is right")
    end_parser.add_argument("code", type=int, help="exit code of srun")
    end_parser.set_defaults(action=end)
    for each in (begin_parser, end_parser):
        where = each.add_mutually_exclusive_group(required=True)
        where.add_argument("--job", type=Path, help="folder of the submission")
        where.add_argument("--run-dir", type=Path, help="run directory of a plain batch script")
        each.add_argument("--max-restarts", type=int, default=50)
        each.add_argument("--signal-seconds", type=float, default=120.0)
    args = parser.parse_args()
    try:
        return int(args.action(args))
    except OcpgemError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def begin(args: argparse.Namespace) -> int:
    """Note the start; print MASTER_ADDR and MASTER_PORT as exports. Refuses a job that starts over and over."""
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    submission, index = _submission(args, first_start=restart == 0)
    run_dir = Path(submission.elements[index].run_dir)
    job, step = _job_number(), saved_step(run_dir)
    records = history_of(run_dir, submission.folder)
    facts = {"job": job, "folder": submission.folder, "step": step}
    text = _in_vain(submission, starts_at(records, step), restart, step)
    if text is not None:
        append_history(run_dir, "end", code=1, reason="no progress", requeued=False, text=text, **facts)
        raise OcpgemError(f"job {job} {text}; look at the ends in {run_dir / 'jobs' / 'history.jsonl'}")
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if restart and _last_reason(records) == "node failure":
        _wait_for_lost_nodes(nodes)
    append_history(run_dir, "start", restart=restart, nodes=nodes, **facts)
    where = f"restart {restart}" if restart else "first start"
    _say(f"{job} begins on {nodes} at {_clock()} ({where}, step {step})")
    address, port = meeting_point(os.environ)
    print(f"export MASTER_ADDR={shlex.quote(address)} MASTER_PORT={port}")
    print(
        "unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"
    )  # sbatch takes along what the submitting shell has set
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores:  # since SLURM 22.05 srun does not take it over from sbatch
        print(f"export SRUN_CPUS_PER_TASK={shlex.quote(cores)}")
    return 0


def _last_reason(records: Sequence[dict[str, Any]]) -> str:
    """Why the last start of a job ended; empty where nothing says so."""
    return next((each.get("reason", "") for each in reversed(records) if each["event"] == "end"), "")


def _wait_for_lost_nodes(nodes: str) -> None:
    """Wait until the nodes of this job answer.

    A job that is queued again may get a dead node back before SLURM has noticed its death (SlurmdTimeout, 5 minutes
    by default). Once SLURM notices, it ends this script and starts the job elsewhere.
    """
    limit = time.monotonic() + _PATIENCE_SECONDS
    told = False
    while (dead := find_dead_nodes(nodes)) and time.monotonic() < limit:
        if not told:
            _say(f"{_job_number()} waits: {', '.join(dead)} does not answer, which SLURM has not noticed yet")
            told = True
        time.sleep(2)


def _in_vain(submission: Submission, starts: int, restart: int, step: int) -> str | None:
    """Why a job must not start once more, if so; only training has steps that show progress."""
    if submission.kind == "train" and starts >= STARTS_WITHOUT_PROGRESS:
        return f"started {starts} times at step {step} without getting further; it is not started again"
    if submission.kind != "train" and restart > submission.max_restarts:
        return f"was started {restart + 1} times, more than restarts.max allows; it is not started again"
    return None


def end(args: argparse.Namespace) -> int:
    """Note the end and its reason; queue the job again where that is right. Returns the exit code of the job."""
    submission, index = _submission(args, first_start=False)
    run_dir = Path(submission.elements[index].run_dir)
    used = restarts_used(history_of(run_dir, submission.folder))
    bounds = Bounds(submission.max_restarts, used, submission.resumes, args.signal_seconds)
    ending, text = Ending("finished", False, "finished"), "finished"
    if args.code != 0:
        facts = job_facts(os.environ["SLURM_JOB_ID"], patience=_PATIENCE_SECONDS)
        running = facts.state == "RUNNING" and not facts.preempted
        dead = find_dead_nodes(facts.nodes) if running else []
        ending = decide(args.code, facts, time.time(), dead, bounds)
        text = ending.text
        if ending.reason == "crash":
            text += f": {_why(submission, index, facts)}"
    job, step = _job_number(), saved_step(run_dir)
    append_history(
        run_dir,
        "end",
        job=job,
        folder=submission.folder,
        code=args.code,
        reason=ending.reason,
        requeued=ending.requeue,
        step=step,
        text=text,
    )
    _say(f"{job} at {_clock()}, step {step}: {text}")
    if ending.requeue:
        ask_patiently("scontrol", "requeue", os.environ["SLURM_JOB_ID"], seconds=_PATIENCE_SECONDS)
        time.sleep(30)  # SLURM ends this script; its exit code must not end the job first
    return int(args.code)


def _job_number() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    number = os.environ.get("SLURM_JOB_ID")
    if not number:
        raise OcpgemError("SLURM_JOB_ID is not set: this is called by a batch script, within a job")
    return number


def _submission(args: argparse.Namespace, first_start: bool) -> tuple[Submission, int]:
    """The submission and the number of this job in it; a plain script has one from its first start on."""
    if args.job is not None:
        return read_submission(args.job), int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
    run_dir = args.run_dir.resolve()
    if not first_start:
        for folder in reversed(folders(run_dir)):
            known = read_submission(folder)
            if known.job_id == os.environ["SLURM_JOB_ID"]:
                return known, 0
    return _note_plain_script(run_dir, args.max_restarts), 0


def _note_plain_script(run_dir: Path, max_restarts: int) -> Submission:
    facts = job_facts(os.environ["SLURM_JOB_ID"], patience=_PATIENCE_SECONDS)
    submission = Submission(
        folder=str(new_folder(run_dir)),
        kind="train",
        name=facts.name,
        elements=[Element(str(run_dir), [])],
        max_restarts=max_restarts,
        resumes=True,
        job_id=os.environ["SLURM_JOB_ID"],
        cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
        submitted=facts.submitted,
        logs=[facts.output],
    )
    submission.write()
    add_to_project(submission)
    return submission


def _why(submission: Submission, index: int, facts: JobFacts) -> str:
    """The cause of a crash, from the logs since this start."""

    def log_of(rank: int) -> str:
        if submission.logs:
            return ""
        return "".join(tail(file) for file in submission.log_files(index, rank))

    return why_it_failed(tail(Path(facts.output)).rpartition(f"{_MARK} {_job_number()} begins")[2], log_of)


def _say(text: str) -> None:
    print(f"{_MARK} {text}", file=sys.stderr, flush=True)


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
