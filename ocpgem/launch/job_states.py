"""The state of this project's jobs: what SLURM says of a number, believed only if the number is still ours."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ocpgem.errors import OcpgemError, RequestError
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
_TASKS = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")
_DONE = re.compile(r"^[^:\n]+: (\d+) of (\d+) systems, ([\d.]+) systems/s$", re.MULTILINE)
"""What `evaluate.progress` writes into a log."""
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
    answered: bool = True
    """Whether SLURM answered; a job is UNKNOWN where it did not, and may well be active."""

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.name in ACTIVE

    @property
    def ended(self) -> bool:
        """Whether it is known not to wait or run."""
        return self.answered and not self.active


@dataclass(frozen=True)
class Progress:
    """The last numbers of a run: steps of a training, systems of other commands."""

    step: int | None = None
    total: int | None = None
    loss: float | None = None
    systems_per_second: float | None = None
    seconds_left: float | None = None
    """Until the last step, at the present speed."""


def jobs_of_run(run_dir: Path) -> list[Job]:
    """The jobs of a run directory in the order of their submission. Raises RequestError where it never had one."""
    if not run_dir.is_dir():
        what = "is a file" if run_dir.is_file() else "does not exist"
        raise RequestError(f"{run_dir} {what}; give the folder of a run")
    found = []
    for folder in sorted(each for each in (run_dir / JOBS).glob("*") if each.name.isdecimal()):
        link = folder / LINK_FILE
        if link.is_file():
            found.append(_linked(link))
        elif folder in folders(run_dir):
            found += jobs_of_folder(folder)
    if not found:
        raise RequestError(f"{run_dir} has no jobs: nothing was submitted for it")
    return found


def _linked(link: Path) -> Job:
    """The element of a sweep that a run directory belongs to."""
    try:
        place = json.loads(link.read_text())
        folder, index = Path(place["folder"]), int(place["index"])
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{link} is not what submit writes: {error}") from None
    submission = read_submission(folder)
    if index not in range(len(submission.elements)):
        raise RequestError(f"{link} names element {index} of {folder}, which has {len(submission.elements)}")
    return Job(submission, index)


def jobs_of_folder(folder: Path) -> list[Job]:
    """The elements of a submission."""
    submission = read_submission(folder)
    return [Job(submission, index) for index in range(len(submission.elements))]


def state_of(job: Job) -> State:
    """The state of a job: from its own last record where that is final, else from SLURM."""
    return states_of([job])[0]


def states_of(jobs: Sequence[Job]) -> list[State]:
    """The state of each job; SLURM is asked once for all elements of an array."""
    asked: dict[str, _Slurm] = {}
    found = []
    for job in jobs:
        records = history_of(job.run_dir, job.submission.folder)
        restarts = max((int(record.get("restart", 0)) for record in records), default=0)
        state = _own_ending(records, restarts)
        if state is None:
            slurm = asked.setdefault(job.submission.folder, _Slurm(job.submission))
            state = slurm.state_of(job.index, restarts)
        found.append(state)
    return found


def _own_ending(records: list[dict[str, Any]], restarts: int) -> State | None:
    """How a job ended as its own last record says, None where that is not the end."""
    last = records[-1] if records else None
    if last is None or last["event"] != "end" or last.get("requeued"):
        return None
    said = "" if last["reason"] == "finished" else str(last.get("text", ""))
    return State(_ENDINGS.get(str(last["reason"]), "UNKNOWN"), said, restarts=restarts)


class _Slurm:
    """What SLURM says of a submission, asked for when it is needed and then once."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission

    def state_of(self, index: int, restarts: int) -> State:
        """The state of an element."""
        if self._submission.job_id is None:
            return State("UNKNOWN", "it was never queued")
        facts = self._controller
        if isinstance(facts, OcpgemError):
            return State("UNKNOWN", str(facts), restarts=restarts, answered=False)
        mine = next((each for each in facts if _is_about(each, index)), None)
        return self._from_accounting(index, restarts) if mine is None else _from_controller(mine, restarts)

    @cached_property
    def _controller(self) -> list[dict[str, str]] | OcpgemError:
        """What the controller knows, a map for each element or for several that wait together; or why it does not."""
        try:
            text = ask("scontrol", "--oneliner", "show", "job", str(self._submission.job_id))
        except (SlurmError, RequestError) as error:
            return [] if "Invalid job id" in str(error) else error
        facts = [read_facts(line) for line in text.splitlines()]
        return [each for each in facts if _is_ours(self._submission, each)]

    @cached_property
    def _accounts(self) -> list[list[str]] | None:
        """Rows of the accounting: number, name, state, time of submission, exit code; None where there is none."""
        try:
            text = ask(
                *("sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"),
                *("--jobs", str(self._submission.job_id), "--format", "JobID,JobName,State,Submit,ExitCode"),
            )
        except (SlurmError, RequestError):
            return None
        return [line.split("|") for line in text.splitlines() if line.count("|") == 4]

    def _from_accounting(self, index: int, restarts: int) -> State:
        if self._accounts is None:
            return State("UNKNOWN", "SLURM has forgotten it and there is no accounting", restarts=restarts)
        number = self._submission.id_of(index)
        rows = [row for row in self._accounts if row[0] == number]
        times = [parse_time(row[3]) for row in rows]
        first = min((each for each in times if each is not None), default=None)
        if first is None or abs(first - self._submission.submitted) > _SAME_SUBMISSION_SECONDS:
            return State("UNKNOWN", "SLURM does not know this job; its number may belong to another one now")
        if rows[-1][1] != self._submission.name:
            return State("UNKNOWN", "another job has its number now")
        state = rows[-1][2].split()[0]
        return State(
            "FINISHED" if state == "COMPLETED" else state, f"exit code {rows[-1][4]}", restarts=restarts
        )


