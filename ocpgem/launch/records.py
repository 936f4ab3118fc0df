"""What is kept about jobs: a folder for each submission, a history of starts and ends, a list for the project."""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ocpgem.errors import RequestError
from ocpgem.files import write_text

JOBS = "jobs"
"""Folder of a run that holds everything about its jobs; training accepts a run directory that holds only this."""
REQUEST_FILE = "request.json"
LINK_FILE = "element.json"
"""In a run of a sweep: which submission it is an element of."""
PROJECT_LIST = Path("runs") / "jobs.jsonl"
_TAIL_BYTES = 200_000


@dataclass(frozen=True)
class Element:
    """One job of a submission: all of it, or one element of an array."""

    run_dir: str
    argv: list[str]
    """Arguments of `main.py` on every rank."""
    total_steps: int | None = None


@dataclass
class Submission:
    """What was asked for; `request.json` of its folder."""

    folder: str
    kind: str
    """The command: train, evaluate, predict, relax."""
    name: str
    elements: list[Element]
    max_restarts: int
    resumes: bool
    """Whether the command goes on where it was stopped."""
    job_id: str | None = None
    cluster: str = ""
    submitted: float = 0.0
    """Seconds since 1970."""
    logs: list[str] = field(default_factory=list)
    """Files that the ranks write to, where they are not in the folder (plain sbatch)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Profile, code version, user, working directory."""

    def write(self) -> None:
        """Write `request.json`."""
        write_text(Path(self.folder) / REQUEST_FILE, json.dumps(asdict(self), indent=2) + "\n")

    def id_of(self, index: int) -> str | None:
        """The job number of an element, as SLURM prints it."""
        if self.job_id is None:
            return None
        return f"{self.job_id}_{index}" if len(self.elements) > 1 else self.job_id

    def log_files(self, index: int, rank: int = 0) -> list[Path]:
        """The log of a rank of an element."""
        if self.logs:
            return [Path(file) for file in self.logs]
        number = self.id_of(index)
        return [] if number is None else [Path(self.folder) / f"{number}_{rank}_log.out"]


def read_submission(folder: Path) -> Submission:
    """Read `request.json` of a submission's folder. Raises RequestError where there is none or it is damaged."""
    file = folder / REQUEST_FILE
    try:
        content = json.loads(file.read_text())
        return Submission(**content | {"elements": [Element(**each) for each in content["elements"]]})
    except FileNotFoundError:
        raise RequestError(f"{folder} holds no {REQUEST_FILE}, so it is not the folder of a job") from None
    except (ValueError, TypeError, KeyError) as error:
        raise RequestError(f"{file} is not what submit writes: {error}") from None


def new_folder(run_dir: Path) -> Path:
    """Make the next numbered folder below `jobs/` of a run."""
    jobs = run_dir / JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    number = max((int(each.name) for each in jobs.iterdir() if each.name.isdecimal()), default=0)
    while True:
        number += 1
        try:
            (jobs / f"{number:03d}").mkdir()
        except FileExistsError:  # somebody submits at the same moment
            continue
        return jobs / f"{number:03d}"


def folders(run_dir: Path) -> list[Path]:
    """The folders of a run's submissions, in order."""
    jobs = run_dir / JOBS
    if not jobs.is_dir():
        return []
    return sorted(
        each for each in jobs.iterdir() if each.name.isdecimal() and (each / REQUEST_FILE).is_file()
    )


def add_to_project(submission: Submission, project: Path = PROJECT_LIST) -> None:
    """Append a submission's folder to the project's list, a file below the working directory."""
    project.parent.mkdir(parents=True, exist_ok=True)
    with project.open("a") as file:
        file.write(json.dumps({"folder": submission.folder}) + "\n")


def project_folders(project: Path = PROJECT_LIST) -> list[Path]:
    """The folders that the project's list names and that are still there, each once, in order."""
    if not project.is_file():
        return []
    found: dict[Path, None] = {}
    for line in project.read_text().splitlines():
        try:
            folder = Path(json.loads(line)["folder"])
        except (ValueError, TypeError, KeyError):
            continue  # a line that was being written when its process ended
        if (folder / REQUEST_FILE).is_file():
            found[folder] = None
    return list(found)


def append_history(run_dir: Path, event: str, **facts: Any) -> None:
    """Add a line to the history of a run's jobs."""
    jobs = run_dir / JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    with (jobs / "history.jsonl").open("a") as file:
        file.write(json.dumps({"event": event, "time": round(time.time(), 3), **facts}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The starts and ends of a run's jobs, in order."""
    file = run_dir / JOBS / "history.jsonl"
    if not file.is_file():
        return []
    found = []
    for line in file.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off with its node
        if isinstance(record, dict):
            found.append(record)
    return found


def history_of(run_dir: Path, folder: str) -> list[dict[str, Any]]:
    """The part of a run's history that belongs to one submission; job numbers alone may come back."""
    return [record for record in history(run_dir) if record.get("folder") == folder]


def saved_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint, 0 where there is none."""
    pointer = run_dir / "checkpoints" / "latest"
    try:
        text = pointer.read_text()
    except OSError:
        return 0
    match = re.search(r"\d+", text)
    return int(match[0]) if match else 0


def tail(file: Path) -> str:
    """The end of a text file, "" where there is none."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _TAIL_BYTES))
            return opened.read().decode(errors="replace")
    except OSError:
        return ""
