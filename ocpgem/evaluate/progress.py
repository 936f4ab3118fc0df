"""A progress bar that counts systems."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ocpgem.parallel import group

if TYPE_CHECKING:
    from rich.progress import Progress

Ticker = Callable[[int], None]


@contextmanager
def systems_progress(progress: "bool | Progress", label: str, total: int) -> Iterator[Ticker]:
    """Yield a function to call with the number of systems this rank has finished; rank 0 shows the bar.

    progress: False for none, True for an own display, or the display that the caller already runs, where a
        line is added for the time being. The other ranks are assumed to be as fast as rank 0.
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
    done = 0

    def advance(n_systems: int) -> None:
        nonlocal done
        done = min(total, done + n_systems * group.world_size())
        elapsed = display.tasks[display.task_ids.index(task)].elapsed or 0.0
        speed = f"{done / elapsed:.1f} systems/s" if elapsed > 0 else ""
        display.update(task, completed=done, status=speed)

    try:
        yield advance
    finally:
        if own:
            own.stop()
        else:
            display.remove_task(task)


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
