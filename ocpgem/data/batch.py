"""Systems as PyTorch Geometric data: single systems, and batches made by concatenating arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.data import Batch, Data

from ocpgem.data.system import MAX_ATOMIC_NUMBER, System, degenerate_cells
from ocpgem.errors import DataError

ATOM_KEYS = ("pos", "atomic_numbers", "tags", "fixed", "forces", "pos_relaxed", "hidden")
OPTIONAL_KEYS = ("energy", "forces", "energy_relaxed", "pos_relaxed")
FINITE_KEYS = ("pos", "cell", *OPTIONAL_KEYS)


class AtomicData(Data):
    """One system as a PyG object; absent labels are absent attributes.

    pos [n, 3] float32 A, cell [1, 3, 3] float32 A (rows), pbc [1, 3] bool, atomic_numbers [n] int64,
    tags [n] int64, fixed [n] bool, natoms [1], sid [1], fid [1] int64, energy [1] float64 eV,
    forces [n, 3] float32 eV/A, energy_relaxed [1] float64 eV, pos_relaxed [n, 3] float32 A,
    hidden [n] bool: in training, atoms whose element the model is not told (`data.hide_elements`).
    """


def to_data(system: System) -> AtomicData:
    """The system as PyG data; the arrays are copied."""
    columns = {key: torch.from_numpy(value) for key, value in _columns([system]).items()}
    return AtomicData(**columns)


def collate(
    systems: Sequence[System],
    max_atomic_number: int = MAX_ATOMIC_NUMBER,
    hidden: NDArray[np.bool_] | None = None,
    elements: Sequence[int] | None = None,
) -> Batch:
    """Validate systems and join them: equal to `Batch.from_data_list([to_data(s) for s in systems])`, faster.

    hidden: atoms [n] over all systems whose element is not to be told to the model; elements: those that a model has
    reference energies for, where it has any.
    Raises DataError, naming the system, for values or shapes no model can use, an element beyond
    `max_atomic_number` or not among `elements`, or labels that only some of the systems have.
    """
    for system in systems:
        system.check_shapes()
    columns = _columns(systems)
    _check_values(systems, columns, max_atomic_number)
    if elements is not None and not np.isin(columns["atomic_numbers"], elements).all():
        raise DataError(_unreferenced(systems, elements))
    if hidden is not None:
        columns["hidden"] = hidden
    return batch_from_columns(columns)


def with_common_labels(systems: Sequence[System]) -> list[System]:
    """The systems with the labels that are there and finite in all of them; the others are left out."""
    lacking = [key for key in OPTIONAL_KEYS if not all(_is_known(getattr(each, key)) for each in systems)]
    bare: dict[str, Any] = dict.fromkeys(lacking)
    return [replace(system, **bare) for system in systems] if lacking else list(systems)


def _is_known(label: float | NDArray[Any] | None) -> bool:
    return label is not None and bool(np.isfinite(label).all())


def batch_from_columns(columns: dict[str, NDArray[Any]]) -> Batch:
    """A PyG batch around concatenated arrays (not copied), with the bookkeeping of PyG's own collate."""
    n_atoms = torch.from_numpy(columns["natoms"])
    n_systems = len(n_atoms)
    ptr = torch.zeros(n_systems + 1, dtype=torch.int64)
    torch.cumsum(n_atoms, 0, out=ptr[1:])
    one_each = torch.arange(n_systems + 1)
    zeros = torch.zeros(n_systems, dtype=torch.int64)
    batch = Batch(_base_cls=AtomicData)
    store = batch._store
    slices: dict[str, torch.Tensor] = {}
    for key, value in columns.items():
        store[key] = torch.from_numpy(value)
        slices[key] = ptr if key in ATOM_KEYS else one_each
    store["batch"] = torch.repeat_interleave(torch.arange(n_systems), n_atoms)
    store["ptr"] = ptr
    batch._num_graphs = n_systems
    batch._slice_dict = slices
    batch._inc_dict = dict.fromkeys(columns, zeros)
    return batch


def _columns(systems: Sequence[System]) -> dict[str, NDArray[Any]]:
    """Every field of all systems, concatenated, in the types a batch has."""
    columns: dict[str, NDArray[Any]] = {
        "pos": np.concatenate([s.pos for s in systems]),
        "cell": np.stack([s.cell for s in systems]),
        "pbc": np.stack([s.pbc for s in systems]),
        "atomic_numbers": np.concatenate([s.atomic_numbers for s in systems]).astype(np.int64),
        "tags": np.concatenate([s.tags for s in systems]).astype(np.int64),
        "fixed": np.concatenate([s.fixed for s in systems]),
        "natoms": np.array([s.n_atoms for s in systems], dtype=np.int64),
        "sid": np.array([s.sid for s in systems], dtype=np.int64),
        "fid": np.array([s.fid for s in systems], dtype=np.int64),
    }
    for key in OPTIONAL_KEYS:
        values = [getattr(s, key) for s in systems]
        present = [value is not None for value in values]
        if all(present):
            atomwise = key in ATOM_KEYS
            columns[key] = np.concatenate(values) if atomwise else np.array(values, dtype=np.float64)
        elif any(present):
            absent, other = systems[present.index(False)], systems[present.index(True)]
            raise DataError(f"{absent.where} has no {key} but {other.where} has; a batch needs all or none")
    return columns


def _unreferenced(systems: Sequence[System], elements: Sequence[int]) -> str:
    """What is wrong with the first system that has an element without a reference energy."""
    from ase.data import chemical_symbols

    known = ", ".join(chemical_symbols[number] for number in sorted(elements))
    for system in systems:
        unknown = np.setdiff1d(system.atomic_numbers, elements)
        if len(unknown):
            break
    return (
        f"{system.where} holds {chemical_symbols[unknown[0]]}, for which the model has no reference energy; "
        f"it has them for {known}"
    )


def _check_values(
    systems: Sequence[System], columns: dict[str, NDArray[Any]], max_atomic_number: int
) -> None:
    """Check all systems at once; only where something is wrong look for the system and let it say what."""
    numbers = columns["atomic_numbers"]
    usable = (
        all(np.isfinite(columns[key]).all() for key in FINITE_KEYS if key in columns)
        and numbers.min() >= 1
        and numbers.max() <= max_atomic_number
        and not degenerate_cells(columns["cell"], columns["pbc"]).any()
    )
    if not usable:
        for system in systems:
            system.validate(max_atomic_number)
