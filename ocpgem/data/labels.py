"""Which energy of a record is its target: that of the structure or the relaxed one, with or without a reference."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.pickled_arrays import load_plain
from ocpgem.data.sizes import SizeTable
from ocpgem.data.system import System
from ocpgem.errors import DataError, RequestError


@dataclass(frozen=True)
class SystemReferences:
    """Energies in eV by the number of a system (sid), ascending."""

    path: Path
    sids: NDArray[np.int64]
    energies: NDArray[np.float64]

    def of(self, system: System) -> float:
        """The reference of a system; raises DataError where there is none."""
        place = int(np.searchsorted(self.sids, system.sid))
        if place == len(self.sids) or self.sids[place] != system.sid:
            raise DataError(f"{system.where}: {self.path} has no reference energy for sid {system.sid}")
        return float(self.energies[place])


def read_system_references(path: str | Path) -> SystemReferences:
    """Read a map from systems to eV: a pickle such as OCP's oc20_ref.pkl, or JSON; keys are `random12` or `12`.

    Nothing in a pickle is run. Raises RequestError for a missing file, DataError for one that holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path} (reference energies of systems) does not exist")
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            value = json.loads(content)
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}") from None
    else:
        value = load_plain(content, str(path), len(content))
    if type(value) is not dict or not value:
        raise DataError(f"{path} does not hold a map from systems to energies in eV")
    pairs = sorted((_number_of(key, path), _energy_of(key, energy, path)) for key, energy in value.items())
    sids = np.array([sid for sid, _ in pairs], dtype=np.int64)
    twice = np.flatnonzero(np.diff(sids) == 0)
    if len(twice):
        raise DataError(f"{path} holds two energies for sid {sids[twice[0]]}")
    return SystemReferences(path, sids, np.array([energy for _, energy in pairs]))


def _number_of(key: str, path: Path) -> int:
    match = re.fullmatch(r"(?:random)?(\d{1,18})", key, re.ASCII)
    if match is None:
        raise DataError(f"{path}: {key[:40]!a} is not the number of a system, such as random12 or 12")
    return int(match[1])


def _energy_of(key: str, value: Any, path: Path) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(()).item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise DataError(f"{path}: the energy of {key[:40]!a} is not a finite number")
    return float(value)


class Relabelled(Dataset):
    """The systems of a data set with other energies.

    relaxed: take the energy of the relaxed structure, and no forces, which are not its own; references: add that of
    the system. This is the only place where energies of records are changed; what a model does about the rest, its
    normalisation, is in ocpgem.models.potential.
    required: refuse a system without a relaxed energy; else its energy is absent.
    Raises DataError, naming the system, for one without the energy or reference that is asked for.
    """

    def __init__(
        self,
        dataset: Dataset,
        relaxed: bool = False,
        references: SystemReferences | None = None,
        required: bool = True,
    ) -> None:
        self.path = dataset.path
        self._dataset, self._relaxed, self._references = dataset, relaxed, references
        self._required = required

    @property
    def stores_sizes(self) -> bool:
        """Whether the side table is known without reading records."""
        return self._dataset.stores_sizes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> System:
        system = self._dataset[index]
        if self._relaxed:
            if self._required and system.energy_relaxed is None:
                raise DataError(f"{system.where} has no energy_relaxed, which `energy: relaxed` asks for")
            system = replace(system, energy=system.energy_relaxed, forces=None)
        if self._references is not None:
            reference = self._references.of(system)
            system = replace(
                system,
                energy=_sum(system.energy, reference),
                energy_relaxed=_sum(system.energy_relaxed, reference),
            )
        return system

    @property
    def sizes(self) -> SizeTable:
        """The side table of the data set itself."""
        return self._dataset.sizes

    def rows(self, indices: NDArray[np.integer]) -> SizeTable:
        """The rows of the side table of some systems."""
        return self._dataset.rows(indices)

    def column(self, name: str) -> NDArray[Any]:
        """One column of the side table."""
        return self._dataset.column(name)

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """These systems will not be asked for."""
        self._dataset.leave_out(indices)

    def origin(self, index: int) -> str:
        """The file or folder that holds a system, and its number there."""
        return self._dataset.origin(index)


def _sum(energy: float | None, reference: float) -> float | None:
    return None if energy is None else energy + reference
