"""Checks before a job is queued, so that a mistake costs seconds and not a wait: files, run directory, the cluster."""

import os
import pwd
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ocpgem.errors import OcpgemError, RequestError, attempt
from ocpgem.launch.profile import ClusterProfile, minutes_of
from ocpgem.launch.slurm import SlurmError, ask, expand_nodes, read_facts


@dataclass
class Findings:
    """What the checks found; every mistake is kept, so that all are told at once."""

    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def raise_if_wrong(self) -> None:
        """Raise RequestError naming every mistake."""
        if not self.mistakes:
            return
        if len(self.mistakes) == 1:
            raise RequestError(f"nothing was queued: {self.mistakes[0]}")
        lines = "\n".join(f"  {line}" for line in self.mistakes)
        raise RequestError(f"nothing was queued; {len(self.mistakes)} mistakes:\n{lines}")


def check_partition(profile: ClusterProfile, found: Findings) -> None:
    """Compare the request with what SLURM says of the partition: nodes, time, GPUs, cores, memory, features."""
    partitions = [
        read_facts(line) for line in ask("scontrol", "--oneliner", "show", "partition").splitlines()
    ]
    names = [facts["PartitionName"] for facts in partitions if "PartitionName" in facts]
    wanted = profile.partition
    if wanted is None:
        wanted = next((p["PartitionName"] for p in partitions if p.get("Default") == "YES"), None)
        if wanted is None:
            found.mistakes.append(
                f"the cluster has no default partition; set partition to one of {', '.join(names)}"
            )
            return
    for name in wanted.split(","):
        facts = next((each for each in partitions if each.get("PartitionName") == name), None)
        if facts is None:
            found.mistakes.append(f"the cluster has no partition {name}; it has {', '.join(names)}")
        else:
            _check_against(profile, name, facts, found)


def _check_against(profile: ClusterProfile, name: str, facts: dict[str, str], found: Findings) -> None:
    if facts.get("State", "UP") != "UP":
        found.mistakes.append(f"the partition {name} is {facts['State']}; it takes no jobs now")
    limit = facts.get("MaxTime", "UNLIMITED")
    if limit not in ("UNLIMITED", "NONE") and profile.minutes > minutes_of(limit):
        found.mistakes.append(f"time is {profile.time}; the partition {name} allows at most {limit}")
    most = facts.get("MaxNodes", "UNLIMITED")
    if most.isdecimal() and profile.nodes > int(most):
        found.mistakes.append(f"nodes is {profile.nodes}; the partition {name} allows at most {most}")
    accounts = facts.get("AllowAccounts", "ALL")
    if profile.account and accounts != "ALL" and profile.account not in accounts.split(","):
        found.mistakes.append(f"account is {profile.account}; the partition {name} is for {accounts}")
    services = facts.get("AllowQos", "ALL")
    if profile.qos and services != "ALL" and profile.qos not in services.split(","):
        found.mistakes.append(f"qos is {profile.qos}; the partition {name} allows {services}")
    _check_nodes(profile, name, found)


@dataclass(frozen=True)
class _Node:
    name: str
    cpus: int
    memory_mb: int
    gpus: int
    features: tuple[str, ...]


def _nodes_of(partition: str) -> list[_Node]:
    """The nodes of a partition; rows of sinfo stand for one node each."""
    text = ask("sinfo", "--noheader", "--Node", "--partition", partition, "--format", "%N|%c|%m|%G|%f")
    found = []
    for line in text.splitlines():
        name, cpus, memory, gres, features = (piece.strip() for piece in line.split("|", 4))
        names = tuple(each for each in features.split(",") if each and each != "(null)")
        found.append(_Node(name, int(cpus.rstrip("+")), int(memory.rstrip("+")), _gpus_in(gres), names))
    return found


def _gpus_in(gres: str) -> int:
    """GPUs in generic resources as sinfo prints them: `gpu:a100:4(S:0-1),shm:1` has 4."""
    total = 0
    for item in gres.split(","):
        parts = item.partition("(")[0].split(":")
        if parts[0] == "gpu" and parts[-1].isdecimal():
            total += int(parts[-1])
    return total


def _check_nodes(profile: ClusterProfile, partition: str, found: Findings) -> None:
    nodes = _nodes_of(partition)
    excluded = set(expand_nodes(profile.exclude)) if profile.exclude else set()
    left = [node for node in nodes if node.name not in excluded]
    if len(left) < profile.nodes:
        without = f" without {profile.exclude}" if excluded else ""
        found.mistakes.append(f"nodes is {profile.nodes}; the partition {partition} has {len(left)}{without}")
        return
    cores = profile.ranks_per_node * (profile.cpus_per_task or 1)
    for what, wanted, has in (
        ("gpus_per_node", profile.gpus_per_node, [node.gpus for node in left]),
        ("tasks_per_node x cpus_per_task", cores, [node.cpus for node in left]),
        ("memory in MB", profile.memory_mb or 0, [node.memory_mb for node in left]),
    ):
        enough = sum(value >= wanted for value in has)
        if enough < profile.nodes:
            some = f"{enough} nodes have as many" if enough else f"its nodes have at most {max(has)}"
            found.mistakes.append(f"{what} is {wanted}; in the partition {partition} {some}")
    feature = profile.constraint
    if feature and feature.isidentifier():  # combined ones are left to SLURM
        enough = sum(feature in node.features for node in left)
        if enough < profile.nodes:
            known = sorted({name for node in left for name in node.features})
            found.mistakes.append(
                f"constraint is {feature}; {enough} nodes of the partition {partition} have it "
                f"(features there: {', '.join(known) or 'none'})"
            )


def check_account(profile: ClusterProfile, found: Findings) -> None:
    """Compare account and QOS with what the accounting grants this user; nothing where there is no accounting."""
    try:
        text = ask(
            *("sacctmgr", "--noheader", "--parsable2", "show", "associations"),
            *(f"user={pwd.getpwuid(os.getuid()).pw_name}", "format=account,partition,qos"),
        )
    except (SlurmError, RequestError):
        return
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    if not rows:
        return
    accounts = sorted({row[0] for row in rows})
    if profile.account and profile.account not in accounts:
        found.mistakes.append(f"account is {profile.account}; yours are {', '.join(accounts)}")
        return
    mine = [row for row in rows if profile.account in (None, row[0])]
    services = sorted({name for row in mine for name in row[2].split(",") if name})
    if profile.qos and services and profile.qos not in services:
        found.mistakes.append(f"qos is {profile.qos}; you may use {', '.join(services)}")
    _check_service(profile, found)


def _check_service(profile: ClusterProfile, found: Findings) -> None:
    if not profile.qos:
        return
    try:
        text = ask("sacctmgr", "--noheader", "--parsable2", "show", "qos", profile.qos, "format=name,maxwall")
    except SlurmError:
        return
    for line in text.splitlines():
        name, _, limit = line.partition("|")
        if name == profile.qos and limit and profile.minutes > minutes_of(limit):
            found.mistakes.append(f"time is {profile.time}; the qos {name} allows at most {limit}")


def check_folder(path: Path, found: Findings) -> None:
    """Note a folder in which nothing can be written."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        found.mistakes.append(f"{existing} is a file; choose another --run-dir")
    elif not os.access(existing, os.W_OK | os.X_OK):
        found.mistakes.append(f"{existing} may not be written; choose another --run-dir")


def checked(call: Callable[[], object], found: Findings) -> None:
    """Run a check that raises, and note what it says."""
    mistakes: list[OcpgemError] = []
    attempt(call, mistakes)
    found.mistakes += map(str, mistakes)
