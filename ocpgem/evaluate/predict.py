"""A potential over a whole data set: its metrics, its predictions, or both, on any number of ranks.

Every record is computed exactly once. An unusable record or a prediction that is not finite ends all ranks
with one and the same error, and no file is written.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.cost import SYSTEMS, Batching, Budget, systems_per_batch
from ocpgem.data.dataset import Dataset, Subset
from ocpgem.data.loader import EvalBatch, EvalLoader, Recipe, WorkerSettings
from ocpgem.errors import DataError, OcpgemError
from ocpgem.evaluate.edge_cost import agreed_edge_cost
from ocpgem.evaluate.leaderboard.format import Benchmark
from ocpgem.evaluate.metrics import S2EFMetrics, Scores, check_finite
from ocpgem.evaluate.open_model import (
    Model,
    apply,
    device_of,
    graphs_of,
    heaviest_element,
    referenced_elements,
)
from ocpgem.evaluate.parts import Parts, plan_of
from ocpgem.evaluate.prediction_set import (
    PredictionSet,
    as_arrays,
    join,
    make_target,
    metrics_of,
    write_predictions,
)
from ocpgem.evaluate.progress import systems_progress
from ocpgem.graph.spec import GraphSpec
from ocpgem.models.potential import Predictions
from ocpgem.parallel import group
from ocpgem.parallel.signals import StoppedError, StopRequest

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Effort:
    """How a data set is worked through; nothing in it changes a result.

    batch_size: systems per batch, or the budget of a batch; max_edges: with so many systems, edges of the model's
    main graph per batch at most; settings: worker processes; progress: show a bar on rank 0, either an own one
    (True) or a line in a display that the caller runs; stop: asked after every batch whether to end here, where what is
    done can be kept.
    """

    batch_size: int | Batching = 32
    max_edges: int | None = None
    settings: WorkerSettings = field(default_factory=WorkerSettings)
    progress: "bool | Progress" = True
    stop: StopRequest | None = None


Array = NDArray[Any]
Task = Literal["s2ef", "is2re"]
"""What is predicted: energy and forces of the structure, or the energy of the relaxed structure."""


@dataclass(frozen=True)
class PredictionReport:
    """What was written, and how good it is where the data have labels."""

    path: Path
    n_systems: int
    metrics: dict[str, float] | None
    n_resumed: int = 0
    """Systems that an earlier, interrupted call had done."""


def evaluate(
    potential: Model,
    dataset: Dataset,
    effort: Effort | None = None,
    label: str = "evaluate",
    watch: "Callable[[EvalBatch, Predictions], None] | None" = None,
) -> dict[str, float]:
    """The metrics of `potential` on a labelled data set, the same on every rank.

    watch: shown every batch of this rank with its predictions.
    The potential is used where its parameters are and returns to training mode if it was in it. Raises
    DataError naming the record that cannot be used, lacks its energy, or is predicted as NaN.
    """
    return _totals(potential, dataset, effort or Effort(), label, None, watch).result()


def evaluate_sets(
    potential: Model, sets: Mapping[str, Dataset], effort: Effort | None = None, keep: Path | None = None
) -> dict[str, Scores]:
    """The metrics of several data sets by name, with confidence intervals; every rank returns the same.

    keep: the file that the results will go to. What is interrupted leaves its parts beside it and goes on from there;
    `remove_parts` is called when the results are written. Raises StoppedError, as `predict` does, where `effort.stop`
    says so and parts are kept.
    """
    scores = {}
    for name, dataset in sets.items():
        parts = None if keep is None else _parts_of(keep, name, plan_of(potential, dataset, "evaluate"))
        scores[name] = _totals(potential, dataset, effort or Effort(), f"evaluate {name}", parts).scores()
    return scores


def remove_parts(keep: Path, names: Iterable[str]) -> None:
    """Remove what `evaluate_sets` has kept of these data sets beside the file `keep`."""
    for name in names:
        _parts_of(keep, name, {}).remove()


def _parts_of(keep: Path, name: str, plan: dict[str, Any]) -> Parts:
    return Parts(keep.with_name(f"{keep.name}.{name.replace('/', '_')}"), plan)


def predict(
    potential: Model,
    dataset: Dataset,
    out_path: str | Path,
    dialect: str = "ocp",
    effort: Effort | None = None,
    label: str = "predict",
    task: Task = "s2ef",
    provenance: dict[str, Any] | None = None,
    benchmark: Benchmark = "oc20",
) -> PredictionReport:
    """Predict every system of `dataset` and write one npz file in a dialect of `prediction_set`.

    task: is2re takes the energy for that of the relaxed structure and leaves forces out.
    provenance: kept in a raw file (`provenance.record_of`).
    benchmark: which data these are; the ocp dialect is float16 for OC20 and float32 for OC22.
    Labels play no part in the predictions, and one that is not finite is none; where all systems have energies, their
    metrics are computed on the way, and those of forces where all have forces. What an interrupted call has kept
    beside the file (`parts`) is used. Raises RequestError for a path or dialect that cannot be written, DataError for a
    record that cannot be used or is predicted as NaN, and StoppedError where `effort.stop` says so; what is done is
    kept.
    """
    path = Path(out_path)
    _on_main(lambda: make_target(path, dialect))
    parts = Parts(path, plan_of(potential, dataset, task))
    work = _Prediction(parts, task)
    with parts.claimed() as done:
        _walk(potential, dataset, done, effort or Effort(), label, work)
        gathered = group.gather_objects(work.pending)

        def finish() -> None:
            assert gathered is not None, "only rank 0 holds the predictions"
            pairs = [pair for part in gathered for pair in part]
            for part in parts.read():
                indices = part.pop("indices")
                pairs.append((indices, PredictionSet(**part)))
                if np.isin(indices, done).all():
                    work.score(pairs[-1][1])
            write_predictions(_in_order(pairs, dataset), path, dialect, provenance, benchmark)
            parts.remove()

        _on_main(finish)
    work.metrics.merge_across_ranks()
    return PredictionReport(path, len(dataset), work.metrics.result_of_all(len(dataset)), len(done))


class _Prediction:
    """What this rank has predicted and not yet kept on disk, and the metrics of all of it."""

    keeps = True
    needs_labels = False

    def __init__(self, parts: Parts, task: Task) -> None:
        self.pending: list[tuple[Array, PredictionSet]] = []
        self.metrics = S2EFMetrics()
        self._parts, self._task = parts, task

    def collect(self, item: EvalBatch, predictions: Predictions) -> None:
        """Take the predictions of a batch."""
        check_finite(predictions.energy, predictions.forces, item.batch, "predictions")
        if self._task == "is2re":
            predictions = replace(predictions, forces=None, forces_spread=None)
        if item.batch.get("energy") is not None:
            self.metrics.update(predictions, item.batch)
        self.pending.append((item.indices, as_arrays(predictions, item.batch)))
        if self._parts.due():
            self.keep()

    def keep(self) -> Path | None:
        """Keep on disk what is not yet there; returns where."""
        if self.pending:
            indices = np.concatenate([indices for indices, _ in self.pending])
            self._parts.keep(indices, join([each for _, each in self.pending]).columns())
            self.pending.clear()
        return self._parts.folder

    def score(self, earlier: PredictionSet) -> None:
        """Count predictions that an earlier call has kept."""
        if earlier.energy_true is not None:
            self.metrics.add(*metrics_of(earlier).totals())


def outputs(
    potential: Model, dataset: Dataset, effort: Effort, label: str, needs_labels: bool = False
) -> Generator[tuple[EvalBatch, Predictions], None, None]:
    """The batches of this rank, on the potential's device, and what it predicts for them.

    Models that need different graphs get one loader for each kind; all of them walk through the same batches.
    needs_labels: refuse labels that only some systems have or that are not finite; else they are left out of the batch.
    """
    graphs = graphs_of(potential)
    batching = _batching(effort, dataset, graphs)
    loaders = [
        EvalLoader(
            Recipe(
                dataset,
                graph,
                heaviest_element(potential),
                elements=referenced_elements(potential),
                labels_required=needs_labels,
            ),
            batching,
            rank=group.rank(),
            world_size=group.world_size(),
            settings=effort.settings,
        )
        for graph in graphs
    ]
    device = device_of(potential)
    with _evaluating(potential), systems_progress(effort.progress, label, len(dataset)) as advance:
        for items in zip(*loaders, strict=True):
            first = items[0]
            batch = first.batch.to(device, non_blocking=True)
            topologies = [item.topology.to(device, non_blocking=True) for item in items]
            predictions = apply(potential, batch, topologies)
            advance(len(first.indices))
            yield EvalBatch(batch, topologies[0], first.indices), predictions


def _batching(effort: Effort, dataset: Dataset, graphs: Sequence[GraphSpec]) -> Batching:
    """The batches of `effort`; where edges are limited, those of the largest graph are, and every rank calls it."""
    size = effort.batch_size
    if isinstance(size, Batching):
        return size
    if effort.max_edges is None:
        return systems_per_batch(size)
    costs = [agreed_edge_cost(dataset, graph) for graph in graphs]
    edges = max(costs, key=lambda cost: int(cost.of(dataset.sizes).sum()))
    return Batching(Budget(SYSTEMS, size), Budget(edges, effort.max_edges), edges)


@contextmanager
def _evaluating(potential: Model) -> Iterator[None]:
    was_training = potential.training
    potential.eval()
    try:
        yield
    finally:
        potential.train(was_training)


def _totals(
    potential: Model,
    dataset: Dataset,
    effort: Effort,
    label: str,
    parts: Parts | None,
    watch: Callable[[EvalBatch, Predictions], None] | None = None,
) -> S2EFMetrics:
    """The totals of the metrics over all ranks."""
    nothing = np.zeros(0, dtype=np.int64)
    with nullcontext(nothing) if parts is None else parts.claimed() as done:
        work = _Evaluation(parts, watch)
        if parts is not None and group.is_main():
            for part in parts.read():
                work.metrics.add(part["sids"], part["terms"])
        _walk(potential, dataset, done, effort, label, work)
        work.finish()
        work.metrics.merge_across_ranks()
    return work.metrics


class _Evaluation:
    """The totals of this rank; of those since the last part, also which systems they are of."""

    needs_labels = True

    def __init__(self, parts: Parts | None, watch: Callable[[EvalBatch, Predictions], None] | None) -> None:
        self.metrics = S2EFMetrics()
        self._fresh = S2EFMetrics()
        self._indices: list[Array] = []
        self._parts, self._watch = parts, watch

    @property
    def keeps(self) -> bool:
        """Whether what is done outlives an interruption."""
        return self._parts is not None

    def collect(self, item: EvalBatch, predictions: Predictions) -> None:
        """Count a batch."""
        self._fresh.update(predictions, item.batch)
        if self._watch is not None:
            self._watch(item, predictions)
        self._indices.append(item.indices)
        if self._parts is not None and self._parts.due():
            self.keep()

    def finish(self) -> None:
        """Count what is left."""
        if self._parts is not None and self._parts.begun:
            self.keep()
        self.metrics.add(*self._fresh.totals())

    def keep(self) -> Path | None:
        """Keep on disk what is not yet there; returns where, None where nothing is kept."""
        if self._parts is None:
            return None
        if self._indices:
            sids, terms = self._fresh.totals()
            self._parts.keep(np.concatenate(self._indices), {"sids": sids, "terms": terms})
            self.metrics.add(sids, terms)
            self._fresh, self._indices = S2EFMetrics(), []
        return self._parts.folder


def _walk(
    potential: Model,
    dataset: Dataset,
    done: Array,
    effort: Effort,
    label: str,
    work: _Prediction | _Evaluation,
) -> None:
    """Hand every batch of this rank that is not done, and its predictions, to `work`.

    An error of one rank is that of all; where a signal came, what is done is kept first.
    """
    left = np.setdiff1d(np.arange(len(dataset)), done)
    if len(left) == 0:
        return
    error: OcpgemError | None = None
    try:
        remaining = dataset if len(done) == 0 else Subset(dataset, left)
        stop = effort.stop if work.keeps else None
        if stop is not None:
            stop.wait_for_steps()
        with closing(outputs(potential, remaining, effort, label, work.needs_labels)) as batches:
            for item, predictions in batches:
                work.collect(replace(item, indices=left[item.indices]), predictions)
                arrived = None if stop is None else stop.between_steps()
                if arrived is not None:
                    folder = work.keep()
                    raise StoppedError(
                        arrived, f"what is done is kept in {folder}, and the same command goes on from there"
                    )
    except OcpgemError as caught:
        error = caught
    group.raise_together(error)


def _in_order(pairs: list[tuple[Array, PredictionSet]], dataset: Dataset) -> PredictionSet:
    """Join what all ranks predicted, in the order of the data set."""
    indices = np.concatenate([indices for indices, _ in pairs])
    order = np.argsort(indices, kind="stable")
    if not np.array_equal(indices[order], np.arange(len(dataset))):
        raise DataError(
            f"{dataset.path}: the {len(indices)} predictions do not match its {len(dataset)} records"
        )
    return join([part for _, part in pairs]).take(order)


def _on_main(work: Callable[[], None]) -> None:
    """Do something on rank 0 only; its error is everybody's error."""
    error: OcpgemError | None = None
    if group.is_main():
        try:
            work()
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
