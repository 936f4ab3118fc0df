"""What submitit starts on every rank: the command line itself, in place of submitit's own process."""

import os
import sys
from collections.abc import Sequence


def start_rank(main_program: str, argv: Sequence[str]) -> None:
    """Become `python main.py *argv`.

    Signals, exit code and output are then those of the command, as under a plain srun; submitit's own handling of
    preemption, which would requeue from one rank and count a preemption as a time-out, does not come into it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-u", main_program, *argv])
