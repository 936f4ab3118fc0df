"""Records that a run cannot use: found before the first step by all ranks, left out by all of them alike, and listed.

What is left out is not in the data sets any more when batches are planned, so that counts, shares of the loss and the
order of the records are those of what is left, on any number of ranks and after every resume.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem.data.dataset import Dataset
from ocpgem.data.screening import Limits
from ocpgem.data.sizes import CUTOFF
from ocpgem.data.system import System
from ocpgem.data.without import Without
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.progress import systems_progress
from ocpgem.files import write_text
from ocpgem.graph.neighbors import neighbor_search
from ocpgem.parallel import group
from ocpgem.train.batching import keep_edge_cost
from ocpgem.train.config import DataSection, TrainConfig
from ocpgem.train.datasets import DataSets, edges_to_read, open_training_sets, open_validation_sets

LIST_FILE = "skipped.jsonl"
CHECK_FILE = "checked.json"
_TICK = 100
"""Records between two looks at the progress bar."""


@dataclass(frozen=True)
class Skipped:
    """A record that is left out.

    data_set: as in `DataSets.named`; index: its number there; record: file or folder, and its number there; sid, fid:
    None where it cannot be read.
    """

    data_set: str
    index: int
    record: str
    sid: int | None
    fid: int | None
    reason: str


@dataclass(frozen=True)
class Check:
    """What a record must be like: labels and limits, the model's heaviest element, and its cutoff in A."""

    limits: Limits
    max_atoms: int | None
    heaviest: int
    cutoff: float

    def fault(self, dataset: Dataset, index: int) -> tuple[System | None, str | None]:
        """A record, if it can be read, and why it cannot be used; None where it can."""
        try:
            system = dataset[index]
        except DataError as error:
            return None, str(error)
        fault = self.limits.fault(system)
        if fault is None and system.atomic_numbers.max() > self.heaviest:
            fault = f"element {system.atomic_numbers.max()} beyond {self.heaviest}, the model's heaviest"
        if fault is None and self.max_atoms is not None and system.n_atoms > self.max_atoms:
            fault = f"{system.n_atoms} atoms, more than {self.max_atoms}"
        if fault is None and not self._has_edges(dataset, index, system):
            fault = f"no two atoms within {self.cutoff:g} A"
        return system, fault

    def _has_edges(self, dataset: Dataset, index: int, system: System) -> bool:
        if dataset.stores_sizes and self.cutoff >= CUTOFF:
            return bool(dataset.rows(np.array([index]))["n_edges"][0] > 0)
        try:
            return len(neighbor_search(system.pos, system.cell, system.pbc, self.cutoff).target) > 0
        except DataError:
            return False


def leave_out_unusable(
    config: TrainConfig, data: DataSets, folder: Path | None, say: Callable[[str], None]
) -> DataSets:
    """The data sets of a run without the records that it cannot use, if its configuration allows that.

    folder: the run directory, where the records are listed in `skipped.jsonl`; a run that is resumed leaves out those
    that it left out before, without another look. Every rank calls it. Raises DataError where more records are unusable
    than `data.skip.at_most`, RequestError where a data set has changed since the run began.
    """
    if not config.data.skip.allow:
        return data
    named = data.named
    known = group.on_main(lambda: None if folder is None else read_skipped(folder, named))
    skipped = known if known is not None else _look(config, named)
    if known is None and config.data.max_edges is not None:
        skipped += group.on_main(lambda: _oversize(config, data, skipped, folder))
    counts = Counter(entry.data_set for entry in skipped)
    if known is None:
        group.on_main(lambda: _keep(folder, named, skipped, config.data.skip.at_most))
    for name, dataset in named.items():
        if counts[name]:
            say(f"{counts[name]:,} of {len(dataset):,} records of {name} cannot be used and are left out")
    if skipped and folder is not None:
        say(f"they are listed in {folder / LIST_FILE}")
    return data.replaced(without(named, skipped))


def usable_training_set(config: TrainConfig, say: Callable[[str], None]) -> Dataset:
    """The training set of a configuration without a run: without what cannot be used, if that is allowed."""
    data = open_training_sets(config.data, edges_to_read(config))
    return leave_out_unusable(config, data, None, say).training_set


def usable_validation_sets(data: DataSection, folder: Path) -> dict[str, Dataset]:
    """The validation sets of a run, without what it left out of them."""
    sets = open_validation_sets(data)
    named = {f"val.{name}": dataset for name, dataset in sets.items()}
    skipped = read_skipped(folder, named) if data.skip.allow else None
    return dict(zip(sets, without(named, skipped or []).values(), strict=True))


def summary_of_skipped(folder: Path) -> list[str]:
    """One line about what a run left out, if it was allowed to leave anything out."""
    file = folder / CHECK_FILE
    if not file.is_file():
        return []
    checked = json.loads(file.read_text())
    parts = [f"{entry['left_out']:,} of {entry['records']:,} in {name}" for name, entry in checked.items()]
    listed = (
        f", listed in {folder / LIST_FILE}" if any(entry["left_out"] for entry in checked.values()) else ""
    )
    return [f"unusable records left out: {', '.join(parts)}{listed}"]


def without(named: dict[str, Dataset], skipped: list[Skipped]) -> dict[str, Dataset]:
    """Data sets without the records that are left out."""
    found = {}
    for name, dataset in named.items():
        indices = np.array(sorted(entry.index for entry in skipped if entry.data_set == name), dtype=np.int64)
        found[name] = Without(dataset, indices) if len(indices) else dataset
    return found


