"""Batches and their topology, prepared ahead by worker processes.

Everything random is decided by ocpgem.data.plan in the main process; workers only turn lists of records into
tensors, so their number changes nothing but the speed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, get_worker_info
from torch_geometric.data import Batch

from ocpgem.data.batch import OPTIONAL_KEYS, collate, with_common_labels
from ocpgem.data.cost import Batching, Budget, systems_per_batch
from ocpgem.data.dataset import Dataset
from ocpgem.data.draws import all_once
from ocpgem.data.edge_store import edges_of
from ocpgem.data.plan import Ints, StepPlan, TrainPlan, check_fits, plan_evaluation
from ocpgem.data.reading import NOTHING, ReadingNotes, reading_notes, worker_killed
from ocpgem.data.system import MAX_ATOMIC_NUMBER, System
from ocpgem.data.transport import Packed, pack
from ocpgem.errors import DataError, OcpgemError
from ocpgem.graph.topology import GraphSpec, Topology, concat


@dataclass(frozen=True)
class StepBatch:
    """What one process computes in one optimizer step.

    step counts from 0 over the whole run; epoch is the number of epochs done once the step is (a fraction), drawn
    the number of systems drawn over all processes since the run began.
    The last `n_padding` micro-batches only keep the processes in step: their loss must weigh nothing. Losses
    are sums over systems and free atoms divided by the global counts, which leave out the padding.
    """

    step: int
    drawn: int
    indices: list[Ints]
    """The records of each micro-batch."""
    epoch: float
    micro_batches: list[tuple[Batch, Topology]]
    n_padding: int
    n_systems_global: int
    n_free_atoms_global: int

    @property
    def real_indices(self) -> list[int]:
        """The records of all micro-batches, padding left out."""
        n_real = len(self.indices) - self.n_padding
        return [index for indices in self.indices[:n_real] for index in indices.tolist()]

    @property
    def divisible(self) -> bool:
        """Whether any micro-batch holds more than one record."""
        return any(len(indices) > 1 for indices in self.indices)

    def pin_memory(self) -> StepBatch:
        """The same in page-locked memory (called by torch's DataLoader)."""
        pinned = [(batch.pin_memory(), topology.pin_memory()) for batch, topology in self.micro_batches]
        return dataclasses.replace(self, micro_batches=pinned)


@dataclass(frozen=True)
class EvalBatch:
    """Systems to predict: their batch, its topology, and their positions in the data set."""

    batch: Batch
    topology: Topology
    indices: Ints

    def pin_memory(self) -> EvalBatch:
        """The same in page-locked memory (called by torch's DataLoader)."""
        return EvalBatch(self.batch.pin_memory(), self.topology.pin_memory(), self.indices)


@dataclass(frozen=True)
class WorkerSettings:
    """How batches are prepared: worker processes (0: in the caller), items each prepares ahead, pinning.

    start: workers are copies of this process (fork) or new ones (spawn: seconds slower to start, and right where
    libraries do not survive a fork).
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    start: Literal["fork", "spawn"] = "fork"


@dataclass(frozen=True)
class Recipe:
    """How records become a batch: where they are, which graph the model needs, and its heaviest element."""

    dataset: Dataset
    graph: GraphSpec
    max_atomic_number: int = MAX_ATOMIC_NUMBER
    hide_elements: float = 0.0
    """Probability that the model is not told an element of a training system."""
    elements: tuple[int, ...] | None = None
    """The elements that the model has reference energies for, where it has any; others are refused."""
    labels: tuple[str, ...] | None = None
    """The labels that batches need, others are left out so that sets with different ones can be joined; None: all."""
    labels_required: bool = True
    """Refuse labels that only some systems of a batch have or that are not finite; else the batch is without them."""

    def prepare(
        self,
        indices: Ints,
        draw: tuple[int, int] | None = None,
        note: Callable[[int], object] = lambda index: None,
    ) -> tuple[Batch, Topology]:
        """The batch of some records and its topology; raises DataError naming the record at fault.

        draw: seed and step of a training batch; with the record's index they decide which elements are hidden.
        note: told each record before it is touched.
        """
        systems = []
        for index in indices.tolist():
            note(index)
            systems.append(self._read(index))
        if not self.labels_required:
            systems = with_common_labels(systems)
        hidden = None
        if draw is not None and self.hide_elements > 0:
            hidden = np.concatenate(
                [
                    self._hidden(system, (*draw, index))
                    for system, index in zip(systems, indices.tolist(), strict=True)
                ]
            )
        batch = collate(systems, self.max_atomic_number, hidden, self.elements)
        edges = []
        for index, system in zip(indices.tolist(), systems, strict=True):
            note(index)
            try:
                edges.append(edges_of(system, self.graph))
            except DataError as error:
                raise DataError(f"{system.where}: {error}") from None
        return batch, concat(edges)

    def _read(self, index: int) -> System:
        """A record with the labels that are needed."""
        system = self.dataset[index]
        if self.labels is None:
            return system
        system = copy.copy(system)  # a data set in memory keeps its own
        for key in OPTIONAL_KEYS:
            if key not in self.labels:
                setattr(system, key, None)
        return system

    def _hidden(self, system: System, seed: tuple[int, ...]) -> NDArray[np.bool_]:
        """Which atoms are of a hidden element."""
        elements = np.unique(system.atomic_numbers)
        draws = np.random.default_rng(seed).random(len(elements))
        return np.isin(system.atomic_numbers, elements[draws < self.hide_elements])


class TrainLoader:
    """The optimizer steps of one process, from any step on, without end.

    batching: an int stands for so many systems a step. Raises RequestError for a plan that cannot work and DataError
    naming a record that is unusable.
    """

    def __init__(
        self,
        recipe: Recipe,
        batching: Batching | int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        settings: WorkerSettings = WorkerSettings(),
    ) -> None:
        dataset = recipe.dataset
        if isinstance(batching, int):
            batching = systems_per_batch(batching)
        _check_largest(dataset, batching.limit)
        self.plan = TrainPlan(dataset.draws(seed) or all_once(len(dataset), seed), dataset.rows, batching)
        self._recipe, self._settings, self._seed = recipe, settings, seed
        self._rank, self._world_size = rank, world_size

    def steps(self, start_step: int = 0, drawn: int | None = None) -> Iterator[StepBatch]:
        """Every step from `start_step` on; the same steps whatever was run before.

        drawn: `StepBatch.drawn` of the step before; without it, it is computed (ocpgem.data.plan).
        """
        plans = _StepPlans(self.plan, start_step, drawn, self._rank, self._world_size)
        return _prepare(_PrepareStep(self._recipe, self._seed), plans, self._settings)

    @property
    def dataset(self) -> Dataset:
        """The records that steps are made of."""
        return self._recipe.dataset

    def divided(self, step_batch: StepBatch, parts: int) -> StepBatch:
        """The same systems in `parts` times as many micro-batches; padding fills up where there are too few."""
        n_real = len(step_batch.indices) - step_batch.n_padding
        pieces = [np.array_split(indices, parts) for indices in step_batch.indices[:n_real]]
        real = [piece for split in pieces for piece in split if len(piece)]
        smallest = step_batch.indices[-1][:1]
        n_padding = parts * len(step_batch.indices) - len(real)
        indices = real + [smallest] * n_padding
        return dataclasses.replace(
            step_batch,
            micro_batches=[self._recipe.prepare(each, (self._seed, step_batch.step)) for each in indices],
            indices=indices,
            n_padding=n_padding,
        )

    def single(self, step_batch: StepBatch, index: int) -> tuple[Batch, Topology]:
        """One record of a step, as the step sees it."""
        return self._recipe.prepare(np.array([index]), (self._seed, step_batch.step))


class EvalLoader:
    """Batches of one process; all processes together see every record exactly once.

    batching: an int stands for so many systems a batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        batching: Batching | int,
        rank: int = 0,
        world_size: int = 1,
        settings: WorkerSettings = WorkerSettings(),
    ) -> None:
        if isinstance(batching, int):
            batching = systems_per_batch(batching)
        _check_largest(recipe.dataset, batching.limit)
        rows = recipe.dataset.sizes
        caps = [(batching.size.cost.of(rows), batching.size.amount)]
        if batching.limit is not None:
            caps.append((batching.limit.cost.at_most(rows), batching.limit.amount))
        self._batches = plan_evaluation(batching.work.of(rows), rank, world_size, caps)
        self._recipe, self._settings = recipe, settings

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[EvalBatch]:
        return _prepare(_PrepareEvaluation(self._recipe), self._batches, self._settings)


