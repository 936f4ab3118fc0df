"""The training loop: steps, validation at intervals, checkpoints, and an orderly end on a signal."""

import dataclasses
import json
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ocpgem.checkpoint import MODEL_FILE, save_potential
from ocpgem.data.loader import StepBatch
from ocpgem.errors import CheckpointError, OcpgemError, TrainingError
from ocpgem.evaluate.parity import ParitySample
from ocpgem.evaluate.predict import evaluate
from ocpgem.files import write_text
from ocpgem.models.potential import Potential
from ocpgem.parallel import group
from ocpgem.parallel.signals import StoppedInValidationError
from ocpgem.train.callbacks import Callbacks, Numbers
from ocpgem.train.ending import DiskGuard, explained
from ocpgem.train.loss import require_labels
from ocpgem.train.parts import RunParts, TrainSummary
from ocpgem.train.state import Checkpoints, TrainState
from ocpgem.train.step import StepRunner
from ocpgem.train.summary import as_text, peak_bytes
from ocpgem.train.terminal import TrainingProgress

log = logging.getLogger("ocpgem")


class TrainingLoop:
    """Runs a run from its latest checkpoint, or its beginning, to its last step."""

    def __init__(self, parts: RunParts, checkpoints: Checkpoints, start: Path | None) -> None:
        """`start`: the checkpoint to go on from."""
        self._parts = parts
        self._config = parts.config
        self._checkpoints = checkpoints
        self._start = start
        self._steps = StepRunner(parts)
        self._disk = DiskGuard(parts.say)
        self._callbacks = Callbacks(parts.callbacks if group.is_main() else (), self._disk.guarded)
        self._validating = False
        self._checkpoint: Path | None = None
        self._state = TrainState(world_size=group.world_size())
        self._stopped_by: signal.Signals | None = None
        self._metrics: dict[str, dict[str, float]] = {}
        self._saved_step = -1
        self._waited = 0.0  # seconds for data, since the last report

    def run(self) -> TrainSummary:
        """Train; every rank calls it and returns the same summary.

        SIGINT, SIGTERM, SIGUSR1 and SIGUSR2, to any rank, end it after the current step with a checkpoint. Raises
        TrainingError, on every rank that still can, when a rank cannot go on.
        """
        parts = self._parts
        hook = parts.potential.register_forward_pre_hook(self._before_forward)
        parts.watchdog.start()
        with self._disk.writer_threads():
            self._guarded()
        hook.remove()
        summary = TrainSummary(self._state.step, self._stopped_by, self._checkpoint, self._metrics)
        if group.is_main():
            with self._disk.guarded("the summary"):
                write_text(parts.run.path / "summary.txt", as_text(summary, self._state, parts))
        return summary

    def _guarded(self) -> None:
        """Resume and train; whatever ends it, the files are closed and the reason is a sentence."""
        parts = self._parts
        try:
            self._resume()
            self._clock = time.monotonic() - self._state.seconds
            parts.stop.wait_for_steps()
            self._progress = TrainingProgress(parts.config.steps, self._state.step, parts.console)
            with self._progress.shown():
                self._train()
        except Exception as error:
            parts.stop.fall_silent()
            told = explained(error, parts, self._state.step)
            if group.is_main():
                log.error("%s", told)
            raise told from error
        finally:
            parts.watchdog.stop()
            self._checkpoints.finish()
            self._callbacks.tell(lambda callback: callback.ended(self._state.step))

    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        """A sign of progress; and the place where a signal ends a validation, which may take hours."""
        self._parts.watchdog.beat("a forward pass" + (" of the validation" if self._validating else ""))
        if self._validating and self._parts.stop.number():
            raise StoppedInValidationError("a signal ended the validation")

    def _resume(self) -> None:
        if self._start is None:
            return
        self._parts.watchdog.beat(f"resuming from {self._start}")
        self._state = self._checkpoints.load(self._start, self._parts.engine, self._parts.ema)
        self._saved_step = -1 if self._state.pending_validation is not None else self._state.step
        self._steps.skipped = self._state.skipped
        self._parts.plateau.load_state_dict(self._state.plateau)
        self._parts.say(f"resuming from {self._start} (step {self._state.step})")
        before, now = self._state.n_steps, self._config.steps
        if before is not None and before != now and self._state.step < now:
            rates = [self._parts.learning_rate(min(self._state.step, n - 1), n) for n in (before, now)]
            self._parts.say(
                f"steps was {before} and is {now}: what depends on it follows the new number from here on; "
                f"the learning rate of the next step is {rates[1]:.3g} instead of {rates[0]:.3g}"
            )
        if self._state.lr not in (None, self._config.optim.lr):
            self._parts.say(
                f"optim.lr was {self._state.lr:.3g} and is {self._config.optim.lr:.3g}, from the next step on"
            )

    def _train(self) -> None:
        state = self._state
        settings = self._config.model_dump(mode="json")
        if state.pending_validation is not None and group.is_main():  # a kill may have followed its end
            with self._disk.guarded("the metrics"):
                self._parts.run.forget_validation_of(state.step)
        group.on_main(lambda: self._callbacks.start(self._parts.run.path, state.step, settings))
        if state.pending_validation is not None:
            self._validate(state.pending_validation)
        steps = self._parts.loader.steps(state.step, state.drawn)
        with closing(steps):  # type: ignore[type-var]
            self._take_steps(steps)
        if self._saved_step != state.step:
            self._save()
        self._checkpoint = self._finish_saving()

    def _take_steps(self, steps: Iterator[StepBatch]) -> None:
        config, state = self._config, self._state
        window = _Window(self._parts.device)
        while (
            self._stopped_by is None
            and state.step < config.steps
            and (step_batch := self._next(steps)) is not None
        ):
            self._parts.watchdog.beat(f"step {state.step + 1}")
            result = self._steps.run(step_batch)
            state.step, state.drawn = step_batch.step + 1, step_batch.drawn
            state.skipped = self._steps.skipped
            if result is not None:
                self._parts.ema.update(state.step)
                window.add(*result, step_batch)
            self._progress.advance(state.step)
            last = state.step == config.steps
            if last or state.step % config.log_every_steps == 0:
                self._report(window, step_batch.epoch)
                window = _Window(self._parts.device)
            self._tell_problem()
            with window.paused():
                if config.histograms_every_steps and state.step % config.histograms_every_steps == 0:
                    self._record_weights()
                if last or state.step % config.validation.every_steps == 0:
                    self._validate(step_batch.epoch)
                if state.step % config.checkpoint.every_steps == 0:
                    self._save()

    def _next(self, steps: Iterator[StepBatch]) -> StepBatch | None:
        """What to compute next, or None when any rank was asked to stop.

        Raises on every rank what the data of any rank raise, so that none waits for one that has failed.
        """
        step_batch, error = None, None
        self._parts.watchdog.beat(f"loading the batch of step {self._state.step + 1}")
        try:
            begin = time.monotonic()
            step_batch = next(steps)
            self._waited += time.monotonic() - begin
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
        if window.is_empty:  # every step was left out
            return
        numbers = window.numbers()
        numbers["lr"] = self._parts.learning_rate(state.step - 1)
        rate = window.seconds_per_step()
        numbers["data_wait_share"], self._waited = self._waited / max(1e-9, window.seconds), 0.0
        numbers["memory_gb"] = peak_bytes(self._parts.device) / 1e9
        text = (
            f"epoch {epoch:.2f}  loss {numbers['loss']:.4g}  lr {numbers['lr']:.2g}  "
            f"{numbers['systems_per_second']:.1f} systems/s"
        )
        self._record("train", numbers, epoch=epoch)
        self._progress.numbers(state.step, text, rate * (config.steps - state.step))

    def _record(self, kind: str, numbers: dict[str, float], **labels: Any) -> None:
        labels["seconds"] = round(self._state.seconds, 3)
        found = Numbers(kind, self._state.step, numbers, labels)
        self._callbacks.tell(lambda callback: callback.numbers(found))

    def _record_weights(self) -> None:
        weights = self._parts.ema.state_dict()  # a collective under ZeRO-3
        self._callbacks.tell(lambda callback: callback.histograms(self._state.step, weights))

    def _validate(self, epoch: float) -> None:
        """Score the validation sets; where a signal comes, a resumed run begins with them."""
        self._state.pending_validation = epoch
        self._validating = True
        try:
            self._score(epoch)
            self._state.pending_validation = None
        except StoppedInValidationError:
            stop = self._parts.stop
            self._stopped_by = stop.agreed(int(group.all_reduce_max(torch.tensor(stop.number()))))
        finally:
            self._validating = False

    def _score(self, epoch: float) -> None:
        parts, state = self._parts, self._state
        effort = dataclasses.replace(parts.effort, progress=self._progress.display)
        scored: dict[str, tuple[dict[str, float], ParitySample]] = {}
        with parts.ema.applied() as potential:
            for index, (split, dataset) in enumerate(parts.val_sets.items()):
                sample = ParitySample(len(dataset), self._config.validation.parity_systems)
                metrics = evaluate(potential, dataset, effort, f"validating {split}", sample.take)
                scored[split] = metrics, sample
                state.seconds = time.monotonic() - self._clock
                forces = f"  force MAE {metrics['forces_mae']:.4f} eV/A" if "forces_mae" in metrics else ""
                self._progress.message(
                    f"step {state.step}  {split}: energy MAE {metrics['energy_mae']:.4f} eV{forces}"
                )
                if index == 0:
                    self._keep_if_best(potential, metrics)
        # What a signal cuts short is done again as a whole; so it counts, and is recorded, only as a whole.
        for split, (metrics, sample) in scored.items():
            self._metrics[split] = metrics
            self._record("val", metrics, split=split, epoch=epoch)
            self._draw(split, sample)
        if scored:
            self._fall_on_plateau(next(iter(scored.values()))[0])

    def _fall_on_plateau(self, metrics: dict[str, float]) -> None:
        """Take the first validation set into account in a learning rate that depends on it."""
        name = self._config.validation.metric
        if self._parts.plateau.validated(metrics[name]):
            rate = self._parts.learning_rate(min(self._state.step, self._config.steps - 1))
            self._parts.say(
                f"step {self._state.step}  no better {name} for long: the learning rate falls to {rate:.3g}"
            )

    def _draw(self, split: str, sample: ParitySample) -> None:
        """Predictions against labels, for the loggers; a collective."""
        png = sample.png(f"{split}, step {self._state.step}")
        if png is not None:
            self._callbacks.tell(lambda callback: callback.figure(self._state.step, f"parity/{split}", png))

    def _keep_if_best(self, potential: Potential, metrics: dict[str, float]) -> None:
        """Save the (averaged) weights now in the model if they are the best so far."""
        state, name = self._state, self._config.validation.metric
        if name not in metrics:
            raise TrainingError(
                f"validation.metric is {name}, but the first validation set has no labels for it; choose another"
            )
        value = metrics[name]
        if state.best_metric is not None and value >= state.best_metric:
            return
        if group.is_main():
            best = self._parts.run.best
            with self._disk.guarded("the best model"):
                best.mkdir(exist_ok=True)
                save_potential(potential, best / MODEL_FILE, {"step": state.step, name: value})
                write_text(
                    best / "metrics.json", json.dumps({"step": state.step, **metrics}, indent=2) + "\n"
                )
                state.best_metric, state.best_step = value, state.step

    def _save(self) -> None:
        self._state.seconds = time.monotonic() - self._clock
        self._state.n_steps, self._state.lr = self._config.steps, self._config.optim.lr
        self._state.plateau = self._parts.plateau.state_dict()
        self._checkpoints.save(
            self._state,
            self._parts.engine,
            self._parts.ema,
            lambda: self._parts.watchdog.beat("writing the checkpoint before"),
        )
        self._saved_step = self._state.step

    def _tell_problem(self) -> None:
        """Say on rank 0 that a checkpoint could not be written; the run goes on."""
        problem = self._checkpoints.problem()
        if problem is not None:
            self._parts.say(f"warning: {problem}; the run goes on")

    def _finish_saving(self) -> Path | None:
        """Wait for the last checkpoint; returns it, or raises on every rank if it could not be written."""
        self._checkpoints.finish(lambda: self._parts.watchdog.beat("writing the last checkpoint"))
        problem = self._checkpoints.problem()
        if problem is not None:
            problem = CheckpointError(f"{problem}; make room there, then start the same command again")
        group.raise_together(problem)
        return group.broadcast_object(self._checkpoints.last_good)


class _Window:
    """Means over the steps since the last report."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._norms: list[float] = []
        self._n_steps = 0
        self._n_systems = 0
        self._start = time.monotonic()

    @property
    def is_empty(self) -> bool:
        """Whether no step was added."""
        return self._n_steps == 0

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

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def seconds_per_step(self) -> float:
        return self.seconds / max(1, self._n_steps)

    def numbers(self) -> dict[str, float]:
        """The loss over all ranks, the gradient norm and the throughput."""
        loss = float(group.all_reduce_sum(self._loss.cpu())) / max(1, self._n_steps)
        found = {"loss": loss, "systems_per_second": self._n_systems / (time.monotonic() - self._start)}
        if self._norms:
            found["gradient_norm"] = sum(self._norms) / len(self._norms)
        return found
