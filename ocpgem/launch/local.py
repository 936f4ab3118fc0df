"""Several processes of the command line on this machine, without any launcher to install."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ocpgem.errors import INTERRUPTED, REQUEUE, RequestError

MAIN_PROGRAM = Path(__file__).resolve().parents[2] / "main.py"
_POLL_SECONDS = 0.05
_REPEAT_SECONDS = (
    2.0  # `timeout` and some schedulers send a signal twice at once; only a later one is a second request
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_STOPPED, _FAILED = 1, 2
_TAIL_LINES = 30
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Patience:
    """Seconds the other ranks get after one ended: to end alone, then to follow SIGTERM before SIGKILL."""

    to_end_alone: float = 10.0
    """After one failed."""
    to_stop_too: float = 60.0
    """After one stopped in good order."""
    to_terminate: float = 10.0


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None  # where the standard error of a rank other than 0 is kept
    stopped_by_us: bool = False

    def code(self) -> int | None:
        """The exit code as a shell would show it, None while it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int, to_children: bool = False) -> None:
        if self.process.poll() is not None:
            return
        try:
            if to_children:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass


@dataclass
class _Requests:
    """The signals that arrived and were not yet passed on."""

    pending: list[int] = field(default_factory=list)
    passed_on: dict[int, float] = field(default_factory=dict)
    """When each signal was passed on."""

    def arrived(self, number: int, _frame: object) -> None:
        self.pending.append(number)


def run_local(
    argv: Sequence[str], nproc: int, program: Sequence[str] | None = None, patience: Patience | None = None
) -> int:
    """Run `python main.py *argv` as `nproc` ranks on this machine and return the worst exit code.

    Each rank gets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT and its share of the cores in
    OMP_NUM_THREADS (a value already set is kept). Only rank 0 writes to the terminal; when another rank is
    the first to fail, the end of its standard error is shown. SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 are
    passed to every rank once; SIGINT or SIGTERM again, 2 s later or more, kills them. When a rank ends, the
    others are ended within the time that `patience` grants. Ranks end with this process, even if it is killed.

    program: the command in place of `python main.py`. Raises RequestError for `nproc` below 1.
    """
    if nproc < 1:
        raise RequestError(f"--nproc is {nproc}; it must be at least 1")
    command = [*(program or (sys.executable, str(MAIN_PROGRAM))), *argv]
    ranks: list[_Rank] = []  # filled one by one, so that all that started are ended if one cannot start
    with _reserved_port() as port, _catch_signals() as requests:
        try:
            for number in range(nproc):
                ranks.append(_start(command, number, nproc, port))  # noqa: PERF401
            first_failed = _watch(ranks, requests, patience or Patience())
            if first_failed is not None:
                _show_errors(first_failed, ranks[0])
            return _worst_code(ranks)
        finally:
            for each in ranks:
                each.send(signal.SIGKILL, to_children=True)
                each.process.wait()
                if each.errors:
                    each.errors.close()


