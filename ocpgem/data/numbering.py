"""Which number each system and each frame of converted files gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ocpgem.errors import RequestError

ROWS = np.dtype(
    [
        ("file", "<i4"),
        ("record", "<i8"),
        ("atoms", "<u4"),
        ("has_sid", "?"),
        ("sid", "<i8"),
        ("has_fid", "?"),
        ("fid", "<i8"),
    ]
)
"""One row per record kept: file, record in it, checksum of its species, and the numbers that the file gives it."""


@dataclass(frozen=True)
class Numbers:
    """sids, fids: [n]; rule: how they came about, for people."""

    sids: NDArray[np.int64]
    fids: NDArray[np.int64]
    rule: str


def number_records(rows: NDArray[np.void], files: Sequence[str], renumber: bool) -> Numbers:
    """The numbers of all records, in their order.

    Where the files number their systems, theirs are kept. Elsewhere, and with `renumber`, systems are counted:
    consecutive frames of a file with the same atoms in the same order are one system, so that no split by system
    divides a trajectory; the frame number is the place in the file. Raises RequestError, naming two records, where
    only some have numbers or two have the same.
    """
    given = rows["has_sid"]
    if given.all() and not renumber:
        sids = rows["sid"].astype(np.int64)
        fids = np.where(rows["has_fid"], rows["fid"], rows["record"]).astype(np.int64)
        _check_unique(rows, sids, fids, files)
        return Numbers(sids, fids, "numbered as in the files")
    if given.any() and not renumber:
        with_number, without = int(np.argmax(given)), int(np.argmin(given))
        raise RequestError(
            f"{_place(rows, with_number, files)} has the number of a system (sid) and {_place(rows, without, files)} "
            "has none; --renumber numbers all anew"
        )
    rule = "consecutive frames of a file with the same atoms in the same order are one"
    if given.any():
        rule = (
            f"numbered anew in the order of the files, frames with the same sid in a file as one; else {rule}"
        )
    return Numbers(_counted(rows), rows["record"].astype(np.int64), rule)


def duplicate(
    sids: NDArray[np.int64], fids: NDArray[np.int64], owners: NDArray[np.int64] | None = None
) -> tuple[int, int] | None:
    """The places of two records that carry the same pair of numbers; None where there are none.

    owners: [n]; where given, only records of different owners count.
    """
    order = np.lexsort((fids, sids) if owners is None else (owners, fids, sids))
    same = (np.diff(sids[order]) == 0) & (np.diff(fids[order]) == 0)
    if owners is not None:
        same &= np.diff(owners[order]) != 0
    if not same.any():
        return None
    place = int(np.flatnonzero(same)[0])
    first, second = sorted((int(order[place]), int(order[place + 1])))
    return first, second


def _counted(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Systems counted from 0 in the order in which they first occur."""
    changed = (np.diff(rows["file"]) != 0) | (np.diff(rows["atoms"].astype(np.int64)) != 0)
    run = np.concatenate([[0], np.cumsum(changed)])
    own = np.where(rows["has_sid"], rows["sid"], run)
    keys = np.stack([rows["file"], rows["has_sid"], own])
    _, first, member = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[member.reshape(-1)]


def _check_unique(
    rows: NDArray[np.void], sids: NDArray[np.int64], fids: NDArray[np.int64], files: Sequence[str]
) -> None:
    pair = duplicate(sids, fids)
    if pair is not None:
        first, second = pair
        raise RequestError(
            f"{_place(rows, first, files)} and {_place(rows, second, files)} are both sid {sids[first]}, frame "
            f"{fids[first]}; --renumber numbers all anew"
        )


def _place(rows: NDArray[np.void], row: int, files: Sequence[str]) -> str:
    return f"{files[rows['file'][row]]}, record {rows['record'][row]}"
