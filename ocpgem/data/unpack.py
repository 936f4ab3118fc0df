"""Files out of a tar archive: only those that are wanted, and nothing outside the folder they should go to."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ocpgem.data.lmdb_store import write_atomically
from ocpgem.download import Progress
from ocpgem.errors import DataError, RequestError, one_line

Wanted = Callable[[PurePosixPath], str | None]
"""The folder, below that of all files, which a member goes to; None: it is not wanted."""

_CHUNK = 1 << 20
_DONE = "unpacked.json"


def unpack(archive: Path, folder: Path, wanted: Wanted, progress: Progress = lambda done, total: None) -> int:
    """Unpack the wanted files of `archive` below `folder`, keeping those that are there whole; returns their number.

    A file appears under its name when it is complete, so an unpacking that was killed goes on. Raises DataError,
    naming archive and member, for an archive that is damaged, or that holds a link, a device, a path that leads out
    of the folder or twice the same path; RequestError where the disk is too full.
    """
    total = archive.stat().st_size
    try:
        with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            return _unpack_all(tar, archive, folder, wanted, lambda: progress(file.tell(), total))
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(
            f"{archive} is damaged or cut off ({one_line(error)}); remove it and download it again"
        ) from None


def mark_unpacked(folder: Path, places: list[str]) -> None:
    """Write down, last, that all files of these places are below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _DONE, sorted({*places, *unpacked_places(folder)}))


def unpacked_places(folder: Path) -> set[str]:
    """The places whose files are all below `folder`."""
    file = folder / _DONE
    return set(json.loads(file.read_text())) if file.exists() else set()


def forget_unpacked(folder: Path, places: list[str]) -> None:
    """Remove the files of these places, and the folder where no others are left."""
    if not folder.is_dir():
        return
    others = sorted(unpacked_places(folder) - set(places))
    write_atomically(folder / _DONE, others)
    for place in places:
        shutil.rmtree(folder / place, ignore_errors=True)
    if not others:
        shutil.rmtree(folder)


def _unpack_all(
    tar: tarfile.TarFile, archive: Path, folder: Path, wanted: Wanted, tick: Callable[[], None]
) -> int:
    seen: set[PurePosixPath] = set()
    n_files = 0
    for member in tar:
        path = _safe_path(member, archive)
        if member.isdir():
            continue
        if path in seen:
            raise DataError(f"{archive} holds {path} twice; download it again")
        seen.add(path)
        place = wanted(path)
        if place is not None:
            _write(tar, member, folder / place / path, archive)
            n_files += 1
        tick()
    _read_to_end(tar)
    return n_files


def _read_to_end(tar: tarfile.TarFile) -> None:
    """Raise EOFError unless the block that ends an archive is there; what follows it checks the compression."""
    content = tar.fileobj
    assert content is not None  # it is open
    if (
        content.tell() < tar.offset + tarfile.BLOCKSIZE
    ):  # tarfile takes a file that ends between members as whole
        raise EOFError("its end is missing")
    while content.read(_CHUNK):
        pass


def _safe_path(member: tarfile.TarInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise DataError(f"{archive} is refused: {member.name!r} leads out of the folder it is unpacked to")
    if not (member.isreg() or member.isdir()):
        raise DataError(f"{archive} is refused: {member.name!r} is neither a file nor a folder")
    return path


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if member.size > free:
        raise RequestError(
            f"{target.parent} has {free / 1e9:.1f} GB free, but {member.name} of {archive.name} has "
            f"{member.size / 1e9:.1f} GB"
        )
    partial = target.with_name(f".{target.name}.partial")
    content = tar.extractfile(member)
    assert content is not None  # it is a file
    with partial.open("wb") as file:
        shutil.copyfileobj(content, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
    if partial.stat().st_size != member.size:
        raise DataError(
            f"{archive} is damaged or cut off: {member.name} has {partial.stat().st_size} of {member.size} bytes; "
            "remove it and download it again"
        )
    partial.replace(target)
