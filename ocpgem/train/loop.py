"""The training loop: steps, validation at intervals, checkpoints, and an orderly end on a signal."""

import dataclasses
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ocpgem.checkpoint import MODEL_FILE, save_potential
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import StepBatch, TrainLoader
from ocpgem.errors import CheckpointError, OcpgemError, TrainingError
from ocpgem.evaluate.predict import Effort, evaluate
from ocpgem.files import write_text
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Potential
from ocpgem.parallel import group
from ocpgem.train.config import TrainConfig
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine
from ocpgem.train.logger import MetricLogger, TrainingProgress
from ocpgem.train.loss import GlobalCounts, loss_share, require_labels
from ocpgem.train.run_directory import RunDirectory
from ocpgem.train.schedule import learning_rate
from ocpgem.train.signals import StopRequest
from ocpgem.train.state import Checkpoints, TrainState

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


class TrainingLoop:
    """Runs a run from its latest checkpoint, or its beginning, to its last step."""

    def __init__(self, parts: RunParts, checkpoints: Checkpoints, start: Path | None) -> None:
        """`start`: the checkpoint to go on from."""
        self._parts = parts
        self._config = parts.config
        self._checkpoints = checkpoints
        self._start = start
        self._checkpoint: Path | None = None
        self._state = TrainState(world_size=group.world_size())
        self._stopped_by: signal.Signals | None = None
        self._metrics: dict[str, dict[str, float]] = {}
        self._saved_step = -1

    def run(self) -> TrainSummary:
        """Train; every rank calls it and returns the same summary.

        SIGINT, SIGTERM, SIGUSR1 and SIGUSR2, to any rank, end it after the current step with a checkpoint. Raises
        TrainingError when the loss is not finite.
        """
        parts, config = self._parts, self._config
        self._resume()
        self._logger = MetricLogger(parts.run, self._state.step) if group.is_main() else None
        self._progress = TrainingProgress(config.steps, self._state.step, parts.console)
        self._clock = time.monotonic() - self._state.seconds
        parts.stop.wait_for_steps()
        with self._progress.shown():
            try:
                self._train()
            except OcpgemError as error:
                if group.is_main():
                    log.error("%s", error)
                raise
            finally:
                if self._logger is not None:
                    self._logger.close()
        return TrainSummary(self._state.step, self._stopped_by, self._checkpoint, self._metrics)

    def _resume(self) -> None:
        if self._start is None:
            return
        self._state = self._checkpoints.load(self._start, self._parts.engine, self._parts.ema)
        self._saved_step = self._state.step
        self._say(f"resuming from {self._start} (step {self._state.step})")
        before, now = self._state.n_steps, self._config.steps
        if before is not None and before != now and self._state.step < now:
            rates = [
                learning_rate(self._config.optim, min(self._state.step, n - 1), n) for n in (before, now)
            ]
            self._say(
                f"steps was {before} and is {now}: what depends on it follows the new number from here on; "
                f"the learning rate of the next step is {rates[1]:.3g} instead of {rates[0]:.3g}"
            )

    def _say(self, text: str) -> None:
        log.info(text)
        self._parts.console.print(text, highlight=False, soft_wrap=True)

    def _train(self) -> None:
        config, state = self._config, self._state
        window = _Window(self._parts.device)
        steps = self._parts.loader.steps(state.step, state.drawn)
        with closing(steps):  # type: ignore[type-var]
            while state.step < config.steps and (step_batch := self._next(steps)) is not None:
                loss, norm = self._step(step_batch)
                state.step, state.drawn = step_batch.step + 1, step_batch.drawn
                self._parts.ema.update(state.step)
                self._progress.advance(state.step)
                window.add(loss, norm, step_batch)
                last = state.step == config.steps
                if last or state.step % config.log_every_steps == 0:
                    self._report(window, step_batch.epoch)
                    window = _Window(self._parts.device)
                self._tell_problem()
                with window.paused():
                    if last or state.step % config.validation.every_steps == 0:
                        self._validate(step_batch.epoch)
                    if state.step % config.checkpoint.every_steps == 0:
                        self._save()
        if self._saved_step != state.step:
            self._save()
        self._checkpoint = self._finish_saving()

    def _step(self, step_batch: StepBatch) -> tuple[torch.Tensor, float | None]:
        """One optimiser step; returns this rank's share of the loss and the gradient norm."""
        parts, config = self._parts, self._config
        parts.potential.train()
        progress = step_batch.step / config.steps
        counts = GlobalCounts(step_batch.n_systems_global, step_batch.n_free_atoms_global)
        n_real = len(step_batch.micro_batches) - step_batch.n_padding
        total = torch.zeros((), device=parts.device)
        for index, (on_host, topology_on_host) in enumerate(step_batch.micro_batches):
            batch, topology = on_host.to(parts.device), topology_on_host.to(parts.device)
            with _memory_errors_explained(batch, topology):
                predictions = parts.engine.forward(batch, topology)
                share = loss_share(
                    predictions, batch, config.loss, parts.potential.normalization, counts, progress
                )
                if index >= n_real:  # repeats a system only so that every rank runs as many micro-batches
                    share = share * 0.0
                self._require_finite(share, batch)
                parts.engine.backward(share, last=index == len(step_batch.micro_batches) - 1)
            total = total + share.detach()
        norm = parts.engine.step(learning_rate(config.optim, step_batch.step, config.steps))
        if norm is not None and not math.isfinite(norm):  # the norm is that of all ranks, so all raise
            raise TrainingError(
                f"the gradient is not finite at step {self._state.step + 1} although the loss is; "
                "lower optim.lr, then start again from the last checkpoint"
            )
        return total, norm

    def _require_finite(self, share: torch.Tensor, batch: Any) -> None:
        """Raise TrainingError on every rank if the loss of any rank is not finite."""
        wrong = ~torch.isfinite(share.detach())
        if not group.all_reduce_max(wrong.float().cpu()):
            return
        error = None
        if wrong:
            systems = ", ".join(
                f"{s}/{f}" for s, f in zip(batch.sid.tolist(), batch.fid.tolist(), strict=True)
            )
            error = TrainingError(
                f"the loss is not finite at step {self._state.step + 1}; "
                f"the batch holds the systems (sid/frame) {systems}; "
                "check their labels or lower optim.lr, then start again from the last checkpoint"
            )
        group.raise_together(error)

    def _next(self, steps: Iterator[StepBatch]) -> StepBatch | None:
        """What to compute next, or None when any rank was asked to stop.

        Raises on every rank what the data of any rank raise, so that none waits for one that has failed.
        """
        step_batch, error = None, None
        try:
            step_batch = next(steps)
            for batch, _ in step_batch.micro_batches:
                require_labels(batch, forces=self._config.loss.forces > 0)
        except OcpgemError as caught:
            error = caught
        stop = self._parts.stop
        largest, failed = group.all_reduce_max(torch.tensor([stop.number(), int(error is not None)])).tolist()
        if failed:
            group.raise_together(error)
        self._stopped_by = stop.agreed(largest)
        return step_batch if self._stopped_by is None else None

    def _report(self, window: "_Window", epoch: float) -> None:
        config, state = self._config, self._state
        state.seconds = time.monotonic() - self._clock
        numbers = window.numbers()
        numbers["lr"] = learning_rate(config.optim, state.step - 1, config.steps)
        rate = window.seconds_per_step()
        text = (
            f"epoch {epoch:.2f}  loss {numbers['loss']:.4g}  lr {numbers['lr']:.2g}  "
            f"{numbers['systems_per_second']:.1f} systems/s"
        )
        if self._logger is not None:
            self._logger.write("train", state.step, numbers, epoch=epoch, seconds=round(state.seconds, 3))
        self._progress.numbers(state.step, text, rate * (config.steps - state.step))

    def _validate(self, epoch: float) -> None:
        parts, state = self._parts, self._state
        effort = dataclasses.replace(parts.effort, progress=self._progress.display)
        with parts.ema.applied():
            for index, (split, dataset) in enumerate(parts.val_sets.items()):
                metrics = evaluate(parts.potential, dataset, effort, label=f"validating {split}")
                self._metrics[split] = metrics
                state.seconds = time.monotonic() - self._clock
                if self._logger is not None:
                    self._logger.write(
                        "val", state.step, metrics, split=split, epoch=epoch, seconds=round(state.seconds, 3)
                    )
                forces = f"  force MAE {metrics['forces_mae']:.4f} eV/A" if "forces_mae" in metrics else ""
                self._progress.message(
                    f"step {state.step}  {split}: energy MAE {metrics['energy_mae']:.4f} eV{forces}"
                )
                if index == 0:
                    self._keep_if_best(metrics)

    def _keep_if_best(self, metrics: dict[str, float]) -> None:
        """Save the (averaged) weights now in the model if they are the best so far."""
        state, name = self._state, self._config.validation.metric
        if name not in metrics:
            raise TrainingError(
                f"validation.metric is {name}, but the first validation set has no labels for it; choose another"
            )
        value = metrics[name]
        if state.best_metric is not None and value >= state.best_metric:
            return
        state.best_metric, state.best_step = value, state.step
        if group.is_main():
            best = self._parts.run.best
            best.mkdir(exist_ok=True)
            save_potential(self._parts.potential, best / MODEL_FILE, {"step": state.step, name: value})
            write_text(best / "metrics.json", json.dumps({"step": state.step, **metrics}, indent=2) + "\n")
        group.barrier()

    def _save(self) -> None:
        self._state.seconds = time.monotonic() - self._clock
        self._state.n_steps = self._config.steps
        self._checkpoints.save(self._state, self._parts.engine, self._parts.ema)
        self._saved_step = self._state.step

    def _tell_problem(self) -> None:
        """Say on rank 0 that a checkpoint could not be written; the run goes on."""
        problem = self._checkpoints.problem()
        if problem is not None:
            self._progress.message(f"warning: {problem}; the run goes on")

    def _finish_saving(self) -> Path | None:
        """Wait for the last checkpoint; returns it, or raises on every rank if it could not be written."""
        self._checkpoints.finish()
        problem = self._checkpoints.problem()
        if problem is not None:
            problem = CheckpointError(f"{problem}; make room there, then start the same command again")
        group.raise_together(problem)
        return group.broadcast_object(self._checkpoints.last_good)


