"""The command line. Each command imports what it needs when it runs, so that `--help` is immediate."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ocpgem import __version__
from ocpgem.commands import (
    cluster,
    comparison,
    data,
    evaluation,
    information,
    leaderboard,
    relaxation,
    released,
    training,
)
from ocpgem.errors import INTERRUPTED, OcpgemError, RequestError

Command = Callable[[argparse.Namespace], int]


def run() -> NoReturn:
    """Run the command of this process's arguments and end the process with its exit code.

    One of several ranks ends at once, without the interpreter's own shutdown: there, with torch 2.13, rank 1 aborted
    ("terminate called without an active exception", exit code 134) in 4 of 12 runs of a two-rank test whose work was
    done. What does it is not known; 6 runs that ended this way did not abort. Everything written is closed by then.
    """
    code = main()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done, 1 the work failed, 2 the request was wrong, 75 stopped in good order by the system and to be started again,
    130 stopped by the user.
    """
    arguments = _without_local_rank(list(sys.argv[1:] if argv is None else argv))
    args = _parse(arguments)
    try:
        nproc = getattr(args, "nproc", 1)
        if nproc != 1 and "RANK" not in os.environ and not getattr(args, "dry_run", False):
            from ocpgem.launch.local import run_local

            return run_local(_without_nproc(arguments), nproc)
        if hasattr(args, "nproc") and "SLURM_JOB_ID" in os.environ:
            from ocpgem.launch.rank_environment import adopt_slurm_ranks

            adopt_slurm_ranks(os.environ)
        command: Command = args.command
        return command(args)
    except OcpgemError as error:
        _report(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a path that may not be read or written, a full disk
        if error.strerror is None:
            raise
        _report(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        return OcpgemError.exit_code


def _report(error: str) -> None:
    """Print an error: rank 0 for all, and under SLURM, where nobody collects what a rank says, every rank."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        print(f"error: {error}", file=sys.stderr)
    elif "SLURM_JOB_ID" in os.environ:
        print(f"[rank {rank}] error: {error}", file=sys.stderr)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; overrides (KEY=VALUE) may also stand behind options."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if hasattr(args, "rest"):  # options of the command that a job is to run
        args.rest = rest
        return args
    unknown = [item for item in rest if item.startswith("-") or "=" not in item]
    if rest and (unknown or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, as every other error is reported."""

    def error(self, message: str) -> NoReturn:
        self.exit(RequestError.exit_code, f"error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="main.py", description="Train, evaluate and use GemNet potentials at Open Catalyst scale."
    )
    parser.add_argument("--version", action="version", version=f"ocpgem {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (
        training,
        evaluation,
        relaxation,
        leaderboard,
        data,
        released,
        cluster,
        comparison,
        information,
    ):
        group.add_commands(commands)
    return parser


def _without_local_rank(arguments: list[str]) -> list[str]:
    """Drop what the deepspeed launcher adds to the command; LOCAL_RANK says the same."""
    if "LOCAL_RANK" not in os.environ:
        return arguments
    return [argument for argument in arguments if not argument.startswith("--local_rank=")]


def _without_nproc(arguments: list[str]) -> list[str]:
    kept = [argument for argument in arguments if not argument.startswith("--nproc=")]
    if "--nproc" in kept:
        place = kept.index("--nproc")
        del kept[place : place + 2]
    return kept