def _from_controller(facts: dict[str, str], restarts: int) -> State:
    state = facts.get("JobState", "UNKNOWN")
    end = parse_time(facts.get("EndTime", ""))
    running = state == "RUNNING"
    return State(
        name="FINISHED" if state == "COMPLETED" else state,
        detail=facts.get("NodeList", "") if running else _reason(facts),
        seconds_left=end - time.time() if running and end is not None else None,
        restarts=max(restarts, int(facts.get("Restarts", "0"))),
    )


def _is_about(facts: dict[str, str], index: int) -> bool:
    """Whether facts are about an element of an array; those that still wait are told together, as `2-5,7,10-20:2%2`."""
    text = facts.get("ArrayTaskId")
    if text is None:  # no array
        return True
    for piece in text.partition("%")[0].split(","):
        match = _TASKS.fullmatch(piece)
        if match is not None:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            if index in range(first, last + 1, step):
                return True
    return False


def _is_ours(submission: Submission, facts: dict[str, str]) -> bool:
    """Whether SLURM's job writes where ours does: a cluster that was set up anew gives its numbers out again."""
    output = facts.get("StdOut", "")
    if submission.logs:
        return output in submission.logs
    return Path(output).parent == Path(submission.folder)


def _reason(facts: dict[str, str]) -> str:
    reason = facts.get("Reason", "None")
    return "" if reason == "None" else reason


def progress_of(job: Job) -> Progress:
    """The last numbers that the run of a job wrote, or that stand in the log of another command."""
    if job.submission.kind != "train":
        return _progress_in_log(job)
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


def _progress_in_log(job: Job) -> Progress:
    found = [match for file in job.submission.log_files(job.index) for match in _DONE.findall(tail(file))]
    if not found:
        return Progress()
    done, total, rate = int(found[-1][0]), int(found[-1][1]), float(found[-1][2])
    left = (total - done) / rate if rate > 0 else None
    return Progress(step=done, total=total, systems_per_second=rate, seconds_left=left)


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
