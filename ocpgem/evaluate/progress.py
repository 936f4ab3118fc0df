"""A progress bar that counts systems, and lines in a log in its place where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocpgem.parallel import group

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Ticker = Callable[[int], None]
_FIRST_LINE, _MOST_SECONDS = 2.0, 120.0


@contextmanager
def systems_progress(progress: "bool | Progress", label: str, total: int) -> Iterator[Ticker]:
    """Yield a function to call with the number of systems this rank has finished; rank 0 shows the bar.

    progress: False for none, True for an own display, or the display that the caller already runs, where a
        line is added for the time being. The other ranks are assumed to be as fast as rank 0. Where an own display is
        no terminal but a log, it gets a line after 2, 4, 8 s and so on, at least every 2 minutes.
    """
    if progress is False or not group.is_main():
        yield _ignore
        return
    own = _display() if progress is True else None
    display = own or progress
    assert not isinstance(display, bool), "a display is at hand"
    task = display.add_task(label, total=total, status="")
    if own:
        own.start()
    lines = _Lines(own.console, label, total) if own and not own.console.is_terminal else None
    done = 0

    def advance(n_systems: int) -> None:
        nonlocal done
        done = min(total, done + n_systems * group.world_size())
        elapsed = display.tasks[display.task_ids.index(task)].elapsed or 0.0
        speed = f"{done / elapsed:.1f} systems/s" if elapsed > 0 else ""
        display.update(task, completed=done, status=speed)
        if lines is not None:
            lines.tell(done)

    try:
        yield advance
    finally:
        if own:
            own.stop()
        else:
            display.remove_task(task)


class _Lines:
    """Tells in a log how far the work is."""

    def __init__(self, console: "Console", label: str, total: int) -> None:
        self._console, self._label, self._total = console, label, total
        self._begin = time.monotonic()
        self._next = _FIRST_LINE

    def tell(self, done: int) -> None:
        """Write a line if it is time to."""
        seconds = time.monotonic() - self._begin
        if seconds < self._next:
            return
        self._next = seconds + min(seconds, _MOST_SECONDS)
        text = f"{self._label}: {done} of {self._total} systems, {done / seconds:.1f} systems/s"
        self._console.print(text, soft_wrap=True)


def _display() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)  # results go to standard output, which may be a file
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,  # a job's log gets no bar
    )


def _ignore(n_systems: int) -> None:
    """Take note of nothing."""
