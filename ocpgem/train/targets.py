"""The normalisation of a run's targets: numbers and files of the configuration, and what is fitted to its records."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from ocpgem.config import parse_config
from ocpgem.data.dataset import Dataset
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.progress import systems_progress
from ocpgem.models.normalization import Normalization, table_of
from ocpgem.models.target_files import read_element_energies, read_mean_and_std
from ocpgem.train.element_fit import ElementFit, fit_elements
from ocpgem.train.target_moments import FitSample, Moments, gather_moments
from ocpgem.train.target_section import NormalizationSection

_RECORDS_FOR_ELEMENTS = 5_000
_RECORDS_FOR_PAIRS = 100_000
_RECORDS_PER_ELEMENT = 10
"""Fewer than this for each fitted energy is worth a remark."""
_NAMED = 8
"""Elements that a remark names."""


@dataclass(frozen=True)
class Targets:
    """A normalisation, the sums it was fitted to (None if nothing was fitted), and what a user should know of it."""

    normalization: Normalization
    moments: Moments | None
    remarks: list[str]


def given_targets(section: NormalizationSection) -> Normalization:
    """What numbers and files of the configuration give; what would be fitted is 0 and 1.

    Raises RequestError for a missing file, DataError for one with other content.
    """
    if section.file is not None:
        return _read_everything(Path(section.file))
    values = {
        name: value
        for name in ("energy_mean", "energy_std", "forces_std")
        if (value := getattr(section, name)) is not None
    }
    if section.energy_file is not None:
        mean, std = read_mean_and_std(section.energy_file, ("energy", "target"), "energy")
        values |= {"energy_mean": mean, "energy_std": std}
    if section.forces_file is not None:
        mean, values["forces_std"] = read_mean_and_std(
            section.forces_file, ("forces", "grad_target"), "forces"
        )
        if mean != 0:
            raise DataError(f"{section.forces_file}: forces cannot be shifted by a mean, here {mean} eV/A")
    references = section.element_references
    elements = section.element_energies
    if references is not None and references.file is not None:
        elements = read_element_energies(references.file)
    return Normalization.model_validate(values | {"element_energies": elements})


def fit_targets(section: NormalizationSection, dataset: Dataset, forces: bool, label: str) -> Targets:
    """The normalisation of a run; what is fitted is fitted to all training records, or to the sample asked for.

    forces: whether forces are trained on. Every rank calls it, reads its part of the records and returns the same.
    Raises DataError, naming the record, where labels are missing or records unusable.
    """
    given = given_targets(section)
    if not section.fits_something:
        return Targets(given, None, [])
    sample = FitSample(section.sample, forces)
    with systems_progress(True, label, len(sample.indices(len(dataset)))) as advance:
        moments = gather_moments(dataset, sample, advance)
    remarks: list[str] = []
    energies = table_of(given.element_energies).numpy()
    references = section.element_references
    if references is not None and references.fit is not None:
        fitted = fit_elements(moments, references.ridge if references.fit == "ridge" else None)
        energies = fitted.energies
        remarks += _remarks(fitted, moments)
    elements = given.element_energies
    if references is not None and references.fit is not None:
        elements = {int(number): float(energies[number]) for number in moments.elements}
    else:
        _require_elements(moments, elements)
    values = given.model_dump() | {"element_energies": elements}
    if section.fit:
        values |= _fitted_numbers(section, moments, energies, remarks)
    return Targets(Normalization.model_validate(values), moments, remarks)


def describe_targets(normalization: Normalization) -> str:
    """The numbers in one line."""
    n_elements = len(normalization.element_energies)
    references = f", energies of {n_elements} elements" if n_elements else ""
    return (
        f"energy {normalization.energy_mean:.4f} +- {normalization.energy_std:.4f} eV, "
        f"force components {normalization.forces_std:.4f} eV/A{references}"
    )


def symbols(numbers: tuple[int, ...] | list[int]) -> str:
    """Elements as a user writes them."""
    return ", ".join(chemical_symbols[number] for number in numbers)


def elements_of(dataset: Dataset) -> list[int]:
    """The atomic numbers that occur in at most 5,000 records, evenly spaced."""
    found: set[int] = set()
    for index in FitSample(_RECORDS_FOR_ELEMENTS).indices(len(dataset)).tolist():
        found.update(np.unique(dataset[index].atomic_numbers).tolist())
    return sorted(found)


def element_pairs_of(dataset: Dataset) -> list[tuple[int, int]]:
    """The pairs of atomic numbers, the smaller first, that occur in one system of at most 100,000 records."""
    found: set[tuple[int, ...]] = set()
    for index in FitSample(_RECORDS_FOR_PAIRS).indices(len(dataset)).tolist():
        found.add(tuple(np.unique(dataset[index].atomic_numbers).tolist()))
    pairs = {pair for numbers in found for pair in itertools.combinations_with_replacement(numbers, 2)}
    return sorted(pairs)


def require_references(normalization: Normalization, val_sets: dict[str, Dataset]) -> None:
    """Raise DataError if a validation set holds an element without the energy that others have.

    Found in a sample before the first step, and otherwise when the set is scored.
    """
    if normalization.elements is None:
        return
    for name, dataset in val_sets.items():
        missing = [number for number in elements_of(dataset) if number not in normalization.elements]
        if missing:
            raise DataError(
                f"{dataset.path} (val.{name}) holds {symbols(missing)}, for which the training records give no energy; "
                f"add it as normalization.element_energies or in a file, or choose another validation set"
            )


def _fitted_numbers(
    section: NormalizationSection, moments: Moments, energies: np.ndarray, remarks: list[str]
) -> dict[str, float]:
    """Mean and standard deviations that are neither given as numbers nor read."""
    found: dict[str, float] = {}
    mean, std = moments.residual(energies)
    if section.energy_file is None:
        if section.energy_mean is None:
            found["energy_mean"] = mean
        if section.energy_std is None:
            found["energy_std"] = std or 1.0
            remarks += (
                [] if std else ["the energies have no spread; their standard deviation is taken as 1 eV"]
            )
    if section.forces_std is None and section.forces_file is None:
        found["forces_std"] = moments.force_rms or 1.0
    return found


def _remarks(fitted: ElementFit, moments: Moments) -> list[str]:
    before, after = moments.residual(np.zeros_like(fitted.energies))[1], moments.residual(fitted.energies)[1]
    n_present = len(moments.elements)
    remarks = [
        f"energies of {n_present} elements fitted to {int(moments.n_records[0]):,} records: the standard deviation of "
        f"the energy is {before:.4g} eV without them and {after:.4g} eV with them"
    ]
    if after >= before:
        remarks.append(
            "these energies are not sums over elements (relative energies are not); leave the fit out"
        )
    if fitted.undetermined:
        several = fitted.undetermined[:_NAMED]
        more = f" and {len(fitted.undetermined) - _NAMED} others" if len(fitted.undetermined) > _NAMED else ""
        remarks.append(
            f"the compositions determine only {fitted.n_determined} combinations of the {n_present} energies; those of "
            f"{symbols(several)}{more} are not told apart, and the smallest are taken"
        )
    if moments.n_records[0] < _RECORDS_PER_ELEMENT * n_present:
        remarks.append(
            f"{int(moments.n_records[0]):,} records are few for {n_present} energies; they may fit no other records"
        )
    return remarks


def _require_elements(moments: Moments, elements: dict[int, float]) -> None:
    """Raise DataError if records hold an element for which the given references have no energy."""
    missing = [int(number) for number in moments.elements if number not in elements]
    if elements and missing:
        raise DataError(
            f"the training records hold {symbols(missing)}, but normalization gives no energy for it; it has them for "
            f"{symbols(sorted(elements))}"
        )


def _read_everything(path: Path) -> Normalization:
    if not path.is_file():
        raise RequestError(f"{path} (normalization.file) does not exist")
    try:
        return parse_config(path.read_text(), Normalization, str(path))
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not text; normalization.file takes what fit-targets writes, a normaliser goes to energy_file "
            "and forces_file"
        ) from None
