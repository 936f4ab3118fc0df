"""Files that are there to be read, and writing files so that they are complete or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ocpgem.errors import RequestError


def require_file(path: Path) -> None:
    """Refuse a path to read where there is nothing, or a folder."""
    if path.is_dir():
        raise RequestError(f"{path} is a folder; name the file to read")
    if not path.exists():
        raise RequestError(f"{path} does not exist")


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, under a temporary name; it becomes `path` when the block ends well, else it is removed."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())
