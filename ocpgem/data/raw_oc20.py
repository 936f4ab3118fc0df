"""Raw OC20 archives, pairs of `N.extxyz.xz` and `N.txt.xz`, to ocpgem's data set.

The label of a frame is its DFT energy minus the reference energy in the third field of its line in the txt
file. Chunks are converted in parallel, one shard each (several where there are many); a shard appears under
its name only when complete, so a conversion that was killed goes on with the missing ones.
"""

from __future__ import annotations

import lzma
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ocpgem.data.extxyz import read_frames
from ocpgem.data.folder import (
    PLAN_FILE,
    Summary,
    agree_on_plan,
    is_complete,
    is_written,
    only_writer,
    summary_of,
)
from ocpgem.data.lmdb_store import ShardWriter, finish_dataset, shard_name
from ocpgem.data.system import System
from ocpgem.data.workers import Counter, available_cores, check_workers, run_jobs
from ocpgem.errors import DataError, RequestError

MOST_SHARDS = 128

_CHUNK = re.compile(r"(\d+)\.extxyz(?:\.xz)?", re.ASCII)
_LABEL = re.compile(r"(?:random)?(\d+),(?:frame)?(\d+)(?:,\s*(\S+))?\s*")


@dataclass(frozen=True)
class Chunk:
    """One pair of files of the archive."""

    name: str
    frames: Path
    labels: Path


@dataclass(frozen=True)
class _Job:
    chunks: tuple[Chunk, ...]
    shard: Path

    @property
    def provenance(self) -> dict[str, Any]:
        return {"chunks": [chunk.name for chunk in self.chunks]}


def parse_chunks(text: str) -> list[int]:
    """Numbers of chunks from text such as `0-3,7`; raises RequestError for anything else."""
    chunks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise RequestError(f"chunks {text!r} cannot be read; write numbers and ranges, such as 0-3,7")
        chunks += range(int(match[1]), int(match[2] or match[1]) + 1)
    return chunks


def convert_raw_oc20(
    source: str | Path, out: str | Path, workers: int | None = None, chunks: list[int] | None = None
) -> Summary:
    """Convert the archive in `source`, or some of its chunks, to a data set in `out`.

    workers: processes, by default one per core. A conversion that did not finish is continued. Raises
    RequestError for folders that cannot be used and DataError, naming file and frame, for damaged input.
    """
    started = time.monotonic()
    out = Path(out)
    selected = find_chunks(Path(source), chunks)
    cores = available_cores() if workers is None else workers
    check_workers(cores)
    plan = {"kind": "raw OC20", "chunks": [[c.name, c.frames.stat().st_size] for c in selected]}
    jobs = _divide(selected, out)
    reused = 0
    with only_writer(out):
        if not is_complete(out, plan):
            agree_on_plan(out, plan, "of other chunks")
            missing = [job for job in jobs if not is_written(job.shard, job.provenance)]
            reused = len(jobs) - len(missing)
            total = sum(len(read_labels(chunk.labels)) for job in missing for chunk in job.chunks)
            run_jobs(_convert, missing, cores, total, "converting frames")
            finish_dataset(out, [job.shard for job in jobs], plan)
            (out / PLAN_FILE).unlink()
    return summary_of(out, reused, time.monotonic() - started)


def find_chunks(source: Path, numbers: list[int] | None = None) -> list[Chunk]:
    """The pairs of files below a folder, in numerical order."""
    if not source.is_dir():
        raise RequestError(f"{source} is not a folder; name the one with the N.extxyz.xz files")
    found: dict[str, Chunk] = {}
    for frames in sorted([*source.rglob("*.extxyz.xz"), *source.rglob("*.extxyz")]):
        name = frames.name.split(".extxyz")[0]
        if name in found:
            raise RequestError(f"{source} has two files for chunk {name}: {found[name].frames} and {frames}")
        labels = _labels_beside(frames, name)
        if labels is None:
            raise DataError(f"{frames} has no {name}.txt.xz beside it; download the archive again")
        found[name] = Chunk(name, frames, labels)
    if not found:
        raise RequestError(f"{source} holds no .extxyz.xz files")
    if numbers is not None:
        absent = sorted({str(number) for number in numbers} - found.keys(), key=int)
        if absent:
            raise RequestError(f"{source} has no chunk {', '.join(absent)}; it has {', '.join(found)}")
        found = {str(number): found[str(number)] for number in numbers}
    return sorted(found.values(), key=lambda chunk: (len(chunk.name), chunk.name))


