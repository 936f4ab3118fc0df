"""What went wrong in a run and what was done about it: kept in a file, told in a sentence."""

import json
import time
import traceback
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch

from ocpgem.errors import OcpgemError, one_line

FAULTS_FILE = "faults.jsonl"


class Trouble(IntEnum):
    """Why a rank could not do its part of a step; where ranks differ, the largest decides."""

    NONE = 0
    NOT_FINITE = 1
    OUT_OF_MEMORY = 2
    FAILED = 3


@dataclass
class Report:
    """What one rank has to say about its part of a step."""

    rank: int
    trouble: Trouble = Trouble.NONE
    text: str = ""
    systems: list[dict[str, Any]] = field(default_factory=list)
    """The records at fault: `record` says where each comes from."""
    trace: str = ""
    divisible: bool = True
    """Whether its micro-batches can be split (out of memory)."""
    error: OcpgemError | None = None


def report_of(rank: int, error: Exception, doing: str) -> Report:
    """The report of a rank whose work raised."""
    if is_out_of_memory(error):
        return Report(rank, Trouble.OUT_OF_MEMORY, doing)
    own = error if isinstance(error, OcpgemError) else None
    return Report(rank, Trouble.FAILED, one_line(error), trace=traceback.format_exc(), error=own)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left; torch raises a plain RuntimeError on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "bad_alloc" in str(error))
    )


class FaultFile:
    """`faults.jsonl` of a run: one line for everything that went wrong, written by rank 0."""

    def __init__(self, run: Path) -> None:
        self.path = run / FAULTS_FILE

    def add(self, step: int, done: str, reports: list[Report]) -> str:
        """Append the reports of the ranks in trouble; returns where they are, in words for a sentence."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        lines = []
        for report in reports:
            content = asdict(report) | {"trouble": report.trouble.name.lower()}
            del content["error"], content["divisible"]
            lines.append(json.dumps({"time": when, "step": step, "done": done, **content}) + "\n")
        try:
            with self.path.open("a") as file:
                file.writelines(lines)
        except OSError as error:
            return f"which {self.path} could not take: {error.strerror}"
        return f"details in {self.path}"
