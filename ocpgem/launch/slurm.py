"""Asking SLURM: its commands, what it knows of a job, its lists of nodes."""

import itertools
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime

from ocpgem.errors import OcpgemError, RequestError

COMMAND_SECONDS = 30.0
_PART = re.compile(r"\[[^\[\]]+\]|[^,\[\]]+")
_ITEM = re.compile(rf"(?:{_PART.pattern})+")
_NODES = re.compile(rf"{_ITEM.pattern}(?:,{_ITEM.pattern})*")
_FACT = re.compile(r"(\S+?)=(.*?)(?=\s+\S+?=|$)")


class SlurmError(OcpgemError):
    """A SLURM command failed or did not answer."""


def have_slurm() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("sbatch") is not None and shutil.which("scontrol") is not None


def ask(*words: str, seconds: float = COMMAND_SECONDS) -> str:
    """What a SLURM command prints. Raises SlurmError with what it says instead, or when it does not answer.

    The commands wait for long where the controller is down, hence the limit.
    """
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise RequestError(
            f"there is no {words[0]} here; run this where SLURM's commands are, usually a login node"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} did not answer within {seconds:g} s; SLURM's controller may be down"
        ) from None
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise SlurmError(f"{' '.join(words[:2])} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def controller_answers() -> bool:
    """Whether SLURM's controller, or the one that stands in for it, answers; asks for 5 s at most."""
    try:
        return " is UP" in ask("scontrol", "ping", seconds=5.0)
    except OcpgemError:
        return False


def ask_patiently(*words: str, seconds: float) -> str:
    """As `ask`, but again and again for `seconds`: a controller that is being restarted comes back."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return ask(*words)
        except SlurmError:
            if time.monotonic() > limit:
                raise
            time.sleep(2)


def read_facts(line: str) -> dict[str, str]:
    """The pairs in a line of `scontrol --oneliner show ...`."""
    return {match[1]: match[2].strip() for match in _FACT.finditer(line.strip())}


@dataclass(frozen=True)
class JobFacts:
    """What the controller says of a running job."""

    state: str
    end_time: float | None
    """When its time limit ends it, in seconds since 1970."""
    preempted: bool
    nodes: str
    output: str
    """The file that the batch script writes to."""
    name: str
    submitted: float
    """Seconds since 1970; a requeued job counts from then."""


def job_facts(job_id: str, patience: float = 0.0) -> JobFacts:
    """Ask the controller about a job; `patience` in seconds for a controller that does not answer."""
    line = ask_patiently("scontrol", "--oneliner", "show", "job", job_id, seconds=patience)
    facts = read_facts(line.splitlines()[0])
    return JobFacts(
        state=facts.get("JobState", "UNKNOWN"),
        end_time=parse_time(facts.get("EndTime", "")),
        preempted=parse_time(facts.get("PreemptTime", "")) is not None,
        nodes=facts.get("NodeList", ""),
        output=facts.get("StdOut", ""),
        name=facts.get("JobName", ""),
        submitted=parse_time(facts.get("SubmitTime", "")) or 0.0,
    )


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of a time as SLURM prints it, None for `None`, `N/A` or `Unknown`."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def expand_nodes(text: str) -> list[str]:
    """The names in a list of nodes as SLURM writes it: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7, login.

    Raises RequestError for what is no such list.
    """
    if not _NODES.fullmatch(text):
        raise RequestError(f"{text!r} is not a list of nodes as SLURM writes it")
    names: list[str] = []
    for item in _ITEM.findall(text):
        parts = [
            _expand_numbers(part[1:-1], text) if part.startswith("[") else [part]
            for part in _PART.findall(item)
        ]
        names += ["".join(choice) for choice in itertools.product(*parts)]
    return names


def _expand_numbers(numbers: str, text: str) -> list[str]:
    found: list[str] = []
    for piece in numbers.split(","):
        first, dash, last = piece.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise RequestError(f"{text!r} is not a list of nodes as SLURM writes it")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return found


def per_node(text: str) -> list[int]:
    """Numbers for each node as SLURM writes them: `2(x3),1` is 2, 2, 2, 1."""
    found: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", piece)
        if match is None:
            raise RequestError(f"{text!r} is not a list of numbers per node as SLURM writes it")
        found += [int(match[1])] * int(match[2] or 1)
    return found
