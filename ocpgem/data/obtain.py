"""A published archive to data sets of ocpgem: download, compare, unpack, count, convert, tidy up.

Every stage goes on where it was killed. A data set appears under its name only when it has as many records as were
published; it holds `archive.json`, which says where it is from.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from ocpgem.data.archives import BASE_URL, BYTES_PER_FRAME, Archive, Split
from ocpgem.data.convert import Conversion, Options, convert_files
from ocpgem.data.folder import Summary, only_writer
from ocpgem.data.lmdb_store import METADATA_FILE, LmdbDataset, write_atomically
from ocpgem.data.raw_oc20 import convert_raw_oc20, count_labels, find_chunks
from ocpgem.data.released_lmdb import count_released
from ocpgem.data.screening import Limits
from ocpgem.data.unpack import forget_unpacked, mark_unpacked, unpack, unpacked_places
from ocpgem.data.workers import check_workers
from ocpgem.download import Patience, Progress, checksums, download
from ocpgem.errors import DataError, DownloadError, RequestError

Say = Callable[[str], object]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Shows the progress, in bytes, of what it is called with."""

_ORIGIN = "archive.json"
_RAW_ENDINGS = (".extxyz.xz", ".txt.xz", ".extxyz", ".txt")


@dataclass(frozen=True)
class Order:
    """What to obtain, and how.

    Attributes:
        archive: from the catalogue (ocpgem.data.archives).
        out: each split becomes the data set OUT/SPLIT.
        store: folder in which the archive is downloaded and unpacked, in one of its name.
        splits: names of the splits that are wanted; None: all.
        base_url: where the archive's place is looked for.
        keep_archive: leave the archive in `store` at the end.
        verify: compare the checksum and the numbers of records with the published ones.
        workers: processes of the conversion, by default one per core.
    """

    archive: Archive
    out: Path
    store: Path
    splits: list[str] | None = None
    base_url: str = BASE_URL
    keep_archive: bool = False
    verify: bool = True
    workers: int | None = None
    patience: Patience = field(default_factory=Patience)

    @property
    def work(self) -> Path:
        """Where this archive is downloaded and unpacked."""
        return self.store / self.archive.name

    @property
    def file(self) -> Path:
        """The archive."""
        return self.work / Path(self.archive.file).name

    @property
    def unpacked(self) -> Path:
        """Below it the files of each split."""
        return self.work / "unpacked"

    def target(self, split: Split) -> Path:
        """The data set that is made of a split."""
        return self.out / split.name

    def staging(self, split: Split) -> Path:
        """Where it is until it is complete and counted."""
        target = self.target(split)
        return target.with_name(f".{target.name}.partial")


def obtain(order: Order, say: Say, bar: Bar) -> list[Path]:
    """Make the data sets of an order; returns their folders. What is there already is not made again.

    say: gets a sentence on every stage. Raises RequestError where something else is in the way or a disk is too
    small for the archive, its files and the result together; DownloadError where the archive cannot be had;
    DataError where it is damaged or has another number of records than was published.
    """
    splits = order.archive.chosen(order.splits)
    _check(order)
    missing = [split for split in splits if not _is_made(order, split)]
    for split in splits:
        if split not in missing:
            say(f"{order.target(split)} is there already")
    if missing:
        _require_space(order, missing)
    if missing or order.work.is_dir():
        _work(order, splits, missing, say, bar)
    return [order.target(split) for split in splits]


def _check(order: Order) -> None:
    """Raise RequestError for what cannot be done whatever the archive holds."""
    if not order.base_url.startswith(("http://", "https://")):
        raise RequestError(f"{order.base_url!r} is no address; --base-url begins with http:// or https://")
    if order.workers is not None:
        check_workers(order.workers)
    for folder in (order.out, order.store):
        nearest = _existing(folder)
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise RequestError(f"{folder} cannot be made: {nearest} is not a folder that you may write to")


