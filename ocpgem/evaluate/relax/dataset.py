"""The relaxation of a whole data set: IS2RE and IS2RS by relaxation, on any number of ranks, resumable at any time."""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.cost import STORED_EDGES
from ocpgem.data.dataset import Dataset
from ocpgem.data.folder import only_writer
from ocpgem.data.plan import check_fits
from ocpgem.errors import DataError, OcpgemError
from ocpgem.evaluate.edge_cost import agreed_edge_cost
from ocpgem.evaluate.open_model import Model, fingerprint, graphs_of
from ocpgem.evaluate.prediction_set import PredictionSet, join, write_predictions
from ocpgem.evaluate.progress import systems_progress
from ocpgem.evaluate.relax.loop import Relaxation, Relaxed, RelaxSettings
from ocpgem.evaluate.relax.store import (
    RELAXED_FILE,
    TABLE_FILE,
    TRAJECTORIES,
    Finished,
    PartsWriter,
    check_folder,
    open_folder,
    write_table,
)
from ocpgem.evaluate.relax.surfaces import Member, PotentialSurface, Surface
from ocpgem.evaluate.relax.trajectories import write_trajectory
from ocpgem.parallel import group
from ocpgem.parallel.signals import StoppedError, StopRequest

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class RelaxTask:
    """What to do with a data set, and how much at once.

    trajectories: "none", or the kind of file for each system, "traj" or "extxyz"; batch_size, max_edges: systems and
    edges at once per rank; progress: show a bar on rank 0; stop: asked before every step whether to end here.
    """

    settings: RelaxSettings = field(default_factory=RelaxSettings)
    trajectories: str = "none"
    batch_size: int = 32
    max_edges: int | None = None
    progress: bool = True
    stop: StopRequest | None = None


@dataclass(frozen=True)
class RelaxReport:
    """What came out.

    predictions: energies, positions and forces at the end, with the labels where the data have them; n_earlier: how
    many were finished before; n_converged: how many reached fmax; mean_steps; problems: a sentence for each system
    that could not go on.
    """

    path: Path
    predictions: PredictionSet
    n_earlier: int
    n_converged: int
    mean_steps: float
    problems: list[str]


def relax_dataset(
    model: Model, dataset: Dataset, out: Path, task: RelaxTask | None = None, surface: Surface | None = None
) -> RelaxReport | None:
    """Relax every system of a data set once and write the results to the folder `out`; the report on rank 0.

    What an earlier call has finished in `out` is not done again. surface: where energies and forces come from, if not
    from `model` on its device. Raises RequestError for a folder that holds something else, DataError naming a system
    that cannot be computed as it is given, StoppedError where `task.stop` says so; what is finished is kept.
    """
    task = task or RelaxTask()
    surface = surface or PotentialSurface(model)
    costs = _costs(model, dataset, task)
    with _only_writer(out):
        earlier = _open_together(out, _request(model, dataset, task))
        done = np.array([each.index for each in earlier], dtype=np.int64)
        mine = _share(costs, done)
        finished: list[Finished] = []
        error: OcpgemError | None = None
        members = (Member(index, dataset[index], int(costs[index])) for index in mine.tolist())
        try:
            name_of = _trajectory_names(dataset)
            _relax_share(
                _Share(surface, members, len(mine), len(costs) - len(done), out, name_of), task, finished
            )
        except OcpgemError as caught:
            error = caught
        group.raise_together(error)
        gathered = group.gather_objects(finished)
        return _on_main_write(gathered, earlier, dataset, out)


def _costs(model: Model, dataset: Dataset, task: RelaxTask) -> Ints:
    """The edges of each system: where they are limited those of the model's largest graph, else the stored ones."""
    if task.max_edges is None:
        return STORED_EDGES.of(dataset.sizes)
    found = [agreed_edge_cost(dataset, graph).at_most(dataset.sizes) for graph in graphs_of(model)]
    costs = max(found, key=lambda each: int(each.sum()))
    check_fits(costs, task.max_edges, "edges", 0, dataset.origin)
    return costs


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Rank 0 holds the folder's lock."""
    with ExitStack() as stack:
        error: OcpgemError | None = None
        if group.is_main():
            try:
                check_folder(out)
                stack.enter_context(only_writer(out))
            except OcpgemError as caught:
                error = caught
        group.raise_together(error)
        yield


def _open_together(out: Path, request: dict[str, Any]) -> list[Finished]:
    """What is finished already, found by rank 0; its error is everybody's error."""
    error: OcpgemError | None = None
    earlier: list[Finished] = []
    if group.is_main():
        try:
            earlier = open_folder(out, request)
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    return group.broadcast_object(earlier)


