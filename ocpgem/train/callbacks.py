"""What a run tells others: numbers, distributions and figures, to any number of callbacks."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """What was measured at a step.

    kind: train or val; labels describe the record (split, epoch, seconds), values are to be plotted.
    """

    kind: str
    step: int
    values: dict[str, float]
    labels: dict[str, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What the names of the values begin with, such as `train` or `val/val_id`."""
        return f"{self.kind}/{self.labels['split']}" if "split" in self.labels else self.kind


class Callback:
    """Told what happens in a run, on rank 0; a subclass overrides what it wants to know.

    A file that cannot be written (OSError) is told once and the run goes on; any other error of a callback ends the
    run as one of the training itself would.
    """

    what = "the output of a callback"
    """What a message calls that which it writes."""

    def started(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """The run in this folder goes on after `step` (0: begins) with this configuration."""

    def numbers(self, numbers: Numbers) -> None:
        """Something was measured."""

    def histograms(self, step: int, weights: dict[str, Tensor]) -> None:
        """The averaged weights, by name, where the configuration asks for their distributions."""

    def figure(self, step: int, name: str, png: bytes) -> None:
        """A figure was drawn, such as `parity/val_id`."""

    def ended(self, step: int) -> None:
        """The run ends, after this step, for whatever reason."""


class Callbacks:
    """Several callbacks, each told everything; what one cannot write keeps nothing from the others."""

    def __init__(
        self, callbacks: Sequence[Callback], guarded: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        """guarded: a context in which an OSError is told and suppressed."""
        self._waiting, self._started = list(callbacks), list[Callback]()
        self._guarded = guarded

    def start(self, run_path: Path, step: int, settings: dict[str, Any]) -> None:
        """Let every callback begin; one that cannot write is told nothing later."""
        for callback in self._waiting:
            with self._guarded(callback.what):
                callback.started(run_path, step, settings)
                self._started.append(callback)

    def tell(self, what: Callable[[Callback], None]) -> None:
        """Call every callback that has begun."""
        for callback in self._started:
            with self._guarded(callback.what):
                what(callback)