def read_skipped(folder: Path, named: dict[str, Dataset]) -> list[Skipped] | None:
    """What a run leaves out; None if it has not looked yet.

    Raises RequestError where a data set has another number of records than when the run looked at it.
    """
    file = folder / CHECK_FILE
    if not file.is_file():
        return None
    try:
        checked: dict[str, Any] = json.loads(file.read_text())
        skipped = [Skipped(**json.loads(line)) for line in (folder / LIST_FILE).read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"{folder / LIST_FILE} cannot be read ({error}); choose another --run-dir"
        ) from None
    for name, dataset in named.items():
        before = checked.get(name, {}).get("records")
        if before != len(dataset):
            raise RequestError(
                f"{dataset.path} ({name}) has {len(dataset)} records, but {before} when the run in {folder} looked for "
                "unusable ones; choose another --run-dir"
            )
    return skipped


def _look(config: TrainConfig, named: dict[str, Dataset]) -> list[Skipped]:
    """Every unusable record of every set, in order; each rank looks at its part."""
    mine: list[Skipped] = []
    done = 0
    total = sum(len(dataset) for dataset in named.values())
    with systems_progress(True, "looking for unusable records", total) as advance:
        for name, dataset in named.items():
            check = _check_of(config, name, dataset)
            for index in np.array_split(np.arange(len(dataset)), group.world_size())[group.rank()].tolist():
                system, fault = check.fault(dataset, index)
                if fault is not None:
                    mine.append(_entry(name, dataset, index, system, fault))
                done += 1
                if done % _TICK == 0:
                    advance(_TICK)
    parts = group.gather_objects(mine)
    everything = group.broadcast_object(parts) or []
    order = list(named)
    found = [entry for part in everything for entry in part]
    return sorted(found, key=lambda entry: (order.index(entry.data_set), entry.index))


def _entry(name: str, dataset: Dataset, index: int, system: System | None, fault: str) -> Skipped:
    sid, fid = (None, None) if system is None else (system.sid, system.fid)
    if system is None and dataset.stores_sizes:
        row = dataset.rows(np.array([index]))[0]
        sid, fid = int(row["sid"]), int(row["fid"])
    return Skipped(name, index, dataset.origin(index), sid, fid, fault)


def _oversize(
    config: TrainConfig, data: DataSets, skipped: list[Skipped], folder: Path | None
) -> list[Skipped]:
    """Training records, of those not skipped yet, that alone exceed what a rank may compute at once."""
    named, most = data.named, config.data.max_edges
    assert most is not None, "asked only where there is a limit"
    cost = keep_edge_cost(
        folder, data.replaced(without(named, skipped)).training_set, config.model.graph_spec
    )
    found = []
    for name, dataset in named.items():
        if not name.startswith("train"):
            continue
        gone = {entry.index for entry in skipped if entry.data_set == name}
        for first, rows in dataset.rows_in_order():
            edges = cost.at_most(rows)
            for place in np.flatnonzero(edges > most).tolist():
                index, row = first + place, rows[place]
                if index not in gone:
                    reason = f"up to {edges[place]} edges, more than max_edges {most}"
                    sid, fid = int(row["sid"]), int(row["fid"])
                    found.append(Skipped(name, index, dataset.origin(index), sid, fid, reason))
    return found


def _check_of(config: TrainConfig, name: str, dataset: Dataset) -> Check:
    """Training records need what is trained on; limits are for them alone, so that scores stay comparable."""
    skip, model = config.data.skip, config.model
    if name.startswith("train"):
        require = "forces" if config.loss.forces > 0 else "energy"
        limits = Limits(
            "forces" if require == "forces" else "energy", skip.max_force, skip.max_energy_per_atom
        )
        return Check(limits, skip.max_atoms, model.n_elements, model.neighbors.cutoff)
    return Check(
        Limits("forces" if _has_forces(dataset) else "energy"), None, model.n_elements, model.neighbors.cutoff
    )


def _has_forces(dataset: Dataset) -> bool:
    """Whether the first readable record of a validation set has forces, as then all of them must."""
    for index in range(len(dataset)):
        try:
            return dataset[index].forces is not None
        except DataError:
            continue
    return True


def _keep(folder: Path | None, named: dict[str, Dataset], skipped: list[Skipped], at_most: float) -> None:
    """Refuse too many, else write what is left out."""
    checked = {}
    for name, dataset in named.items():
        mine = [entry for entry in skipped if entry.data_set == name]
        if len(mine) > at_most * len(dataset) or len(mine) == len(dataset):
            reason, count = Counter(entry.reason for entry in mine).most_common(1)[0]
            raise DataError(
                f"{len(mine)} of {len(dataset)} records of {dataset.path} ({name}) cannot be used, more than "
                f"data.skip.at_most allows ({at_most:g} of them); {count} for this reason: {reason}; the first is "
                f"{mine[0].record}"
            )
        checked[name] = {"path": str(dataset.path), "records": len(dataset), "left_out": len(mine)}
    if folder is not None:
        write_text(folder / LIST_FILE, "".join(json.dumps(asdict(entry)) + "\n" for entry in skipped))
        write_text(folder / CHECK_FILE, json.dumps(checked, indent=2) + "\n")
