"""A potential over a whole data set: its metrics, its predictions, or both, on any number of ranks.

Every record is computed exactly once. An unusable record or a prediction that is not finite ends all ranks
with one and the same error, and no file is written.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ocpgem.data.cost import SYSTEMS, Batching, Budget, systems_per_batch
from ocpgem.data.dataset import Dataset
from ocpgem.data.loader import EvalBatch, EvalLoader, Recipe, WorkerSettings
from ocpgem.errors import DataError, OcpgemError
from ocpgem.evaluate.edge_cost import agreed_edge_cost
from ocpgem.evaluate.metrics import S2EFMetrics, check_finite
from ocpgem.evaluate.open_model import (
    Model,
    apply,
    device_of,
    graphs_of,
    heaviest_element,
    referenced_elements,
)
from ocpgem.evaluate.prediction_set import PredictionSet, check_target, join, write_predictions
from ocpgem.evaluate.progress import systems_progress
from ocpgem.graph.spec import GraphSpec
from ocpgem.models.potential import Predictions
from ocpgem.parallel import group

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch_geometric.data import Batch


@dataclass(frozen=True)
class Effort:
    """How a data set is worked through; nothing in it changes a result.

    batch_size: systems per batch, or the budget of a batch; max_edges: with so many systems, edges of the model's
    main graph per batch at most; settings: worker processes; progress: show a bar on rank 0, either an own one
    (True) or a line in a display that the caller runs.
    """

    batch_size: int | Batching = 32
    max_edges: int | None = None
    settings: WorkerSettings = field(default_factory=WorkerSettings)
    progress: "bool | Progress" = True


@dataclass(frozen=True)
class PredictionReport:
    """What was written, and how good it is where the data have labels."""

    path: Path
    n_systems: int
    metrics: dict[str, float] | None


def evaluate(
    potential: Model, dataset: Dataset, effort: Effort | None = None, label: str = "evaluate"
) -> dict[str, float]:
    """The metrics of `potential` on a labelled data set, the same on every rank.

    The potential is used where its parameters are and returns to training mode if it was in it. Raises
    DataError naming the record that cannot be used, lacks its energy, or is predicted as NaN.
    """
    metrics = S2EFMetrics()
    error: OcpgemError | None = None
    try:
        with closing(outputs(potential, dataset, effort or Effort(), label)) as batches:
            for item, predictions in batches:
                metrics.update(predictions, item.batch)
    except OcpgemError as caught:
        error = caught
    group.raise_together(error)
    metrics.merge_across_ranks()
    return metrics.result()


def predict(
    potential: Model,
    dataset: Dataset,
    out_path: str | Path,
    dialect: str = "ocp",
    effort: Effort | None = None,
    label: str = "predict",
) -> PredictionReport:
    """Predict every system of `dataset` and write one npz file in a dialect of `prediction_set`.

    Labels play no part in the predictions; where all systems have them, the metrics are computed on the way.
    Raises RequestError for a path or dialect that cannot be written, and DataError as `evaluate` does.
    """
    path = Path(out_path)
    _on_main(lambda: check_target(path, dialect))
    metrics = S2EFMetrics()
    parts: list[tuple[Any, PredictionSet]] = []
    error: OcpgemError | None = None
    try:
        with closing(outputs(potential, dataset, effort or Effort(), label)) as batches:
            for item, predictions in batches:
                check_finite(predictions.energy, predictions.forces, item.batch, "predictions")
                if item.batch.get("energy") is not None:
                    metrics.update(predictions, item.batch)
                parts.append((item.indices, _to_arrays(predictions, item.batch)))
    except OcpgemError as caught:
        error = caught
    group.raise_together(error)
    metrics.merge_across_ranks()
    gathered = group.gather_objects(parts)
    _on_main(lambda: write_predictions(_in_order(gathered, dataset), path, dialect))
    result = metrics.result() if metrics.n_systems == len(dataset) else None
    return PredictionReport(path, len(dataset), result)


def outputs(
    potential: Model, dataset: Dataset, effort: Effort, label: str
) -> Generator[tuple[EvalBatch, Predictions], None, None]:
    """The batches of this rank, on the potential's device, and what it predicts for them.

    Models that need different graphs get one loader for each kind; all of them walk through the same batches.
    """
    graphs = graphs_of(potential)
    batching = _batching(effort, dataset, graphs)
    loaders = [
        EvalLoader(
            Recipe(dataset, graph, heaviest_element(potential), elements=referenced_elements(potential)),
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


def _to_arrays(predictions: Predictions, batch: "Batch") -> PredictionSet:
    def array(value: torch.Tensor | None) -> Any:
        return None if value is None else value.detach().cpu().numpy()

    return PredictionSet(
        sid=array(batch.sid),
        fid=array(batch.fid),
        natoms=array(batch.natoms),
        energy=array(predictions.energy),
        fixed=array(batch.fixed),
        atomic_numbers=array(batch.atomic_numbers).astype(np.uint8),
        forces=array(predictions.forces),
        energy_true=array(batch.get("energy")),
        forces_true=array(batch.get("forces")),
    )


def _in_order(gathered: list[list[tuple[Any, PredictionSet]]] | None, dataset: Dataset) -> PredictionSet:
    """Join what all ranks predicted, in the order of the data set."""
    assert gathered is not None, "only rank 0 holds the predictions"
    pairs = [pair for part in gathered for pair in part]
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
