"""What a batch script does before and after srun: `python -m ocpgem.launch.batch begin|end`.

Both kinds of script call it, the one that `submit` writes and `slurm/train.sbatch`. It imports nothing heavy.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from ocpgem.errors import OcpgemError
from ocpgem.launch.rank_environment import meeting_point
from ocpgem.launch.records import (
    Element,
    Submission,
    add_to_project,
    append_history,
    history,
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
    job = _job_number()
    element = _element(args)
    run_dir = Path(element.run_dir)
    step = saved_step(run_dir)
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    earlier = starts_at(history(run_dir), job, step)
    if earlier >= STARTS_WITHOUT_PROGRESS:
        text = f"started {earlier} times at step {step} without getting further; it is not started again"
        append_history(
            run_dir, "end", job=job, code=1, reason="no progress", requeued=False, step=step, text=text
        )
        raise OcpgemError(f"job {job} {text}; look at the ends in {run_dir / 'jobs' / 'history.jsonl'}")
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    append_history(run_dir, "start", job=job, restart=restart, nodes=nodes, step=step)
    where = f"restart {restart}" if restart else "first start"
    print(
        f"{_MARK} {job} begins on {nodes} at {_clock()} ({where}, step {step})", file=sys.stderr, flush=True
    )
    address, port = meeting_point(os.environ)
    print(f"export MASTER_ADDR={shlex.quote(address)} MASTER_PORT={port}")
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    if cores:  # since SLURM 22.05 srun does not take it over from sbatch
        print(f"export SRUN_CPUS_PER_TASK={shlex.quote(cores)}")
    return 0


def end(args: argparse.Namespace) -> int:
    """Note the end and its reason; queue the job again where that is right. Returns the exit code of the job."""
    job = _job_number()
    submission = _submission(args)
    element = _element(args)
    run_dir = Path(element.run_dir)
    bounds = Bounds(
        submission.max_restarts if submission else args.max_restarts,
        restarts_used(history(run_dir), job),
        submission.resumes if submission else True,
        args.signal_seconds,
    )
    ending, facts = Ending("finished", False, "finished"), None
    if args.code != 0:
        facts = job_facts(os.environ["SLURM_JOB_ID"], patience=_PATIENCE_SECONDS)
        running = facts.state == "RUNNING" and not facts.preempted
        dead = find_dead_nodes(facts.nodes) if running else []
        ending = decide(args.code, facts, time.time(), dead, bounds)
    text = ending.text
    if ending.reason == "crash" and facts is not None:
        text = f"{text}: {_why(submission, facts)}"
    step = saved_step(run_dir)
    append_history(
        run_dir,
        "end",
        job=job,
        code=args.code,
        reason=ending.reason,
        requeued=ending.requeue,
        step=step,
        text=text,
    )
    print(f"{_MARK} {job} at {_clock()}, step {step}: {text}", file=sys.stderr, flush=True)
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


def _submission(args: argparse.Namespace) -> Submission | None:
    return read_submission(args.job) if args.job is not None else None


def _element(args: argparse.Namespace) -> Element:
    submission = _submission(args)
    if submission is None:
        return _plain_element(args)
    return submission.elements[int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)]


def _plain_element(args: argparse.Namespace) -> Element:
    """The job of a plain batch script; it enters the project's list when it first starts."""
    element = Element(str(args.run_dir.resolve()), [])
    known = any(record.get("job") == _job_number() for record in history(args.run_dir))
    if not known:
        facts = job_facts(os.environ["SLURM_JOB_ID"], patience=_PATIENCE_SECONDS)
        folder = new_folder(args.run_dir.resolve())
        submission = Submission(
            folder=str(folder),
            kind="train",
            name=facts.name,
            elements=[element],
            max_restarts=args.max_restarts,
            resumes=True,
            job_id=os.environ["SLURM_JOB_ID"],
            cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
            submitted=facts.submitted,
            logs=[facts.output],
        )
        submission.write()
        add_to_project(submission)
    return element


def _why(submission: Submission | None, facts: JobFacts) -> str:
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)

    def since_start(file: Path) -> str:
        return tail(file).rpartition(_MARK)[2]

    def log_of(rank: int) -> str:
        if submission is None or submission.logs:
            return ""
        return "".join(tail(file) for file in submission.log_files(index, rank))

    return why_it_failed(since_start(Path(facts.output)), log_of)


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