def _request(model: Model, dataset: Dataset, task: RelaxTask) -> dict[str, Any]:
    """What must be the same for a relaxation to go on."""
    settings = task.settings
    return {
        "model": fingerprint(model)[:16],
        "data": f"{len(dataset)} systems, checksum {zlib.crc32(np.ascontiguousarray(dataset.sizes).tobytes()):08x}",
        "fmax": settings.fmax,
        "steps": settings.steps,
        "optimizer": type(settings.optimizer).__name__.removesuffix("Settings").lower(),
        **dataclasses.asdict(settings.optimizer),
        "trajectories": task.trajectories,
        "record_every": settings.record_every,
    }


def _share(costs: Ints, done: Ints) -> Ints:
    """The systems of this rank: large ones first, so that too small a memory shows early, dealt forth and back."""
    remaining = np.setdiff1d(np.arange(len(costs)), done)
    ordered = remaining[np.argsort(-costs[remaining], kind="stable")]
    size, rank = group.world_size(), group.rank()
    rounds = np.arange(len(ordered)) // size
    places = np.arange(len(ordered)) % size
    owner = np.where(rounds % 2 == 0, places, size - 1 - places)
    return ordered[owner == rank]


@dataclass(frozen=True)
class _Share:
    """What a rank relaxes with what, and where results go.

    n_members, n_total: systems of this rank, of all; name_of: how the trajectory of a system is called.
    """

    surface: Surface
    members: Iterator[Member]
    n_members: int
    n_total: int
    out: Path
    name_of: Callable[[Relaxed], str]


def _relax_share(share: _Share, task: RelaxTask, finished: list[Finished]) -> None:
    """Relax systems and keep what is finished; raises StoppedError after a signal."""
    stop = task.stop
    if stop is not None:
        stop.wait_for_steps()
    parts = PartsWriter(share.out, group.rank())
    with systems_progress(task.progress, "relax", share.n_total) as advance:
        run = Relaxation(
            share.surface,
            task.settings,
            task.batch_size,
            task.max_edges,
            lambda: stop is not None and stop.between_steps() is not None,
        )
        try:
            for found in run.run(share.members):
                if task.trajectories != "none":
                    write_trajectory(found, share.out / TRAJECTORIES, share.name_of(found), task.trajectories)
                finished.append(Finished.of(found))
                parts.add(finished[-1])
                advance(1)
        finally:
            parts.flush()
    arrived = None if stop is None else stop.between_steps()
    if arrived is not None and len(finished) < share.n_members:
        raise StoppedError(
            arrived, f"what is finished is kept in {share.out}, and the same command goes on from there"
        )


def _trajectory_names(dataset: Dataset) -> Callable[[Relaxed], str]:
    """How the file of a system is called: sid_fid, or its number where those are not unique."""
    ids = np.stack((dataset.sids, dataset.fids), axis=1)
    if len(np.unique(ids, axis=0)) == len(ids):
        return lambda found: f"{found.system.sid}_{found.system.fid}"
    return lambda found: f"record_{found.index}"


def _on_main_write(
    gathered: list[list[Finished]] | None, earlier: Sequence[Finished], dataset: Dataset, out: Path
) -> RelaxReport | None:
    """Join what all ranks finished, in the order of the data set, and write it."""
    error: OcpgemError | None = None
    report: RelaxReport | None = None
    if group.is_main():
        assert gathered is not None, "rank 0 has gathered"
        try:
            report = _write(
                [*earlier, *(each for part in gathered for each in part)], dataset, out, len(earlier)
            )
        except OcpgemError as caught:
            error = caught
    group.raise_together(error)
    return report


def _write(finished: list[Finished], dataset: Dataset, out: Path, n_earlier: int) -> RelaxReport:
    finished = sorted(finished, key=lambda each: each.index)
    if [each.index for each in finished] != list(range(len(dataset))):
        raise DataError(
            f"{out}: {len(finished)} finished systems do not match the {len(dataset)} of {dataset.path}"
        )
    predictions = join([each.row for each in finished])
    write_predictions(predictions, out / RELAXED_FILE, "raw")
    write_table(finished, out / TABLE_FILE)
    assert predictions.converged is not None
    assert predictions.n_steps is not None
    return RelaxReport(
        path=out / RELAXED_FILE,
        predictions=predictions,
        n_earlier=n_earlier,
        n_converged=int(predictions.converged.sum()),
        mean_steps=float(predictions.n_steps.mean()),
        problems=[each.problem for each in finished if each.problem],
    )