def _start(command: list[str], number: int, nproc: int, port: int) -> _Rank:
    environ = os.environ | {
        "RANK": str(number),
        "WORLD_SIZE": str(nproc),
        "LOCAL_RANK": str(number),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    environ.setdefault("OMP_NUM_THREADS", str(max(1, _available_cores() // nproc)))
    errors = tempfile.TemporaryFile() if number > 0 else None  # noqa: SIM115 - closed in run_local
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=None if number == 0 else subprocess.DEVNULL,
        stderr=errors,
        process_group=0,  # Ctrl-C reaches only this process, which passes it on: no rank sees it twice
        preexec_fn=_end_with_parent(),  # noqa: PLW1509 - it only makes two system calls
    )
    return _Rank(number, process, errors)


def _watch(ranks: list[_Rank], requests: _Requests, patience: Patience) -> _Rank | None:
    """Wait for all ranks, passing signals on; end them when one fails. Returns the first to fail, if any."""
    first: _Rank | None = None
    ended_at = 0.0
    while any(each.code() is None for each in ranks):
        _pass_on(ranks, requests)
        now = time.monotonic()
        failed = _first_with(_FAILED, ranks)
        if first is None or (failed is not None and _gravity(first.code()) < _FAILED):
            first = failed or _first_with(_STOPPED, ranks)
            ended_at = now
        else:
            late = now - ended_at - (patience.to_end_alone if failed else patience.to_stop_too)
            if late > 0:
                _stop(ranks, signal.SIGKILL if late > patience.to_terminate else signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
    return first if first is not None and _gravity(first.code()) == _FAILED else _first_with(_FAILED, ranks)


def _first_with(gravity: int, ranks: list[_Rank]) -> _Rank | None:
    return next((each for each in ranks if _gravity(each.code()) == gravity), None)


def _stop(ranks: list[_Rank], number: signal.Signals) -> None:
    for each in ranks:
        if each.code() is None and (number is signal.SIGKILL or not each.stopped_by_us):
            each.stopped_by_us = True
            each.send(number, to_children=number is signal.SIGKILL)


def _pass_on(ranks: list[_Rank], requests: _Requests) -> None:
    """Pass each signal on once; the same SIGINT or SIGTERM again means that somebody has lost patience."""
    while requests.pending:
        number = requests.pending.pop(0)
        now = time.monotonic()
        if number not in requests.passed_on:
            requests.passed_on[number] = now
            for each in ranks:
                each.send(number)
        elif number in (signal.SIGINT, signal.SIGTERM) and now - requests.passed_on[number] > _REPEAT_SECONDS:
            _stop(ranks, signal.SIGKILL)


def _worst_code(ranks: list[_Rank]) -> int:
    """The gravest exit code; those of ranks that we ended count only where no rank failed by itself."""
    own = [each.code() or 0 for each in ranks if not each.stopped_by_us]
    every = [each.code() or 0 for each in ranks]
    return max(own if any(own) else every, key=lambda code: (_gravity(code), code))


def _gravity(code: int | None) -> int:
    """A failure outweighs an orderly stop, and that an end without anything to say."""
    if not code:
        return 0
    return _STOPPED if code in (REQUEUE, INTERRUPTED) else _FAILED


def _show_errors(failed: _Rank, main: _Rank) -> None:
    """Say how the first rank failed, unless rank 0 has said it; with the end of what it wrote, if rank 0 did not."""
    if main.code() == RequestError.exit_code or failed.stopped_by_us:
        return  # rank 0 has said the same of a wrong request; what we ended ourselves did not fail
    lines: list[str] = []
    if failed.errors is not None:
        failed.errors.seek(0)
        lines = failed.errors.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    number = -(failed.process.poll() or 0)
    if number > 0:
        name = signal.Signals(number).name
        hint = " (often because memory ran out)" if number == signal.SIGKILL else ""
        sys.stderr.write(
            f"rank {failed.number} was ended by {name}{hint}; the other ranks were ended as well\n"
        )
    elif failed.number == 0 or (not lines and main.code() == failed.code()):
        return  # rank 0 has given the reason
    else:
        sys.stderr.write(f"Rank {failed.number} failed first, with exit code {failed.code()}:\n")
    sys.stderr.writelines(f"[rank {failed.number}] {line}\n" for line in lines)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that no other run on this machine is given while this one lasts.

    The socket stays bound without listening: with SO_REUSEADDR rank 0 can still listen there, and the kernel
    hands it to nobody else.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


@contextmanager
def _catch_signals() -> Iterator[_Requests]:
    requests = _Requests()
    before = {number: signal.signal(number, requests.arrived) for number in _SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> Callable[[], None] | None:
    """What a child runs before it starts: ask the kernel for SIGTERM when the parent dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here, so that nothing is loaded between fork and exec
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return ask


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
