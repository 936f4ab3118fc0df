"""A cluster profile: what a job asks of SLURM, as a YAML file of `slurm/` says it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ocpgem.config import Contradiction, Section, load_config
from ocpgem.errors import ConfigError

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_MEMORY_UNIT = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_OWN_DIRECTIVES = {
    "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node",
    "ntasks": "nodes and tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "exclude": "exclude",
    "mem": "memory",
    "time": "time",
    "mail-type": "mail.when",
    "mail-user": "mail.address",
    "signal": "signal_seconds",
    "array": "--sweep",
    "job-name": "--name",
    "output": "nothing: logs go into the run directory",
    "error": "nothing: logs go into the run directory",
    "open-mode": "nothing: logs are always appended to",
    "requeue": "restarts.max",
    "no-requeue": "restarts.max",
}


class MailSection(Section):
    """Whom SLURM writes to, and when."""

    address: str = Field(pattern=r"[^@\s]+@[^@\s]+", description="e-mail address")
    when: list[Literal["begin", "end", "fail", "requeue", "time_limit", "time_limit_80"]] = Field(
        default=["end", "fail"], min_length=1
    )


class GpuSection(Section):
    """The GPUs of the nodes, for checks before a job is queued."""

    memory_gb: float | None = Field(None, gt=0, description="memory of one GPU in GB (10^9 bytes)")


class RestartSection(Section):
    """How often a job may be started again."""

    max: int = Field(
        50, ge=0, description="restarts after a time limit; preemptions and failed nodes do not count"
    )


class ClusterProfile(Section):
    """What every job on a cluster asks for; options of `submit` of the same name go before it."""

    nodes: int = Field(1, ge=1)
    tasks_per_node: int | None = Field(None, ge=1, description="ranks on a node (default: one for each GPU)")
    gpus_per_node: int = Field(0, ge=0)
    cpus_per_task: int | None = Field(None, ge=1)
    memory: str | None = Field(None, description="for each node, as 64G; 0 is all of it")
    time: str = Field("1:00:00", description="time limit as [DAYS-]HOURS:MINUTES:SECONDS, or minutes")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = Field(None, description="features of the nodes, as SLURM combines them")
    exclude: str | None = Field(None, description="nodes not to use, as gpu[03,07-09]")
    mail: MailSection | None = None
    directives: dict[str, str | int | bool] = Field(
        default_factory=dict,
        description="further options of sbatch by their long names; true for one without value",
    )
    setup: list[str] = Field(
        default_factory=list, description="shell lines that run on the first node before the ranks start"
    )
    srun_args: list[str] = Field(
        default_factory=list, description="further arguments of srun, e.g. of a container"
    )
    python: str | None = Field(
        None, description="command that starts Python on the nodes (default: the one that submits)"
    )
    signal_seconds: int = Field(
        120, ge=30, le=3600, description="how long before the time limit the ranks are told to save"
    )
    gpu: GpuSection = GpuSection()
    restarts: RestartSection = RestartSection()

    @property
    def ranks_per_node(self) -> int:
        """Tasks on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def n_ranks(self) -> int:
        """Tasks of the job."""
        return self.nodes * self.ranks_per_node

    @property
    def minutes(self) -> int:
        """The time limit, rounded up to minutes."""
        return minutes_of(self.time)

    @property
    def memory_mb(self) -> int | None:
        """The memory of a node that is asked for, None for SLURM's default or all of it."""
        found = None if self.memory is None else memory_in_mb(self.memory)
        return found or None

    @field_validator("time", mode="before")
    @classmethod
    def _time_may_be_minutes(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("time")
    @classmethod
    def _time_is_a_limit(cls, value: str) -> str:
        if minutes_of(value) < 1:
            raise ValueError(f"time is {value}; it must be at least a minute")
        return value

    @field_validator("memory", mode="before")
    @classmethod
    def _memory_may_be_a_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("memory")
    @classmethod
    def _memory_is_a_size(cls, value: str | None) -> str | None:
        if value is not None:
            memory_in_mb(value)
        return value

    @field_validator("setup", "srun_args")
    @classmethod
    def _lines_are_single(cls, value: list[str]) -> list[str]:
        if any("\n" in line for line in value):
            raise ValueError("each item must be a single line")
        return value

    @field_validator("directives")
    @classmethod
    def _directives_are_further_ones(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, given in value.items():
            plain = name.lstrip("-").replace("_", "-")
            if plain in _OWN_DIRECTIVES:
                raise ValueError(f"directives.{name} is set by {_OWN_DIRECTIVES[plain]}")
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name) or "\n" in str(given) or given is False:
                raise ValueError(
                    f"directives.{name} must be the long name of an option of sbatch, as exclusive, and its value "
                    "a single line or true"
                )
        return value

    def contradictions(self) -> Iterator[Contradiction]:
        """Each rank has its GPU, and the job some time."""
        if self.gpus_per_node and self.ranks_per_node > self.gpus_per_node:
            yield (
                ("tasks_per_node", "gpus_per_node"),
                f"tasks_per_node is {self.tasks_per_node} and gpus_per_node {self.gpus_per_node}; "
                "a rank uses one GPU, so there must not be more ranks than GPUs",
            )
        if self.minutes * 60 <= self.signal_seconds:
            yield (
                ("time", "signal_seconds"),
                f"time is {self.time}, not more than signal_seconds ({self.signal_seconds} s); "
                "the job would be told to stop as soon as it starts",
            )


def load_profile(path: Path, changes: list[str]) -> ClusterProfile:
    """Read a profile and lay `changes` (KEY=VALUE) over it. Raises ConfigError listing every mistake."""
    if not path.suffix and not path.exists():
        raise ConfigError(f"{path} is not a file; give a cluster profile such as slurm/local_cluster.yaml")
    return load_config(path, changes, ClusterProfile)


def minutes_of(text: str) -> int:
    """Minutes of a time limit as sbatch takes it. Raises ValueError for anything else."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"time is {text!r}; it must be [DAYS-]HOURS:MINUTES:SECONDS or a number of minutes")
    a, b, c = (int(match[name] or 0) for name in "abc")
    if match["days"] is not None:  # D-H, D-H:M, D-H:M:S
        seconds = int(match["days"]) * 86_400 + a * 3600 + b * 60 + c
    elif match["c"] is not None:  # H:M:S
        seconds = a * 3600 + b * 60 + c
    else:  # M, M:S
        seconds = a * 60 + b
    return -(-seconds // 60)


def memory_in_mb(text: str) -> int:
    """Megabytes of a size as sbatch takes it; 0 stays 0. Raises ValueError for anything else."""
    match = _MEMORY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"memory is {text!r}; it must be a number with K, M, G or T, as 64G")
    return int(int(match[1]) * _MEMORY_UNIT[match[2].upper()])
