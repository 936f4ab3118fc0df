"""Which records of a data set make a subset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.permutation import permuted
from ocpgem.errors import DataError, RequestError

Indices = NDArray[np.int64]


def first_records(count: int, n: int, where: str) -> Indices:
    """The first `n` of `count` records; raises RequestError where there are fewer."""
    if n > count:
        raise RequestError(f"{where} has {count} records; it has no first {n}")
    return np.arange(n)


def random_records(count: int, fraction: float, seed: int) -> Indices:
    """round(fraction * count) records, at least one, ascending; those of a larger fraction include a smaller one's."""
    chosen = permuted(np.arange(max(1, round(fraction * count))), count, seed)
    return np.sort(chosen)


def records_of_file(file: str | Path, count: int, where: str) -> Indices:
    """Record numbers from a text file (separated by white space) or a .npy file, in their order.

    Raises RequestError for a missing file, DataError for anything but different numbers below `count`.
    """
    file = Path(file)
    if not file.is_file():
        raise RequestError(f"{file} (indices of a subset of {where}) does not exist")
    indices = _read(file)
    if len(indices) == 0:
        raise DataError(f"{file} holds no record numbers")
    wrong = np.flatnonzero((indices < 0) | (indices >= count))
    if len(wrong):
        raise DataError(
            f"{file} asks for record {indices[wrong[0]]} of {where}, which has records 0 to {count - 1}"
        )
    numbers, counts = np.unique(indices, return_counts=True)
    if counts.max() > 1:
        raise DataError(
            f"{file} names record {numbers[counts.argmax()]} {counts.max()} times; weight repeats records"
        )
    return indices


def _read(file: Path) -> Indices:
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
            if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                raise ValueError(f"it holds {array.dtype} numbers of shape {array.shape}")
            return np.asarray(array, dtype=np.int64)
        return np.array([int(word) for word in file.read_text().split()], dtype=np.int64)
    except (ValueError, OverflowError, EOFError) as error:
        raise DataError(
            f"{file} does not hold record numbers as text or as one .npy array: {error}"
        ) from None
