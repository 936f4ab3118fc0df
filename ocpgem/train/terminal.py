"""What a run shows on the terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

log = logging.getLogger("ocpgem")


class TrainingProgress:
    """A progress bar on a terminal; elsewhere (a job's log) a line whenever numbers arrive."""

    def __init__(self, n_steps: int, first_step: int, console: Console) -> None:
        self._console = console
        self._n_steps = n_steps
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=n_steps, completed=first_step, status="")

    @property
    def display(self) -> Progress | Literal[False]:
        """Where other work may show a bar of its own meanwhile; False off a terminal."""
        return self._bar if self._console.is_terminal else False

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._bar:
            yield

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def numbers(self, step: int, text: str, seconds_left: float) -> None:
        """Show the latest numbers."""
        self._bar.update(self._task, status=text)
        line = f"step {step}/{self._n_steps}  {text}  {_duration(seconds_left)} left"
        log.info(line)
        if not self._console.is_terminal:
            self._console.print(line, highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """A line above the bar, also kept in the log."""
        log.info(text)
        self._console.print(text, highlight=False, soft_wrap=True)


def make_console() -> Console:
    """The console of a run, quiet on all ranks but the first."""
    from ocpgem.parallel import group

    return Console(file=sys.stdout, quiet=not group.is_main())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
