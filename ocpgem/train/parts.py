"""What the parts of the training loop work with."""

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import TrainLoader
from ocpgem.evaluate.predict import Effort
from ocpgem.models.potential import Potential
from ocpgem.parallel.signals import StopRequest
from ocpgem.parallel.watchdog import Watchdog
from ocpgem.train.callbacks import Callback
from ocpgem.train.config import TrainConfig
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine
from ocpgem.train.run_directory import RunDirectory
from ocpgem.train.schedule import Plateau, learning_rate

log = logging.getLogger("ocpgem")


@dataclass
class TrainSummary:
    """How a call of the training loop ended."""

    steps_done: int
    stopped_by: signal.Signals | None = None
    """The signal that ended it early, if any."""
    checkpoint: Path | None = None
    """Where the state after the last step is."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """The last validation, by split."""


@dataclass
class RunParts:
    """Everything the loop works with, made by `ocpgem.train.run`."""

    config: TrainConfig
    potential: Potential
    engine: Engine
    ema: ExponentialMovingAverage
    loader: TrainLoader
    val_sets: dict[str, Dataset]
    effort: Effort
    run: RunDirectory
    console: Console
    device: torch.device
    stop: StopRequest
    watchdog: Watchdog
    plateau: Plateau
    callbacks: Sequence[Callback] = ()
    """On rank 0; nothing is told to those of other ranks."""

    def learning_rate(self, step: int, n_steps: int | None = None) -> float:
        """Of optimiser step `step` (from 0), in a run of `n_steps` if that is not the configuration's number."""
        n_steps = self.config.steps if n_steps is None else n_steps
        return learning_rate(self.config.optim, step, n_steps) * self.plateau.factor

    def say(self, text: str) -> None:
        """A line on the terminal of rank 0, also kept in the log."""
        log.info(text)
        self.console.print(text, highlight=False, soft_wrap=True)
