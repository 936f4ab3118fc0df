"""A configuration held against what is there, before anything is computed: files, data, model, ranks.

`train`, `submit` and `config check` all ask here, so that what one of them refuses is refused by the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ocpgem.data.dataset import Dataset
from ocpgem.errors import OcpgemError, RequestError, attempt, raise_all
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel.graph import require_groups
from ocpgem.train.batching import require_systems_for_all
from ocpgem.train.config import TrainConfig
from ocpgem.train.data_section import DataSetSection
from ocpgem.train.datasets import DataSets, edges_to_read, open_entry
from ocpgem.train.loggers import require_packages
from ocpgem.train.parameters import treatments
from ocpgem.train.scale_file import check_scale_file
from ocpgem.train.schedule import schedule_notes
from ocpgem.train.start import check_start
from ocpgem.train.targets import given_targets


@dataclass(frozen=True)
class Examined:
    """What was found.

    data: the data sets, opened, None where one cannot be; absent: files and folders that are not there, each with the
    section that names it; wrong: every other mistake; notes: what is possible but hardly meant.
    """

    data: DataSets | None
    absent: list[tuple[str, Path]]
    wrong: list[OcpgemError]
    notes: list[str]

    @property
    def mistakes(self) -> list[OcpgemError]:
        """Everything that a run would end with."""
        missing = [RequestError(f"{section}: {path} does not exist") for section, path in self.absent]
        return [*missing, *self.wrong]

    def require(self) -> DataSets:
        """The data sets; raises an error that names every mistake."""
        raise_all(self.mistakes)
        assert self.data is not None, "a data set that cannot be opened is a mistake"
        return self.data


def examine(
    config: TrainConfig, n_ranks: int | None, begun: bool = False, other_python: bool = False
) -> Examined:
    """Make every check of a run that reads no records and computes nothing.

    n_ranks: None where it is not known yet; begun: the run goes on from a checkpoint (`RunDirectory.has_begun`), so
    what it began with may be gone; other_python: the run has another Python, whose packages are not known here.
    """
    files = [(section, path) for section, path in config.files if section == "data" or not begun]
    absent = [(section, path) for section, path in files if not path.exists()]
    wrong: list[OcpgemError] = []
    data = _opened(config, wrong)
    for check in _checks_of_ranks(config, n_ranks):
        attempt(check, wrong)
    with torch.device("meta"):
        potential = Potential(config.model, Normalization())
    if not other_python:
        attempt(partial(require_packages, config.loggers), wrong)
    attempt(partial(treatments, potential, config.optim), wrong)
    if not begun:
        missing = {section for section, _ in absent}
        for section, check in _checks_of_beginning(config, potential).items():
            if section not in missing:
                attempt(check, wrong)
    return Examined(data, absent, wrong, schedule_notes(config.optim, config.steps))


def _opened(config: TrainConfig, wrong: list[OcpgemError]) -> DataSets | None:
    """The data sets, each opened although another cannot be; those with absent files are left out, without a word."""
    graph = edges_to_read(config)

    def opened(entry: DataSetSection) -> Dataset | None:
        if not all(Path(path).exists() for path in entry.files):
            return None
        return attempt(partial(open_entry, entry, graph), wrong)

    entries = config.data.train_sets
    train = [opened(entry) for entry in entries]
    val = {name: opened(entry) for name, entry in config.data.val_sets.items()}
    there = [each for each in train if each is not None]
    there_val = {name: each for name, each in val.items() if each is not None}
    if len(there) < len(train) or len(there_val) < len(val):
        return None
    return DataSets(there, [entry.weight for entry in entries], there_val)


def _checks_of_ranks(config: TrainConfig, n_ranks: int | None) -> list[Callable[[], object]]:
    size = config.parallel.graph
    if n_ranks is None:
        return []
    if n_ranks % size:
        return [partial(require_groups, size, n_ranks)]
    return [partial(require_systems_for_all, config, n_ranks)]


def _checks_of_beginning(config: TrainConfig, potential: Potential) -> dict[str, Callable[[], object]]:
    """The checks of what only the beginning of a run reads, by section."""
    checks: dict[str, Callable[[], object]] = {"normalization": partial(given_targets, config.normalization)}
    file = config.scale_factors.file
    if file is not None:
        checks["scale_factors.file"] = partial(check_scale_file, potential, Path(file))
    if config.start_from is not None:
        checks["start_from.checkpoint"] = partial(
            check_start, potential, config.start_from, factors=file is None
        )
    return checks
