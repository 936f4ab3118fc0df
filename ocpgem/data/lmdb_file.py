"""Open LMDB files for reading: one handle per file and process, none inherited through fork."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from ocpgem.errors import DataError


class LmdbFile:
    """One open LMDB file with its only read transaction; lmdb allows one per file and process.

    Made by `open_lmdb`. Raises DataError, naming the file, for one that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid = os.getpid()
        self._env = _open_environment(path)
        self._transaction = self._env.begin()
        self._get = self._transaction.get

    def get(self, key: bytes, where: str = "") -> bytes | None:
        """The value of a key, None where there is none; `where` names the record for messages."""
        try:
            value: bytes | None = self._get(key)
        except lmdb.Error as error:
            raise DataError(_damaged(where or self.path, error)) from None
        return value

    def iter_keys(self) -> Iterator[bytes]:
        """All keys, in lmdb's order."""
        try:
            yield from self._transaction.cursor().iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise DataError(_damaged(self.path, error)) from None

    def close(self) -> None:
        """Close what was inherited through fork."""
        self._transaction.abort()
        self._env.close()


# lmdb refuses to open a file twice in one process, so data sets share the handle of a file.
_OPEN: WeakValueDictionary[str, LmdbFile] = WeakValueDictionary()


def open_lmdb(path: Path) -> LmdbFile:
    """The handle of a file, shared with whoever has it open in this process."""
    key = str(path.resolve())
    file = _OPEN.get(key)
    if file is not None and file.pid != os.getpid():
        file.close()  # inherited through fork: this process needs its own
        file = None
    if file is None:
        file = _OPEN[key] = LmdbFile(path)
    return file


def _damaged(where: object, error: lmdb.Error) -> str:
    return f"{where}: the LMDB is damaged ({error}); make the file anew"


def allow_open_files(count: int) -> None:
    """Let this process, and those it starts, keep so many more files open than before, as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _open_environment(path: Path) -> lmdb.Environment:
    if not path.is_file():
        raise DataError(f"{path} is missing or not a file; the data set is incomplete")
    if path.stat().st_size == 0:  # lmdb would say "Bad file descriptor"
        raise DataError(f"{path} is empty (0 bytes); copy or make it anew")
    try:
        environment = lmdb.open(
            str(path),
            subdir=False,
            readonly=True,
            lock=False,
            readahead=False,
            create=False,
            max_spare_txns=0,
        )
    except lmdb.Error as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path} cannot be opened as an LMDB ({reason})") from None
    # A page beyond the end of a truncated file would kill the process, so look before reading.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = path.stat().st_size
    if size < needed:
        environment.close()
        raise DataError(f"{path} is truncated: it has {size} of {needed} bytes; copy or make it anew")
    return environment
