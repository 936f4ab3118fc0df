"""What data sets that lie in several LMDB files share: which file a record is in, and handles that survive a fork."""

from __future__ import annotations

import bisect
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.dataset import Dataset
from ocpgem.data.lmdb_file import allow_open_files
from ocpgem.data.sizes import SizeTable
from ocpgem.data.system import System
from ocpgem.errors import RequestError

Shard = TypeVar("Shard")


class ShardedDataset(Dataset, Generic[Shard]):
    """Systems counted through files, one after another; safe in forked and in spawned workers.

    A kind of data set says how a file is opened, how a record is read from it, and where its side table is from.
    Files are opened when first read, once per process.
    """

    def __init__(self, path: Path, files: Sequence[Path], counts: Sequence[int]) -> None:
        self.path = path
        self._files = list(files)
        self._ends: list[int] = np.cumsum(counts).tolist()
        self._shards: dict[int, Shard] = {}
        self._table: SizeTable | None = None
        self._left_out: set[int] = set()
        self._pid = os.getpid()
        allow_open_files(len(self._files))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> System:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} records; there is no record {index}")
        number, place = self._locate(index)
        return self._read(self._shard(number), place, index)

    def origin(self, index: int) -> str:
        """The folder that holds a system and its number there, and in which of several files it is."""
        number, place = self._locate(index)
        file = f" (record {place} of {self._files[number].name})" if len(self._files) > 1 else ""
        return f"{self.path}, record {index}{file}"

    def _locate(self, index: int) -> tuple[int, int]:
        """The number of the file that holds a record, and its place there."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    @property
    def sizes(self) -> SizeTable:
        """The side table, one row per record; read or made when first asked for."""
        if self._table is None:
            self._table = self._load_sizes()
        return self._table

    def leave_out(self, indices: NDArray[np.integer]) -> None:
        """These systems will not be asked for; a side table that is made from records does not read them."""
        self._left_out.update(indices.tolist())

    def is_left_out(self, index: int) -> bool:
        """Whether `leave_out` has named this system."""
        return index in self._left_out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}, "_table": None}

    @abstractmethod
    def _open(self, file: Path) -> Shard:
        """Open a file."""

    @abstractmethod
    def _read(self, shard: Shard, place: int, index: int) -> System:
        """Record `place` of a file, which is record `index` of the data set."""

    @abstractmethod
    def _load_sizes(self) -> SizeTable:
        """The side table."""

    def _shard(self, number: int) -> Shard:
        if self._pid != os.getpid():
            self._shards, self._pid = {}, os.getpid()
        shard = self._shards.get(number)
        if shard is None:
            shard = self._shards[number] = self._open(self._files[number])
        return shard


def existing(path: str | Path) -> Path:
    """The path; raises RequestError where there is nothing."""
    path = Path(path)
    if not path.exists():
        raise RequestError(f"{path} does not exist")
    return path
