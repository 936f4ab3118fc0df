"""What several commands print."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def make_console() -> "Console":
    """Return a console for standard output; a file or a pipe gets lines of 120 columns."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)  # a file or a pipe has no width to keep to


def print_metrics(results: dict[str, dict[str, float]], title: str) -> None:
    """Print a table of the metrics by split."""
    if not results:
        return
    from ocpgem.evaluate.tables import metrics_table

    make_console().print(metrics_table(results, title))


@contextmanager
def download_progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function to call with the bytes that are here and their final number.

    A terminal shows a bar, a file gets a line a minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_a_minute(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as display:
        task = display.add_task(name, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _line_a_minute(name: str) -> Callable[[int, int | None], None]:
    last = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= 60:
            last = time.monotonic()
            of = "" if total is None else f" of {total / 1e6:.0f}"
            print(f"{name}: {done / 1e6:.0f}{of} MB", file=sys.stderr, flush=True)

    return show
