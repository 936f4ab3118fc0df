"""The normalisation and element references of a released file, under the names of every age, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ocpgem.errors import CheckpointError
from ocpgem.models.normalization import MAX_ATOMIC_NUMBER, Normalization, table_of

_ENERGY_NAMES, _FORCES_NAMES = ("energy", "target"), ("forces", "grad_target")


@dataclass
class ReleasedNormalization:
    """What turns model values into eV and eV/A."""

    energy_mean: float = 0.0
    energy_std: float = 1.0
    forces_std: float = 1.0
    element_energies: dict[int, float] = field(default_factory=dict)
    """Atomic number -> eV."""
    absent_references: str | None = None
    """Where the configuration says that element references are, if the file does not hold them."""
    source: str = "the file has none"


def read_normalization(
    content: Mapping[str, Any], config: Mapping[str, Any], origin: str
) -> ReleasedNormalization:
    """The normalisers that the file stores, else those that its configuration names."""
    found = ReleasedNormalization(element_energies=element_energies_of(content.get("elementrefs"), origin))
    if not found.element_energies:
        found.absent_references = _references_in_config(config)
    energy = forces = None
    if "normalizers" in content:
        stored = content["normalizers"] or {}
        if not isinstance(stored, Mapping):
            raise CheckpointError(
                f"{origin}: its normalizers are a {type(stored).__name__}, not a dictionary"
            )
        energy, forces = _pick(stored, _ENERGY_NAMES), _pick(stored, _FORCES_NAMES)
        if energy is not None or forces is not None:
            found.source = "from the file's normalizers"
    else:
        energy, forces = _from_config(config)
        if energy is not None or forces is not None:
            found.source = "from the file's configuration"
    if energy is not None:
        found.energy_mean, found.energy_std = mean_and_std_of(energy, "energy", origin)
    if forces is not None:
        mean, found.forces_std = mean_and_std_of(forces, "forces", origin)
        if mean != 0:
            raise CheckpointError(
                f"{origin}: forces are normalised by the mean {mean} eV/A; only 0 has a meaning"
            )
    return found


def to_released(normalization: Normalization, has_forces: bool) -> dict[str, Any]:
    """The entries `normalizers` and `elementrefs` of a container of fairchem v1."""
    normalizers = {"energy": _state(normalization.energy_mean, normalization.energy_std)}
    if has_forces:
        normalizers["forces"] = _state(0.0, normalization.forces_std)
    references: dict[str, Any] = {}
    if normalization.element_energies:
        references["energy"] = {"element_references": _narrowed(table_of(normalization.element_energies))}
    return {"normalizers": normalizers, "elementrefs": references}


def _state(mean: float, std: float) -> dict[str, Tensor]:
    return {
        name: _narrowed(torch.tensor(value, dtype=torch.float64))
        for name, value in (("mean", mean), ("rmsd", std))
    }


def _narrowed(values: Tensor) -> Tensor:
    """In float32, as the released files have them, if that changes nothing."""
    return values.float() if values.float().double().equal(values) else values


def _pick(mapping: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((mapping[name] for name in names if name in mapping), None)


def _training_data(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of the training set, in the configurations of every age."""
    dataset = config.get("dataset") or {}
    if isinstance(dataset, list):
        dataset = dataset[0] if dataset else {}
    train: Mapping[str, Any] = dataset.get("train") or dataset
    return train


def _references_in_config(config: Mapping[str, Any]) -> str | None:
    dataset = _training_data(config)
    references = dataset.get("lin_ref") or (dataset.get("transforms") or {}).get("element_references")
    return str(references) if references else None


def _from_config(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The normalisers named by the training set: by its transforms (new) or by itself (old)."""
    dataset = _training_data(config)
    transforms = dataset.get("transforms") or {}
    normalizer = transforms.get("normalizer") or {}
    energy, forces = _pick(normalizer, _ENERGY_NAMES), _pick(normalizer, _FORCES_NAMES)
    if energy is None and forces is None and dataset.get("normalize_labels"):
        energy = {"mean": dataset.get("target_mean"), "std": dataset.get("target_std")}
        if dataset.get("grad_target_std") is not None:
            forces = {"mean": dataset.get("grad_target_mean", 0.0), "std": dataset["grad_target_std"]}
    return energy, forces


def mean_and_std_of(entry: Any, of: str, origin: str) -> tuple[float, float]:
    """Mean and standard deviation of a released normaliser; raises CheckpointError where it is none."""
    if not isinstance(entry, Mapping):
        raise CheckpointError(
            f"{origin}: the normaliser of {of} is a {type(entry).__name__}, not mean and std"
        )
    mean, std = _number(entry.get("mean", 0.0)), _number(_pick(entry, ("std", "rmsd", "stdev")))
    if mean is None or std is None or not std > 0:
        raise CheckpointError(
            f"{origin}: the normaliser of {of} needs a mean and a positive std; it has mean {mean}, std {std} "
            f"(fields: {', '.join(map(str, entry)) or 'none'})"
        )
    return mean, std


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def element_energies_of(references: Any, origin: str) -> dict[int, float]:
    """`elementrefs`: energy -> {element_references: [energies by atomic number, in eV]}, without those that are 0.

    Raises CheckpointError for anything else.
    """
    if references is None or (isinstance(references, Mapping) and not references):
        return {}
    entry = _pick(references, _ENERGY_NAMES) if isinstance(references, Mapping) else None
    table = entry.get("element_references") if isinstance(entry, Mapping) else entry
    others = set(references) - set(_ENERGY_NAMES) if isinstance(references, Mapping) else set()
    if not isinstance(table, Tensor) or table.ndim != 1 or others:
        raise CheckpointError(f"{origin}: its elementrefs are not energies by atomic number")
    if bool(table[MAX_ATOMIC_NUMBER + 1 :].ne(0).any()):
        raise CheckpointError(f"{origin}: its elementrefs go beyond atomic number {MAX_ATOMIC_NUMBER}")
    return {
        number: float(energy) for number, energy in enumerate(table.tolist()) if number > 0 and energy != 0
    }