@contextmanager
def _memory_errors_explained(batch: Any, topology: Topology) -> Iterator[None]:
    """Turn running out of memory into a sentence that says what to change."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU; a plain RuntimeError on a CPU
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in text:
            raise
        raise TrainingError(
            f"out of memory in a micro-batch of {topology.n_systems} systems, {topology.n_atoms} atoms and "
            f"{topology.main.n_edges} edges; set data.max_edges below that, or lower data.batch_size"
        ) from error


class _Window:
    """Means over the steps since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._norms: list[float] = []
        self._n_steps = 0
        self._n_systems = 0
        self._start = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within the context is not training time."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    def add(self, loss: torch.Tensor, norm: float | None, step_batch: StepBatch) -> None:
        self._loss += loss
        self._n_steps += 1
        self._n_systems += step_batch.n_systems_global
        if norm is not None:
            self._norms.append(norm)

    def seconds_per_step(self) -> float:
        return (time.monotonic() - self._start) / max(1, self._n_steps)

    def numbers(self) -> dict[str, float]:
        """The loss over all ranks, the gradient norm and the throughput."""
        loss = float(group.all_reduce_sum(self._loss.cpu())) / max(1, self._n_steps)
        found = {"loss": loss, "systems_per_second": self._n_systems / (time.monotonic() - self._start)}
        if self._norms:
            found["gradient_norm"] = sum(self._norms) / len(self._norms)
        return found
