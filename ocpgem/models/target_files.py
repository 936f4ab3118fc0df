"""Normalisers and energies of elements from files, the released ones among them; nothing in a file is run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem.errors import CheckpointError, DataError, OcpgemError, RequestError, one_line
from ocpgem.models.import_weights.normalizers import element_energies_of, mean_and_std_of
from ocpgem.models.import_weights.safe_load import load_values
from ocpgem.models.normalization import MAX_ATOMIC_NUMBER
from ocpgem.zip_errors import ZIP_ERRORS

REFERENCE_ENDINGS = (".npz", ".pt", ".json")
NORMALIZER_ENDINGS = (".pt", ".json")
_NO_ENERGY = 1e-9
"""eV; a fit gives an element that did not occur 0 up to rounding."""


def read_element_energies(path: str | Path) -> dict[int, float]:
    """Energies in eV by atomic number.

    .npz: the released linear references of OC22, `coeff` by atomic number; .pt: those of fairchem,
    {energy: {element_references}}; .json: a map from symbols or atomic numbers. An energy of 0 in the first two stands
    for an element that has none. Raises RequestError for a missing file, DataError for other content.
    """
    path = _existing(path, REFERENCE_ENDINGS)
    if path.suffix == ".npz":
        found = _from_coefficients(path)
    elif path.suffix == ".pt":
        found = _released(path)
    else:
        found = _from_map(_json_map(path), path)
    wrong = [number for number, energy in found.items() if not math.isfinite(energy)]
    if wrong:
        raise DataError(f"{path}: the energy of element {wrong[0]} is not finite")
    if not found:
        raise DataError(f"{path} holds no energy of any element")
    return found


def read_mean_and_std(path: str | Path, names: tuple[str, ...], of: str) -> tuple[float, float]:
    """Mean and standard deviation of a normaliser: {mean, std or rmsd}, or a map with that under one of `names`.

    Raises RequestError for a missing file, DataError for other content.
    """
    path = _existing(path, NORMALIZER_ENDINGS)
    content = _torch_values(path) if path.suffix == ".pt" else _json_map(path)
    entry = next(
        (content[name] for name in names if isinstance(content, Mapping) and name in content), content
    )
    try:
        mean, std = mean_and_std_of(entry, of, str(path))
    except OcpgemError as error:
        raise DataError(str(error)) from None
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise DataError(f"{path}: the normaliser of {of} is not finite: mean {mean}, std {std}")
    return mean, std


def _existing(path: str | Path, endings: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix not in endings:
        raise RequestError(f"{path} must end in {', '.join(endings)}, which says what it holds")
    if not path.is_file():
        raise RequestError(f"{path} does not exist")
    return path


def _torch_values(path: Path) -> Any:
    try:
        return load_values(path)
    except OcpgemError as error:
        raise DataError(str(error)) from None


def _json_map(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a map")
    return content


def _released(path: Path) -> dict[int, float]:
    try:
        return element_energies_of(_torch_values(path), str(path))
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _from_coefficients(path: Path) -> dict[int, float]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "coeff" not in archive:
                raise DataError(f"{path} has no array coeff; it has {', '.join(archive.files) or 'none'}")
            table = archive["coeff"]
    except ZIP_ERRORS as error:
        raise DataError(f"{path} cannot be read as an archive of numbers: {one_line(error)}") from None
    if table.ndim != 1 or table.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: coeff is {table.dtype} of shape {list(table.shape)}, not energies by atomic number"
        )
    if not (np.abs(table[MAX_ATOMIC_NUMBER + 1 :]) < _NO_ENERGY).all():
        raise DataError(f"{path}: coeff goes beyond atomic number {MAX_ATOMIC_NUMBER}")
    if len(table) and not abs(table[0]) < _NO_ENERGY:
        raise DataError(f"{path}: coeff has an energy at 0, which is no atomic number")
    return {number: float(energy) for number, energy in enumerate(table) if not abs(energy) < _NO_ENERGY}


def _from_map(content: dict[str, Any], path: Path) -> dict[int, float]:
    from ase.data import atomic_numbers

    found: dict[int, float] = {}
    for key, energy in content.items():
        number = int(key) if key.isdecimal() else atomic_numbers.get(key, 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise DataError(f"{path}: {key[:40]!r} is neither the symbol nor the number of an element")
        if isinstance(energy, bool) or not isinstance(energy, int | float):
            raise DataError(f"{path}: the energy of {key} is not a number")
        if number in found:
            raise DataError(f"{path} names element {key} twice")
        found[number] = float(energy)
    return found
