"""Whether a job that has ended starts again: by the system's wish yes, after a crash no, and never without an end."""

import re
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ocpgem.errors import REQUEUE, OcpgemError
from ocpgem.launch.slurm import JobFacts, ask, expand_nodes, read_facts

STARTS_WITHOUT_PROGRESS = 5
_SIGNALLED = {REQUEUE, 128 + signal.SIGUSR1, 128 + signal.SIGUSR2}
_SLACK_SECONDS = 90.0  # SLURM looks at time limits only every 30 s
_TASK = re.compile(r"^srun: error: (?P<node>\S+): tasks? (?P<ranks>[\d,-]+): (?P<how>.+)$", re.MULTILINE)
ERROR_LINE = re.compile(r"^(?:\[rank \d+\] )?(?:error: .+|\w*(?:Error|Exception): .+)$", re.MULTILINE)
_CONSEQUENCE = re.compile(r"[Cc]onnection|[Ss]ocket|process group|NCCL|gloo|recvValue|Broken pipe")


@dataclass(frozen=True)
class Ending:
    """What happened to a job and what follows."""

    reason: str
    """finished, cancelled, time limit, preemption, signal, node failure, crash, or restarts used up."""
    requeue: bool
    text: str
    """A sentence for the log."""


@dataclass(frozen=True)
class Bounds:
    """How often a job may start again."""

    max_restarts: int
    used: int
    """Restarts so far that count."""
    resumes: bool
    signal_seconds: float = 120.0


def decide(code: int, facts: JobFacts, now: float, dead_nodes: Sequence[str], bounds: Bounds) -> Ending:
    """Decide from the exit code of srun and what SLURM says of the job.

    A preemption is what SLURM calls one, a time limit is near the job's end time; the exit code alone could not tell
    them apart.
    """
    if code == 0:
        return Ending("finished", False, "finished")
    if facts.state not in ("RUNNING", "COMPLETING") or (facts.state == "COMPLETING" and not facts.preempted):
        return Ending("cancelled", False, "cancelled; the same submission goes on from the last checkpoint")
    if facts.preempted:
        return Ending("preemption", True, "preempted by a job of higher priority; queued again")
    if dead_nodes:
        return Ending("node failure", True, f"lost {', '.join(dead_nodes)}; queued again without")
    if code not in _SIGNALLED:
        return Ending("crash", False, f"ended with exit code {code}; it is not started again")
    limit = bounds.signal_seconds + _SLACK_SECONDS
    timed_out = facts.end_time is not None and facts.end_time - now <= limit
    reason = "time limit" if timed_out else "signal"
    if not bounds.resumes:
        return Ending(
            reason,
            False,
            f"stopped by the {reason}; it would begin anew, so it is not started again: raise time",
        )
    if bounds.used >= bounds.max_restarts:
        text = f"stopped by the {reason} after {bounds.used} restarts, as many as restarts.max allows; submit it again"
        return Ending("restarts used up", False, text)
    return Ending(
        reason,
        True,
        f"stopped by the {reason}; queued again (restart {bounds.used + 1} of {bounds.max_restarts})",
    )


def restarts_used(records: Sequence[dict[str, Any]]) -> int:
    """How often a job was queued again for a reason that counts, as the records of its submission say."""
    return sum(
        record["event"] == "end"
        and bool(record.get("requeued"))
        and record.get("reason") in ("time limit", "signal")
        for record in records
    )


def starts_at(records: Sequence[dict[str, Any]], step: int) -> int:
    """How often in a row a job has started at `step`, as the records of its submission say."""
    count = 0
    for record in reversed(records):
        if record["event"] != "start":
            continue
        if record.get("step") != step:
            break
        count += 1
    return count


def find_dead_nodes(nodes: str) -> list[str]:
    """Those of a job's nodes whose slurmd does not answer, although that of this node does."""
    names = expand_nodes(nodes) if nodes else []
    if len(names) < 2:
        return []
    try:
        lines = ask("scontrol", "--oneliner", "show", "node", nodes).splitlines()
    except OcpgemError:
        return []
    facts = [read_facts(line) for line in lines if line.strip()]
    dead = [each["NodeName"] for each in facts if "NodeName" in each and not _answers(each)]
    return dead if len(dead) < len(names) else []  # nobody answers: a firewall, not a failure


def _answers(node: dict[str, str]) -> bool:
    if re.search(r"DOWN|FAIL|NOT_RESPONDING|\*", node.get("State", "")):
        return False
    try:
        port = int(node.get("Port", "6818"))
        with socket.create_connection((node.get("NodeAddr", node["NodeName"]), port), timeout=5):
            return True
    except (OSError, ValueError):
        return False


def why_it_failed(log: str, log_of: Callable[[int], str]) -> str:
    """Which rank failed first and its last error.

    log: what the first rank and srun wrote since the job started.
    log_of: the same of another rank; "" where all ranks write to one file.
    """
    first = _TASK.search(log)
    said = ERROR_LINE.findall(log)
    who = ""
    if first is not None:
        rank = int(re.split("[,-]", first["ranks"])[0])
        who = f"rank {rank} on {first['node']}: {first['how'].strip()}"
        own = ERROR_LINE.findall(log_of(rank)) if rank else []
        said = own or said
    causes = [line for line in said if not _CONSEQUENCE.search(line)] or said
    what = causes[-1].removeprefix("error: ") if causes else ""
    return "; ".join(part for part in (who, what) if part) or "its log does not say why"
