"""What a run knows beside its weights, and how it is written and found again."""

import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ocpgem.checkpoint import MODEL_FILE, model_content
from ocpgem.errors import CheckpointError, one_line
from ocpgem.models.import_weights.safe_load import why_not_read
from ocpgem.parallel import group
from ocpgem.train.checkpoint_files import CheckpointFolder, Retention, step_name, verify
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine, EngineState
from ocpgem.train.engine_state import OptimizerState
from ocpgem.train.random_state import random_state, set_random_state

STATE_FILE = "state.pt"
_FORMAT, _VERSION = "ocpgem-state", 1

log = logging.getLogger("ocpgem")


@dataclass
class TrainState:
    """The position of a run; everything else follows from the configuration."""

    step: int = 0
    """Optimiser steps done, those that were skipped included."""
    drawn: int = 0
    """Systems that these steps held, over all ranks: the position in the data."""
    seconds: float = 0.0
    """Wall time of the run so far, over all restarts."""
    best_metric: float | None = None
    best_step: int | None = None
    world_size: int = 1
    n_steps: int | None = None
    """The `steps` of the configuration, on which a schedule may depend."""
    lr: float | None = None
    """The `optim.lr` of the configuration."""
    skipped: int = 0
    """Steps left out because their loss was not finite."""
    plateau: dict[str, float] = field(default_factory=dict)
    """What `ocpgem.train.schedule.Plateau` goes on from."""
    pending_validation: float | None = None
    """The epoch of a validation that a signal cut short and that comes first when the run goes on."""


class Checkpoints:
    """Writes the state of a run and finds it again.

    A checkpoint holds no trace of the number of ranks or the ZeRO stage: it can be resumed with any. It is written by
    rank 0, in the background, from a copy.
    """

    def __init__(self, folder: Path, retention: Retention) -> None:
        self.folder = folder
        self._files = CheckpointFolder(folder)
        self._retention = retention
        self._writing: threading.Thread | None = None
        self._problem: CheckpointError | None = None
        self._last_good: Path | None = None
        self._damaged: set[Path] = set()

    def find(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, None where there is none; and a sentence for each damaged one before it.

        Raises CheckpointError where there are checkpoints but none can be used. Only rank 0 need ask.
        """
        complaints = []
        candidates, named = self._files.candidates(), self._files.named()
        if named and not any(step_name(folder) == named for folder in candidates):
            complaints.append(f"{self.folder / named}, the newest checkpoint, is missing")
        for folder in candidates:
            try:
                verify(folder)
                _read(folder)
            except CheckpointError as error:
                self._damaged.add(folder)
                complaints.append(f"{folder} is damaged: {error}")
                continue
            self._last_good = folder
            return folder, complaints
        if complaints:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used ({'; '.join(complaints)}); "
                "remove the folder to begin anew, or choose another --run-dir"
            )
        return None, []

    def take(self, found: Path | None) -> Path | None:
        """What `find` has found, under its own name where a kill left it aside. Only rank 0, in a folder of its own."""
        if found is not None:
            found = self._last_good = self._files.restored(found)
        return found

    def load(self, folder: Path, engine: Engine, ema: ExponentialMovingAverage) -> TrainState:
        """Restore engine, moving average and random numbers; every rank calls it.

        Raises CheckpointError, on every rank, where one cannot.
        """
        try:
            content = group.on_all(lambda: _read(folder))
            optimizer = OptimizerState(content["optimizer"]["moments"], content["optimizer"]["numbers"])
            engine.load_state(EngineState(content["weights"], optimizer))
        except CheckpointError as error:
            raise CheckpointError(f"{folder} cannot be resumed from: {error}") from error
        ema.load_state_dict(content["ema"])
        generators = content["random"]
        set_random_state(generators[group.rank() % len(generators)])
        state = TrainState(**content["train_state"])
        state.world_size = group.world_size()
        return state

    def save(
        self,
        state: TrainState,
        engine: Engine,
        ema: ExponentialMovingAverage,
        tick: Callable[[], None] | None = None,
    ) -> None:
        """Begin to write the state of the run; every rank calls it. `finish` waits for the end.

        Waits for the checkpoint before, if that is still being written, calling `tick` every second.
        """
        engine_state = engine.state()
        generators = group.gather_objects(random_state())
        averaged = ema.state_dict()
        if not group.is_main():
            return
        self.finish(tick)
        average = {name: value.detach().cpu().clone() for name, value in averaged.items()}
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "train_state": asdict(state),
            "weights": engine_state.weights,
            "ema": average,
            "optimizer": asdict(engine_state.optimizer),
            "random": generators,
        }
        model = model_content(engine.potential, engine_state.weights | average, {"step": state.step})
        self._writing = threading.Thread(
            target=self._write, args=(state.step, state.best_step, content, model), name="checkpoint"
        )
        self._writing.start()

    def finish(self, tick: Callable[[], None] | None = None) -> None:
        """Wait until what `save` began is written, calling `tick` every second."""
        while self._writing is not None:
            self._writing.join(1.0)
            if not self._writing.is_alive():
                self._writing = None
            if tick is not None:
                tick()

    def problem(self) -> CheckpointError | None:
        """Why the last checkpoint could not be written, once; None while it is being written or if it was."""
        found, self._problem = self._problem, None
        return found

    @property
    def last_good(self) -> Path | None:
        """The newest checkpoint known to be whole (on rank 0)."""
        return self._last_good

    def _write(
        self, step: int, best_step: int | None, content: dict[str, Any], model: dict[str, Any]
    ) -> None:
        """In the background: write, then remove what need not stay."""
        try:
            self._last_good = self._files.write(
                step,
                {
                    STATE_FILE: lambda file: torch.save(content, file),
                    MODEL_FILE: lambda file: torch.save(model, file),
                },
            )
        except Exception as error:  # whatever stops it, the run goes on and the loop tells
            reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
            safe = f"the last good one is {self._last_good}" if self._last_good else "there is none before it"
            self._problem = CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder} ({reason}); {safe}"
            )
            return
        log.info("saved %s", self._last_good)
        try:
            self._files.prune(step, self._retention, best_step, self._damaged)
        except OSError as error:
            log.warning("old checkpoints in %s could not be removed: %s", self.folder, error)


def _read(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint; only tensors and plain values are ever constructed."""
    file = folder / STATE_FILE
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise CheckpointError(f"{STATE_FILE} {why_not_read(error, 'checkpoint')}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"{STATE_FILE} does not hold the state of a run")
    if content.get("version") != _VERSION:
        raise CheckpointError(
            f"{STATE_FILE} has version {content.get('version')}, but this program reads {_VERSION}"
        )
    return content