@dataclass(frozen=True)
class _StepPlans:
    """The plans of a run's steps, an endless sampler for torch's DataLoader."""

    plan: TrainPlan
    start_step: int
    drawn: int | None
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[StepPlan]:
        for step in self.plan.steps(self.start_step, self.drawn):
            yield self.plan.share(step, self.rank, self.world_size)


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker, without the traceback torch would print into its message."""

    kind: type[OcpgemError]
    message: str


@dataclass(frozen=True)
class _PrepareStep:
    recipe: Recipe
    seed: int

    def prepare(self, plan: StepPlan, note: Callable[[int], None]) -> StepBatch:
        return StepBatch(
            step=plan.step,
            drawn=plan.drawn,
            indices=plan.micro_batches,
            epoch=plan.epoch,
            micro_batches=[
                self.recipe.prepare(indices, (self.seed, plan.step), note) for indices in plan.micro_batches
            ],
            n_padding=plan.n_padding,
            n_systems_global=plan.n_systems_global,
            n_free_atoms_global=plan.n_free_atoms_global,
        )


@dataclass(frozen=True)
class _PrepareEvaluation:
    recipe: Recipe

    def prepare(self, indices: Ints, note: Callable[[int], None]) -> EvalBatch:
        return EvalBatch(*self.recipe.prepare(indices, note=note), indices)


@dataclass(frozen=True)
class _Guarded:
    """Hands errors over as values, and tensors from a worker in one block."""

    source: _PrepareStep | _PrepareEvaluation
    notes: ReadingNotes

    def __getitem__(self, item: Any) -> Any:
        try:
            prepared = self.source.prepare(item, self.notes.note)
            return prepared if get_worker_info() is None else pack(prepared)
        except OcpgemError as error:
            return _Failure(type(error), str(error))
        finally:
            self.notes.note(NOTHING)


def _prepare(
    source: _PrepareStep | _PrepareEvaluation, items: Any, settings: WorkerSettings
) -> Iterator[Any]:
    workers = settings.workers
    notes = reading_notes(workers)
    loader: DataLoader[Any] = DataLoader(
        _Guarded(source, notes),  # type: ignore[arg-type]
        batch_size=None,
        sampler=items,
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=settings.prefetch if workers else None,
        pin_memory=settings.pin_memory,
        worker_init_fn=functools.partial(_start_worker, notes),
        multiprocessing_context=settings.start if workers else None,
        generator=torch.Generator(),  # its own, so that starting a loader draws nothing from the run's
    )
    try:
        with _deaths_seen_by_the_loader_only():
            prepared_items = iter(loader)
        for prepared in prepared_items:
            if isinstance(prepared, _Failure):
                raise prepared.kind(prepared.message)
            yield prepared.unpack() if isinstance(prepared, Packed) else prepared
    except (RuntimeError, OSError, EOFError) as error:
        # Torch says so, or what a worker had prepared is gone with it.
        said_by_torch = "DataLoader worker" in str(error)
        death = None
        try:
            death = notes.death(source.recipe.dataset) if workers else None
        except RuntimeError:  # torch's own report of the death, which comes with the signal
            said_by_torch = True
            death = notes.death(source.recipe.dataset)
        if death is None and not said_by_torch:
            raise
        raise death or worker_killed() from error  # a worker that died before it began has noted nothing


@contextmanager
def _deaths_seen_by_the_loader_only() -> Iterator[None]:
    """Keep what handles SIGCHLD as it is.

    Torch's handler would raise a worker's death wherever the main thread is, in the middle of a training step; the
    loader finds it out anyway when it waits for the worker.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if in_main_thread and before is not None:
        signal.signal(signal.SIGCHLD, before)


def _unchanged(item: Any) -> Any:
    return item


def _start_worker(notes: ReadingNotes, number: int) -> None:
    torch.set_num_threads(1)
    notes.note(NOTHING)


def _check_largest(dataset: Dataset, limit: Budget | None) -> None:
    """Raise RequestError naming a record that alone exceeds what a rank may compute at once."""

    def name(index: int) -> str:
        row = dataset.rows(np.array([index]))[0]
        return f"{dataset.origin(index)} (sid {row['sid']}, frame {row['fid']})"

    if limit is not None:
        for first, rows in dataset.rows_in_order():
            check_fits(limit.cost.at_most(rows), limit.amount, limit.cost.unit, first, name)
