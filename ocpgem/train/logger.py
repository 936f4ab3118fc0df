"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and the terminal."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from ocpgem.train.run_directory import RunDirectory

log = logging.getLogger("ocpgem")


class MetricLogger:
    """Writes records of numbers; a record is one line of metrics.jsonl and one point per number in TensorBoard."""

    def __init__(self, run: RunDirectory, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        run.forget_metrics_after(first_step)
        self._file = run.metrics_file.open("a")
        self._tensorboard = SummaryWriter(str(run.path / "tensorboard"), purge_step=first_step + 1)

    def write(self, kind: str, step: int, numbers: dict[str, float], **labels: Any) -> None:
        """`labels` (split, epoch, seconds) describe the record; `numbers` are plotted."""
        self._file.write(json.dumps({"kind": kind, "step": step, **labels, **numbers}) + "\n")
        self._file.flush()
        prefix = f"{kind}/{labels['split']}" if "split" in labels else kind
        for name, value in numbers.items():
            self._tensorboard.add_scalar(f"{prefix}/{name}", value, step)

    def histograms(self, step: int, weights: dict[str, Tensor]) -> None:
        """The distribution of the values of each parameter, in TensorBoard."""
        for name, values in weights.items():
            self._tensorboard.add_histogram(name.removeprefix("model.").replace(".", "/"), values, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()


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
