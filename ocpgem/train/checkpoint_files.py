"""Checkpoints on disk: a folder a step with a manifest of its files, and a pointer to the newest complete one."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ocpgem.errors import CheckpointError, one_line
from ocpgem.files import write_text

MANIFEST = "manifest.json"
POINTER = "latest"
_UNFINISHED = ".partial"
_REPLACED = f".replaced{_UNFINISHED}"
_CHUNK = 1 << 22

Writer = Callable[[IO[bytes]], None]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay; one that any rule protects does."""

    newest: int
    every_steps: int | None = None
    younger_than: float = 0.0
    """Hours since it was written."""
    best: bool = True

    def keeps(self, folder: Path, rank: int, best_step: int | None) -> bool:
        """Whether a folder stays; `rank` counts from the newest, 0."""
        step = int(folder.name)
        return (
            rank < self.newest
            or (self.every_steps is not None and step % self.every_steps == 0)
            or (self.best and step == best_step)
            or (time.time() - folder.stat().st_mtime) / 3600 < self.younger_than
        )


class CheckpointFolder:
    """The folder `checkpoints/` of a run. Only rank 0 writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: int, files: dict[str, Writer]) -> Path:
        """Write one checkpoint and move the pointer to it; complete or absent.

        Every file is read back and compared with what was meant to be written before anything refers to it. A
        checkpoint of the same step goes only when the new one is in its place; until then it is whole, under its own
        name or aside. Raises OSError where the disk does not take the new one; what was there before stays as it was.
        """
        self.path.mkdir(exist_ok=True)  # not its parents: a run whose folder has gone must not begin another
        partial, final = self.path / f"{step}{_UNFINISHED}", self.path / str(step)
        aside = self.path / f"{step}{_REPLACED}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            entries = {name: _write_hashed(partial / name, write) for name, write in files.items()}
            write_text(partial / MANIFEST, json.dumps({"step": step, "files": entries}, indent=2) + "\n")
            verify(partial)
            _flush_folder(partial)
            if final.exists():
                shutil.rmtree(aside, ignore_errors=True)
                final.replace(aside)
            partial.replace(final)
            _flush_folder(self.path)
            write_text(self.path / POINTER, final.name)
            _flush_folder(self.path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(aside, ignore_errors=True)
        return final

    def candidates(self) -> list[Path]:
        """Every checkpoint, the one that the pointer names first, then the newest first.

        One that was moved aside counts where a kill left nothing in its place.
        """
        folders = self._folders()
        for aside in self.path.glob(f"*{_REPLACED}"):
            if not (self.path / step_name(aside)).exists():
                folders.append(aside)
        folders.sort(key=lambda folder: int(step_name(folder)), reverse=True)
        named = self.named()
        return sorted(folders, key=lambda folder: step_name(folder) == named, reverse=True)

    def restored(self, folder: Path) -> Path:
        """A checkpoint of `candidates` under the name of its step, which one that was moved aside gets back."""
        own = self.path / step_name(folder)
        if folder != own:
            folder.replace(own)
            _flush_folder(self.path)
        return own

    def named(self) -> str:
        """The step that the pointer names; empty if there is no pointer."""
        try:
            return (self.path / POINTER).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def prune(self, current: int, retention: Retention, best_step: int | None, damaged: set[Path]) -> None:
        """Remove what was never finished, what is damaged or of a later step, and what `retention` does not keep."""
        for folder in self.path.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(folder, ignore_errors=True)
        folders = self._folders()
        for folder in folders:
            if folder in damaged or int(folder.name) > current:
                self._remove(folder)
        earlier = [folder for folder in folders if folder.is_dir()]
        for number, folder in enumerate(earlier):
            if not retention.keeps(folder, number, best_step):
                self._remove(folder)

    def _folders(self) -> list[Path]:
        """Finished checkpoints, the newest first."""
        if not self.path.is_dir():
            return []
        found = [each for each in self.path.iterdir() if each.name.isdecimal() and each.is_dir()]
        return sorted(found, key=lambda folder: int(folder.name), reverse=True)

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint; under another name first, so that a kill leaves none that lacks files."""
        if folder.exists():
            going = folder.with_name(f"{folder.name}.old{_UNFINISHED}")
            shutil.rmtree(going, ignore_errors=True)
            folder.replace(going)
            shutil.rmtree(going)


def step_name(folder: Path) -> str:
    """The step in the name of a checkpoint, finished, unfinished or moved aside."""
    return folder.name.split(".")[0]


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file of a checkpoint is there and as it was written."""
    manifest = _read_manifest(folder)
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{name} is missing")
        size = file.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(f"{name} has {size:,} bytes instead of {entry['bytes']:,}")
        with file.open("rb") as opened:
            digest = hashlib.sha256()
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{name} is not what was written (its checksum differs)")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not isinstance(manifest["files"], dict) or manifest["step"] != int(step_name(folder)):
            raise ValueError("it is not that of a checkpoint")
        for entry in manifest["files"].values():
            entry["bytes"], entry["sha256"]
    except FileNotFoundError:
        raise CheckpointError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({one_line(error)})") from None
    return dict(manifest)


class _Hashing:
    """A file that is only written to, and the checksum of what was written.

    torch's writer does not survive an exception from `write`; the first is kept for `check`, and nothing more is
    written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                _write_all(self._file, data)
            except OSError as error:
                self._error = error
            self.digest.update(data)
            self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def check(self) -> None:
        """Raise what writing has raised."""
        if self._error is not None:
            raise self._error


def _write_hashed(path: Path, write: Writer) -> dict[str, Any]:
    with path.open("wb", buffering=0) as file:
        hashing = _Hashing(file)
        write(hashing)  # type: ignore[arg-type]
        hashing.check()
        os.fsync(file.fileno())
    return {"bytes": hashing.size, "sha256": hashing.digest.hexdigest()}


def _write_all(file: IO[bytes], data: Any) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _flush_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
