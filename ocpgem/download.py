"""Downloading one file so that an interruption costs nothing: what has arrived stays and the rest is asked for."""

import hashlib
import http
import http.client
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ocpgem.errors import DownloadError, RequestError, one_line

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and, where the server tells it, their final number."""

_CHUNK = 1 << 20
_HEADERS = {"User-Agent": "ocpgem", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Patience:
    """How long a failing connection is tried again."""

    attempts: int = 5
    """Connections in a row that may fail; one that brings something new starts the count anew."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each further wait is twice as long."""
    timeout: float = 60.0
    """Seconds without an answer."""


@dataclass(frozen=True)
class Downloaded:
    """What arrived."""

    size: int
    """Bytes."""
    sha256: str


class _CutOffError(Exception):
    """The connection ended before the file did."""


_PASSING = (
    _CutOffError,
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
)
"""Failures that another attempt may cure."""


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    progress: Progress = lambda done, total: None,
    patience: Patience = Patience(),
    md5: str | None = None,
) -> Downloaded:
    """Fetch `url` to `path`, going on where an earlier call or a broken connection left off.

    What has arrived waits in PATH.partial; PATH itself appears when it is complete and its checksums, where some are
    given, are right. Raises RequestError if `path` is there already or the disk too full, DownloadError if the server
    refuses, the connection keeps failing, or the checksum is wrong.
    """
    if path.exists():
        raise RequestError(f"{path} is there already; remove it or choose another name")
    partial = _Partial(path.with_name(path.name + ".partial"))
    failures = 0
    while True:
        before = partial.size
        try:
            _fetch(url, partial, progress, patience.timeout)
            break
        except _PASSING as error:
            failures = 1 if partial.size > before else failures + 1
            if failures >= patience.attempts:
                kept = f"; {partial.size} bytes are kept in {partial.path}, and the same command goes on from there"
                raise DownloadError(
                    f"{url} cannot be fetched ({one_line(error)}){kept if partial.size else ''}"
                ) from error
            time.sleep(patience.first_wait * 2 ** (failures - 1))
    return _put_in_place(partial, path, {"sha256": sha256, "md5": md5}, progress)


class _Partial:
    """What has arrived so far, and the server's mark of the version it belongs to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(path.name + ".etag")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def mark(self) -> str | None:
        return self._mark.read_text() if self._mark.exists() else None

    def start(self, mark: str | None) -> None:
        """Forget what is here and begin with the version `mark`."""
        self.path.write_bytes(b"")
        self._mark.unlink(missing_ok=True)
        if mark:
            self._mark.write_text(mark)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _fetch(url: str, partial: _Partial, progress: Progress, timeout: float) -> None:
    """One connection; returns when the file is complete."""
    request = urllib.request.Request(url, headers=_HEADERS)
    if partial.size:
        request.add_header("Range", f"bytes={partial.size}-")
        if partial.mark:  # otherwise a file that changed meanwhile would be joined to a piece of the old one
            request.add_header("If-Range", partial.mark)
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            if _total(error.headers.get("Content-Range")) == partial.size:
                return
            partial.remove()
            raise _CutOffError("what was here did not fit the file and was dropped") from error
        if (
            error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR
            and error.code != http.HTTPStatus.TOO_MANY_REQUESTS
        ):
            raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
        raise
    with answer:
        content_range = answer.headers.get("Content-Range")
        if answer.status == http.HTTPStatus.PARTIAL_CONTENT and content_range:
            total = _total(content_range)
            if _first(content_range) != partial.size:
                partial.remove()
                raise _CutOffError("the server sent another part than was asked for")
        else:  # a first request, a server that ignores Range, or a file that has changed
            total = int(answer.headers["Content-Length"]) if answer.headers.get("Content-Length") else None
            partial.start(_strong_mark(answer.headers.get("ETag")))
        _require_space(partial, total)
        _write(answer, partial, total, progress)


def _write(
    answer: http.client.HTTPResponse, partial: _Partial, total: int | None, progress: Progress
) -> None:
    with partial.path.open("ab", buffering=0) as file:
        done = partial.size
        progress(done, total)
        while chunk := answer.read1(
            _CHUNK
        ):  # what has arrived, so that a slow connection loses nothing either
            file.write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done != total:
        if done > total:
            partial.remove()
        raise _CutOffError(f"{done} of {total} bytes arrived")


def _require_space(partial: _Partial, total: int | None) -> None:
    free = shutil.disk_usage(partial.path.parent).free
    if total is not None and total - partial.size > free:
        raise RequestError(
            f"{partial.path.parent} has {free / 1e6:.0f} MB free, but {(total - partial.size) / 1e6:.0f} MB are to come"
        )


def _put_in_place(
    partial: _Partial, path: Path, published: dict[str, str | None], progress: Progress
) -> Downloaded:
    kinds = [kind for kind, value in published.items() if value or kind == "sha256"]
    found = checksums(partial.path, kinds, progress)  # of hundreds of GB this takes minutes too
    for kind, value in published.items():
        if value is not None and found[kind] != value:
            partial.remove()
            raise DownloadError(
                f"the checksum of {path.name} is {found[kind]} instead of {value} ({kind}); what arrived was removed"
            )
    size = partial.size
    partial.path.replace(path)
    partial.remove()
    return Downloaded(size, found["sha256"])


def checksums(
    path: Path, kinds: Sequence[str], progress: Progress = lambda done, total: None
) -> dict[str, str]:
    """The checksums of a file, by the name that hashlib has for their kind."""
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
            done += len(chunk)
            progress(done, total)
        os.fsync(file.fileno())
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


def _total(content_range: str | None) -> int | None:
    """The file's size of `bytes 10-99/100` or `bytes */100`."""
    text = (content_range or "").rpartition("/")[2]
    return int(text) if text.isdecimal() else None


def _first(content_range: str) -> int | None:
    """The first byte of `bytes 10-99/100`."""
    text = content_range.removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdecimal() else None


def _strong_mark(etag: str | None) -> str | None:
    """An ETag that says that two copies are equal byte by byte; weak ones may not be used with If-Range."""
    return etag if etag and not etag.startswith("W/") else None
