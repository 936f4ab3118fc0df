"""The state of this project's jobs: what SLURM says of a number, believed only if the number is still ours."""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocpgem.errors import RequestError
from ocpgem.launch.records import JOBS, LINK_FILE, Submission, folders, history_of, read_submission, tail
from ocpgem.launch.restarts import ERROR_LINE
from ocpgem.launch.slurm import SlurmError, ask, parse_time, read_facts

ACTIVE = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
)
_SAME_SUBMISSION_SECONDS = 900.0
_ENDINGS = {
    "finished": "FINISHED",
    "cancelled": "CANCELLED",
    "crash": "FAILED",
    "no progress": "FAILED",
    "restarts used up": "STOPPED",
    "time limit": "TIMEOUT",
    "signal": "STOPPED",
}


@dataclass(frozen=True)
class Job:
    """One element of a submission."""

    submission: Submission
    index: int

    @property
    def number(self) -> str:
        """The job number as SLURM prints it."""
        return self.submission.id_of(self.index) or "-"

    @property
    def run_dir(self) -> Path:
        return Path(self.submission.elements[self.index].run_dir)


@dataclass(frozen=True)
class State:
    """Where a job is."""

    name: str
    """A state of SLURM, FINISHED for a command that ended well, or UNKNOWN."""
    detail: str = ""
    """Nodes, the reason of waiting, or what went wrong."""
    seconds_left: float | None = None
    """Until the time limit."""
    restarts: int = 0

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.name in ACTIVE


@dataclass(frozen=True)
class Progress:
    """The last numbers of a training run."""

    step: int | None = None
    total: int | None = None
    loss: float | None = None
    systems_per_second: float | None = None
    seconds_left: float | None = None
    """Until the last step, at the present speed."""


def jobs_of_run(run_dir: Path) -> list[Job]:
    """The jobs of a run directory in the order of their submission. Raises RequestError where it never had one."""
    if not run_dir.is_dir():
        raise RequestError(f"{run_dir} does not exist; give the folder of a run")
    found = []
    for folder in sorted(each for each in (run_dir / JOBS).glob("*") if each.name.isdecimal()):
        link = folder / LINK_FILE
        if link.is_file():
            place = json.loads(link.read_text())
            found.append(Job(read_submission(Path(place["folder"])), place["index"]))
        elif folder in folders(run_dir):
            found += jobs_of_folder(folder)
    if not found:
        raise RequestError(f"{run_dir} has no jobs: nothing was submitted for it")
    return found


def jobs_of_folder(folder: Path) -> list[Job]:
    """The elements of a submission."""
    submission = read_submission(folder)
    return [Job(submission, index) for index in range(len(submission.elements))]


def state_of(job: Job) -> State:
    """The state of a job: from its own last record where that is final, else from SLURM."""
    records = history_of(job.run_dir, job.submission.folder)
    restarts = max((int(record.get("restart", 0)) for record in records), default=0)
    last = records[-1] if records else None
    if last is not None and last["event"] == "end" and not last.get("requeued"):
        said = "" if last["reason"] == "finished" else str(last.get("text", ""))
        return State(_ENDINGS.get(str(last["reason"]), "UNKNOWN"), said, restarts=restarts)
    if job.submission.job_id is None:
        return State("UNKNOWN", "it was never queued")
    return _from_controller(job, restarts) or _from_accounting(job, restarts)


def _from_controller(job: Job, restarts: int) -> State | None:
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job.number)
    except RequestError as error:
        return State("UNKNOWN", str(error), restarts=restarts)
    except SlurmError as error:
        return None if "Invalid job id" in str(error) else State("UNKNOWN", str(error), restarts=restarts)
    for line in text.splitlines():
        facts = read_facts(line)
        if not _is_ours(job.submission, facts):
            continue
        state = facts.get("JobState", "UNKNOWN")
        end = parse_time(facts.get("EndTime", ""))
        running = state == "RUNNING"
        return State(
            name="FINISHED" if state == "COMPLETED" else state,
            detail=facts.get("NodeList", "") if running else _reason(facts),
            seconds_left=end - time.time() if running and end is not None else None,
            restarts=max(restarts, int(facts.get("Restarts", "0"))),
        )
    return None


def _is_ours(submission: Submission, facts: dict[str, str]) -> bool:
    """Whether SLURM's job writes where ours does: a cluster that was set up anew gives its numbers out again."""
    output = facts.get("StdOut", "")
    if submission.logs:
        return output in submission.logs
    return Path(output).parent == Path(submission.folder)


def _reason(facts: dict[str, str]) -> str:
    reason = facts.get("Reason", "None")
    return "" if reason == "None" else reason


def _from_accounting(job: Job, restarts: int) -> State:
    try:
        text = ask(
            *("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--jobs", job.number),
            *("--format", "JobName,State,Submit,ExitCode"),
        )
    except (SlurmError, RequestError):
        return State("UNKNOWN", "SLURM has forgotten it and there is no accounting", restarts=restarts)
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    times = [parse_time(row[2]) for row in rows]
    first = min((each for each in times if each is not None), default=None)
    if first is None or abs(first - job.submission.submitted) > _SAME_SUBMISSION_SECONDS:
        return State("UNKNOWN", "SLURM does not know this job; its number may belong to another one now")
    if rows[-1][0] != job.submission.name:
        return State("UNKNOWN", "another job has its number now")
    state = rows[-1][1].split()[0]
    return State("FINISHED" if state == "COMPLETED" else state, f"exit code {rows[-1][3]}", restarts=restarts)


def progress_of(job: Job) -> Progress:
    """The last numbers that the run of a job wrote."""
    lines = tail(job.run_dir / "metrics.jsonl").splitlines()
    records = [record for record in map(_parse, lines) if record is not None]
    total = job.submission.elements[job.index].total_steps
    if not records:
        return Progress(total=total)
    last = records[-1]
    return Progress(
        step=last["step"],
        total=total,
        loss=last.get("loss"),
        systems_per_second=last.get("systems_per_second"),
        seconds_left=_remaining(records, total),
    )


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("kind") == "train" and "step" in record else None


def _remaining(records: list[dict[str, Any]], total: int | None) -> float | None:
    if total is None or len(records) < 2 or "seconds" not in records[-1]:
        return None
    first, last = records[max(0, len(records) - 20)], records[-1]
    steps = last["step"] - first["step"]
    if steps <= 0 or "seconds" not in first:
        return None
    return float(max(0, total - last["step"]) * (last["seconds"] - first["seconds"]) / steps)


def last_error(job: Job) -> str:
    """The last error in the log of a job's first rank, "" where there is none."""
    said = [error for file in job.submission.log_files(job.index) for error in ERROR_LINE.findall(tail(file))]
    return re.sub(r"^error: ", "", said[-1]) if said else ""
