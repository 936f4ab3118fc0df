"""Runs that a test watches and disturbs: waiting for events, finding ranks, looking for leftovers."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tiny_runs import clean_environment, command

PATIENCE = 200.0
"""Seconds an event may take on a loaded machine."""


@contextmanager
def started(words: list[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, killed at the end together with everything it started."""
    process = subprocess.Popen(
        words,
        env=clean_environment() | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        pids = descendants(process.pid)
        process.kill()
        process.communicate()
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def training(config: Path, run: Path, nproc: int, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """`main.py train` under way."""
    with started(command("train", config, *overrides, "--run-dir", run, "--nproc", nproc)) as process:
        yield process


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a process."""
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(event: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once `event` is true; fail if the process ends before, or nothing happens for long."""
    limit = time.monotonic() + PATIENCE
    while not event():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "the event did not come"
        time.sleep(0.005)


def has_lines(file: Path, number: int) -> bool:
    return file.is_file() and file.read_bytes().count(b"\n") >= number


def rank_pid(launcher: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank that the local launcher has started."""
    wanted = f"RANK={rank}".encode()
    for pid in children(launcher.pid):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables:
            return pid
    raise AssertionError(f"rank {rank} does not run")


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still exist, also as zombies."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it has just ended
        return []
    found: list[int] = []
    for task in tasks:
        try:
            found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process exists, also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)
