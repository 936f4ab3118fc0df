"""What a run knows beside its weights, and how it is written and found again."""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ocpgem.checkpoint import MODEL_FILE, save_potential
from ocpgem.errors import CheckpointError, one_line
from ocpgem.files import write_text
from ocpgem.parallel import group
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine

STATE_FILE = "state.pt"


@dataclass
class TrainState:
    """The position of a run; everything else follows from the configuration."""

    step: int = 0
    """Optimiser steps done."""
    drawn: int | None = 0
    """Systems that these steps held, over all ranks; None, in older checkpoints: computed from the step."""
    seconds: float = 0.0
    """Wall time of the run so far, over all restarts."""
    best_metric: float | None = None
    world_size: int = 1


class Checkpoints:
    """The folder `checkpoints/` of a run: one folder a step, and `latest` naming the newest complete one."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, state: TrainState, engine: Engine, ema: ExponentialMovingAverage) -> Path:
        """Write the state of the run; every rank calls it.

        `latest` moves only after every rank has written its part.
        """
        final = self.folder / str(state.step)
        partial = self.folder / f"{state.step}.partial"
        if group.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        group.barrier()
        engine.save(partial)
        if group.is_main():
            content = {"train_state": asdict(state), "ema": ema.state_dict()}
            torch.save(content, partial / STATE_FILE)
            with ema.applied():
                save_potential(engine.potential, partial / MODEL_FILE, {"step": state.step})
        group.barrier()
        if group.is_main():
            for file in partial.iterdir():
                _flush_to_disk(file)
            shutil.rmtree(final, ignore_errors=True)
            partial.replace(final)
            write_text(self.folder / "latest", final.name)
            self._remove_others(state.step)
        group.barrier()
        return final

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        pointer = self.folder / "latest"
        if not pointer.is_file():
            return None
        folder = self.folder / pointer.read_text().strip()
        if not (folder / STATE_FILE).is_file():
            raise CheckpointError(
                f"{pointer} names {folder.name}, but that checkpoint is missing or incomplete"
            )
        return folder

    def check_resumable(self) -> None:
        """Raise CheckpointError if the latest checkpoint is damaged or was written by another number of ranks."""
        folder = self.latest()
        if folder is not None:
            _read_state(folder)

    def load(self, folder: Path, engine: Engine, ema: ExponentialMovingAverage) -> TrainState:
        """Restore engine and moving average; every rank calls it."""
        state, average = _read_state(folder)
        engine.load(folder)
        ema.load_state_dict(average)
        return state

    def _remove_others(self, current: int) -> None:
        """Keep the newest checkpoints up to `current`; remove the rest, what was never finished, and later ones."""
        for folder in self.folder.glob("*.partial"):
            shutil.rmtree(folder, ignore_errors=True)
        steps = sorted(int(folder.name) for folder in self.folder.iterdir() if folder.name.isdigit())
        earlier = [step for step in steps if step <= current]
        for step in set(steps) - set(earlier[-self._keep :]):
            shutil.rmtree(self.folder / str(step))


def _read_state(folder: Path) -> tuple[TrainState, dict[str, Tensor]]:
    """The state and the averaged weights in a checkpoint."""
    file = folder / STATE_FILE
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        state, average = TrainState(**({"drawn": None} | content["train_state"])), content["ema"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError(f"{file} cannot be read: {one_line(error)}") from error
    if state.world_size != group.world_size():
        raise CheckpointError(
            f"{folder} was written by {_ranks(state.world_size)} and this run has {group.world_size()}; "
            f"resume it with --nproc {state.world_size}"
        )
    return state, average


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def _flush_to_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