def _work(order: Order, splits: tuple[Split, ...], missing: list[Split], say: Say, bar: Bar) -> None:
    """What has to be done, while nobody else does it."""
    order.work.mkdir(parents=True, exist_ok=True)
    try:
        with only_writer(order.work):
            if missing:
                _make(order, missing, say, bar)
            _tidy(order, splits, say)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RequestError(
            f"the disk is full ({error}); free some space, and the same command goes on"
        ) from None
    finally:
        for folder in (order.work, order.store, order.out):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _is_made(order: Order, split: Split) -> bool:
    """Whether a split is there; raises RequestError where something else is in its place."""
    target = order.target(split)
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    origin = target / _ORIGIN
    found = json.loads(origin.read_text()) if origin.exists() else {}
    if not (target / METADATA_FILE).exists() or found.get("archive") != order.archive.name:
        raise RequestError(
            f"{target} is there already and not from {order.archive.name}; remove it or choose another --out"
        )
    if len(LmdbDataset(target)) != found["n_frames"]:
        raise DataError(
            f"{target} does not have the {found['n_frames']:,} records it was made with; make it anew"
        )
    return True


def _make(order: Order, missing: list[Split], say: Say, bar: Bar) -> None:
    done = unpacked_places(order.unpacked)
    if not {split.name for split in missing} <= done:
        _fetch(order, say, bar)
        with bar("unpacking") as progress:
            n_files = unpack(order.file, order.unpacked, partial(_place, order.archive, missing), progress)
        for split in missing:
            if not (order.unpacked / split.name).is_dir():
                raise DataError(f"{order.file} holds no files of the split {split.name}; see --splits")
        mark_unpacked(order.unpacked, [split.name for split in missing])
        say(f"unpacked {n_files} files")
    for split in missing:
        _convert(order, split, say)


def _place(archive: Archive, splits: list[Split], path: PurePosixPath) -> str | None:
    """The split that a file of the archive belongs to."""
    if archive.kind == "raw":
        return splits[0].name if path.name.endswith(_RAW_ENDINGS) else None
    if path.suffix != ".lmdb":
        return None
    for split in splits:
        folders = PurePosixPath(split.folder).parts
        if path.parent.parts[-len(folders) :] == folders:
            return split.name
    return None


def _fetch(order: Order, say: Say, bar: Bar) -> None:
    """The archive, complete and as published; one that somebody put there is compared as well."""
    url = order.base_url.rstrip("/") + "/" + order.archive.file
    md5 = order.archive.md5 if order.verify else None
    compared = order.file.with_name(order.file.name + ".md5")
    if not order.file.exists():
        say(f"downloading {url} to {order.file}")
        with bar(order.file.name) as progress:
            download(url, order.file, progress=progress, patience=order.patience, md5=md5)
        compared.write_text(md5 or "")
    elif md5 is not None and not (compared.exists() and compared.read_text() == md5):
        say(f"{order.file} is there already; comparing its checksum")
        with bar("checking") as progress:
            found = checksums(order.file, ["md5"], progress)["md5"]
        if found != md5:
            raise DownloadError(
                f"the checksum of {order.file} is {found} instead of {md5} (md5); remove the file to download it anew"
            )
        compared.write_text(md5)
    say("its MD5 checksum is as published" if md5 else "its checksum is not compared with a published one")


def _convert(order: Order, split: Split, say: Say) -> None:
    """Count, convert and count again; then give the data set its name."""
    source, staging = order.unpacked / split.name, order.staging(split)
    n_found = _count(order.archive, source)
    _compare(order, split, n_found, "the archive holds")
    staging.parent.mkdir(parents=True, exist_ok=True)
    if order.archive.kind == "raw":
        made: Summary | Conversion = convert_raw_oc20(source, staging, order.workers)
        lost = "some lines of the txt files have no frame"
    else:
        made = convert_files([source], staging, Options(limits=Limits(split.require)), order.workers)
        lost = "; ".join(line.strip() for line in made.report.lines())
    n_made = len(LmdbDataset(staging))
    if n_made != n_found and order.verify:
        shutil.rmtree(staging)
        raise DataError(f"{split.name}: {n_found:,} records became {n_made:,} and were removed again; {lost}")
    origin = {
        "archive": order.archive.name,
        "split": split.name,
        "n_frames": n_made,
        "md5": order.archive.md5,
    }
    write_atomically(staging / _ORIGIN, origin)
    staging.rename(order.target(split))
    say(str(made).replace(str(staging), str(order.target(split))))
    say(f"{split.name}: {n_made:,} records{_agreement(order, split, n_made)}")