def chunk_of(path: Path) -> Chunk | None:
    """The chunk whose frames are in the file at `path`; None unless it is called N.extxyz[.xz] and N.txt[.xz] is there.

    Such a file holds total energies and no numbers, so `read_chunk` and nothing else may read it.
    """
    match = _CHUNK.fullmatch(path.name)
    labels = _labels_beside(path, match[1]) if match is not None else None
    return None if match is None or labels is None else Chunk(match[1], path, labels)


def read_labels(path: Path) -> list[tuple[int, int, float | None]]:
    """System, frame and reference energy (eV) of every line of a txt file."""
    labels = []
    with _open_text(path) as file:
        for number, line in enumerate(_readable(file, path)):
            match = _LABEL.fullmatch(line)
            try:
                if match is None:
                    raise ValueError
                labels.append((int(match[1]), int(match[2]), float(match[3]) if match[3] else None))
            except ValueError:
                raise DataError(
                    f"{path}, line {number + 1}: {line.strip()[:60]!r} is not random<sid>,frame<fid>,<energy>"
                ) from None
    return labels


def count_labels(chunk: Chunk) -> int:
    """The number of lines of a chunk's txt file, one per frame."""
    with _open_text(chunk.labels) as file:
        return sum(1 for _ in _readable(file, chunk.labels))


def read_chunk(chunk: Chunk) -> Iterator[System]:
    """The labelled systems of a chunk; raises DataError unless both files have the same number of frames."""
    labels = read_labels(chunk.labels)
    count = 0
    with _open_text(chunk.frames) as file:
        for system in read_frames(_readable(file, chunk.frames), str(chunk.frames)):
            if count < len(labels):
                system.sid, system.fid, reference = labels[count]
                system.source = f"{chunk.frames}, frame {count} of the file"
                system.energy = _label(system, reference, chunk)
                yield system
            count += 1
    if count != len(labels):
        raise DataError(f"{chunk.frames} has {count} frames but {chunk.labels.name} has {len(labels)} lines")


def _labels_beside(frames: Path, name: str) -> Path | None:
    """The txt file of a chunk, packed or not."""
    files = (frames.with_name(f"{name}.txt{end}") for end in (".xz", ""))
    return next((file for file in files if file.is_file()), None)


def _label(system: System, reference: float | None, chunk: Chunk) -> float | None:
    if system.energy is None and reference is None:
        return None
    if system.energy is None or reference is None:
        missing = f"{chunk.labels.name} names no reference energy (third field)"
        if system.energy is None:
            missing = f"the frame has no energy although {chunk.labels.name} names a reference"
        raise DataError(f"{system.where}: {missing}; the label, energy minus reference, needs both")
    return system.energy - reference


def _convert(job: _Job, done: Counter) -> None:
    with ShardWriter(job.shard, job.provenance) as writer:
        for chunk in job.chunks:
            for system in read_chunk(chunk):
                writer.add(system)
                done.add(1)


def _divide(chunks: list[Chunk], out: Path) -> list[_Job]:
    per_shard = -(-len(chunks) // MOST_SHARDS)
    groups = [tuple(chunks[first : first + per_shard]) for first in range(0, len(chunks), per_shard)]
    return [_Job(group, out / shard_name(number)) for number, group in enumerate(groups)]


def _open_text(path: Path) -> IO[str]:
    return lzma.open(path, "rt") if path.suffix == ".xz" else path.open()


def _readable(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a file; what is wrong with its compression or encoding becomes a DataError."""
    try:
        yield from file
    except (lzma.LZMAError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or cut off ({error}); download or copy it again") from None
