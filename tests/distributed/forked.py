"""`main.py ... --nproc N` with processes forked from this one instead of started anew.

Everything else is as a user has it: the launcher, the ranks, the signals. Only the loading of torch and DeepSpeed, six
seconds of work a rank, is done once, so that many runs can be killed in a short time. The `fault` of a run patches
what a rank executes, before it begins.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ocpgem.launch import local

Fault = Callable[[int], None]
"""Called in each rank, with its number, before it begins."""


def preload() -> None:
    """Import what ranks need."""
    assert os.environ.get("OMP_NUM_THREADS") == "1", "a forked process cannot use its parent's threads"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # as ocpgem.train.engine chooses it
    import deepspeed  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import ocpgem.commands.output
    import ocpgem.train.run  # noqa: F401


class Forked:
    """A child process, with the part of subprocess.Popen that the launcher uses."""

    def __init__(self, work: Callable[[], int]) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        limit = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"process {self.pid} does not end")
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


@dataclass
class ForkedRun:
    """A run under way: its launcher and what it says."""

    launcher: Forked
    out: Path
    err: Path

    def finish(self, timeout: float) -> int:
        return self.launcher.wait(timeout)

    def ranks(self) -> list[int]:
        """The processes of the ranks, in order; fewer while they start."""
        found = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        try:
            return sorted(int(pid) for pid in found.read_text().split())
        except OSError:
            return []


def start(arguments: Sequence[object], folder: Path, fault: Fault | None = None) -> ForkedRun:
    """Start the command line with `arguments`; what it says goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = ForkedRun(Forked.__new__(Forked), folder / "out", folder / "err")

    def work() -> int:
        _redirect(run.out, run.err)
        local._start = _starter(fault)  # type: ignore[assignment]
        return _command_line([str(argument) for argument in arguments])

    run.launcher.__init__(work)  # type: ignore[misc]
    return run


def _starter(fault: Fault | None) -> Callable[..., Any]:
    def start_rank(command: list[str], number: int, nproc: int, port: int) -> Any:
        import tempfile

        errors = tempfile.TemporaryFile() if number > 0 else None  # noqa: SIM115

        def work() -> int:
            os.environ |= {
                "RANK": str(number),
                "WORLD_SIZE": str(nproc),
                "LOCAL_RANK": str(number),
                "LOCAL_WORLD_SIZE": str(nproc),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            if errors is not None:
                _redirect(Path(os.devnull), errors.fileno())
            if fault is not None:
                fault(number)
            return _command_line(command[2:])

        return local._Rank(number, Forked(work), errors)  # type: ignore[arg-type]

    return start_rank


def _become(work: Callable[[], int]) -> NoReturn:
    """The life of a forked process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # as local._end_with_parent
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command_line(arguments: list[str]) -> int:
    from ocpgem.cli import main

    sys.argv = ["main.py", *arguments]
    return main(arguments)


def _redirect(out: Path, err: Path | int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(err if isinstance(err, int) else os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