def _count(archive: Archive, folder: Path) -> int:
    """The number of records that a conversion of the folder will find."""
    if archive.kind == "raw":
        return sum(count_labels(chunk) for chunk in find_chunks(folder))
    return sum(count_released(file) for file in sorted(folder.rglob("*.lmdb")))


def _compare(order: Order, split: Split, n_found: int, who: str) -> None:
    if order.verify and split.n_frames is not None and n_found != split.n_frames:
        raise DataError(
            f"{split.name}: {who} {n_found:,} records, but {split.n_frames:,} are published for "
            f"{order.archive.name}; nothing was converted (--unverified takes it as it is)"
        )


def _agreement(order: Order, split: Split, n_made: int) -> str:
    if split.n_frames is None:
        return "; no number was published to compare with"
    if n_made == split.n_frames:
        return ", as published"
    return f" where {split.n_frames:,} are published"


def _require_space(order: Order, missing: list[Split]) -> None:
    """Raise RequestError unless archive, files and result fit on their disks together."""
    by_disk: dict[int, list[tuple[str, int, Path]]] = {}
    for what, n_bytes, folder in _needs(order, missing):
        by_disk.setdefault(_existing(folder).stat().st_dev, []).append((what, n_bytes, folder))
    for parts in by_disk.values():
        folder, need = parts[0][2], sum(n_bytes for _, n_bytes, _ in parts)
        free = shutil.disk_usage(_existing(folder)).free
        if need > free:
            counted = " + ".join(f"{_size(n_bytes)} for {what}" for what, n_bytes, _ in parts)
            several = ", or take less with --splits" if len(order.archive.splits) > 1 else ""
            raise RequestError(
                f"the disk of {folder} has {_size(free)} free, but {order.archive.name} needs {_size(need)} there "
                f"({counted}); free some space or use other disks with --out and --store{several}"
            )


def _needs(order: Order, missing: list[Split]) -> list[tuple[str, int, Path]]:
    """What is still to be written: its name, bytes and folder."""
    archive = order.archive
    to_unpack, to_convert = _sizes(archive, missing)
    arrived = [order.file, order.file.with_name(order.file.name + ".partial")]
    to_fetch = archive.size - sum(path.stat().st_size for path in arrived if path.exists())
    to_unpack -= _bytes_below([order.unpacked])
    to_convert -= _bytes_below([order.staging(split) for split in missing])
    if order.file.exists():
        to_fetch = 0  # its size is known to two digits only
    if {split.name for split in missing} <= unpacked_places(order.unpacked):
        to_fetch = to_unpack = 0
    return [
        ("the archive", max(0, to_fetch), order.work),
        ("its files", max(0, to_unpack), order.work),
        ("the data sets", max(0, to_convert), order.out),
    ]


def _sizes(archive: Archive, splits: list[Split]) -> tuple[int, int]:
    """Bytes of the files of some splits, and of the data sets that are made of them."""
    counts = [split.n_frames for split in splits if split.n_frames is not None]
    if archive.n_frames is None:
        return archive.unpacked, archive.unpacked
    to_unpack = archive.unpacked * sum(counts) // archive.n_frames
    twice = max(counts) if archive.kind == "lmdb" else 0  # a conversion of LMDBs writes parts first
    return to_unpack, (sum(counts) + twice) * BYTES_PER_FRAME


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _bytes_below(folders: list[Path]) -> int:
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:,.1f} MB"


def _tidy(order: Order, splits: tuple[Split, ...], say: Say) -> None:
    """Remove the unpacked files and, unless it should be kept or other splits wait for it, the archive."""
    partial_download = order.file.with_name(order.file.name + ".partial")
    if partial_download.exists():
        return
    forget_unpacked(order.unpacked, [split.name for split in splits])
    if order.unpacked.exists():
        say(
            f"{order.work} is kept for the splits that wait there: {', '.join(unpacked_places(order.unpacked))}"
        )
    elif order.keep_archive and order.file.exists():
        say(f"the archive is kept: {order.file}")
    else:
        order.file.with_name(order.file.name + ".md5").unlink(missing_ok=True)
        order.file.unlink(missing_ok=True)
