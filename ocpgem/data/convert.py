"""Files that users bring - anything ASE reads, archives of molecules - to ocpgem's data set.

Two stages: workers read the files into parts, each a shard of its own below `.parts`; then the parts are numbered
and written as evenly filled shards. Both go on with what is missing where a conversion was killed. What is left
out is counted by reason.
"""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocpgem.data.folder import (
    Summary,
    agree_on_plan,
    is_complete,
    is_written,
    only_writer,
    summary_of,
)
from ocpgem.data.lmdb_store import (
    PLAN_FILE,
    SIZES_FILE,
    LmdbDataset,
    ShardWriter,
    shard_name,
    write_atomically,
)
from ocpgem.data.numbering import ROWS, number_records
from ocpgem.data.raw_oc20 import chunk_of
from ocpgem.data.screening import MISSING_ENERGY, MISSING_FORCES, Limits, TagRule, Tally, edges_or_fault
from ocpgem.data.selection import Selection, write_selection
from ocpgem.data.sources import (
    Frame,
    Piece,
    Unfit,
    Unreadable,
    energy_unit,
    find_files,
    pieces_of,
    read_frames,
)
from ocpgem.data.units import EnergyUnit, parse_unit
from ocpgem.data.workers import Counter, available_cores, check_workers, run_jobs
from ocpgem.errors import DataError, OcpgemError, RequestError

PARTS = ".parts"
MOST_PARTS = 128
_HINTS = {
    MISSING_FORCES: "  (--require energy keeps records without forces, such as those of IS2RE)",
    MISSING_ENERGY: "  (--require nothing keeps records without labels, such as those of test sets)",
}


@dataclass(frozen=True)
class Options:
    """How files are converted.

    Attributes:
        units: unit of the energies (ocpgem.data.units.UNITS); None: as the files say, or guessed aloud.
        tags: a rule as `TagRule.parse` reads it.
        limits: what a record must have.
        renumber: number systems and frames anew although the files number them.
        skip_unreadable: leave out records that cannot be read, and the rest of a file that cannot be read on,
            instead of stopping.
    """

    units: str | None = None
    tags: str = "keep"
    limits: Limits = field(default_factory=Limits)
    renumber: bool = False
    skip_unreadable: bool = False

    def check(self) -> None:
        """Raise RequestError for a value that cannot be used."""
        TagRule.parse(self.tags)
        self.limits.check()
        if self.units is not None:
            parse_unit(self.units, "--units")


@dataclass
class Report:
    """What became of the records.

    Attributes:
        n_read: records that were read.
        left_out: records left out, by reason.
        files: files that hold nothing, or could not be read to their end.
        remarks: what was changed about records that were kept.
    """

    n_read: int = 0
    left_out: Tally = field(default_factory=Tally)
    files: Tally = field(default_factory=Tally)
    remarks: Tally = field(default_factory=Tally)

    def add(self, other: dict[str, Any]) -> None:
        """Add a later report, as `dataclasses.asdict` makes it."""
        self.n_read += other["n_read"]
        for name in ("left_out", "files", "remarks"):
            getattr(self, name).merge(other[name]["entries"])

    def lines(self) -> list[str]:
        """The report for people."""
        if self.left_out.total:
            lines = [f"left out: {self.left_out.total} of {self.n_read} records", *self.left_out.lines()]
            lines += [hint for reason, hint in _HINTS.items() if reason in self.left_out.entries]
        else:
            lines = [f"left out: none of {self.n_read} records"]
        if self.files.total:
            lines += ["files that", *self.files.lines()]
        if self.remarks.total:
            lines += ["kept, but", *self.remarks.lines()]
        return lines


@dataclass(frozen=True)
class Conversion:
    """What a conversion made, how it numbered systems, and what it left out."""

    summary: Summary
    numbering: str
    report: Report

    def __str__(self) -> str:
        return "\n".join([str(self.summary), f"systems: {self.numbering}", *self.report.lines()])


@dataclass(frozen=True)
class _Job:
    pieces: tuple[Piece, ...]
    part: Path
    options: Options

    @property
    def provenance(self) -> dict[str, Any]:
        pieces = [[str(piece.path), piece.unit_in_ev, piece.first, piece.last] for piece in self.pieces]
        return {"pieces": pieces}


def convert_files(
    sources: Sequence[str | Path],
    out: str | Path,
    options: Options | None = None,
    workers: int | None = None,
    say: Callable[[str], object] = lambda sentence: None,
) -> Conversion:
    """Convert files, or folders of them, to a data set in `out`.

    workers: processes, by default one per core. say: gets a sentence on everything that was decided for the user,
    before the work starts. A conversion that was killed is continued; one that fails leaves nothing. Raises
    RequestError for what cannot be done and DataError, naming file and record, for damaged input or where nothing
    is left.
    """
    started = time.monotonic()
    out, options = Path(out), options or Options()
    cores = available_cores() if workers is None else workers
    check_workers(cores)
    options.check()
    files, passed_over = find_files([Path(source) for source in sources])
    units = [_unit_of(file, options) for file in files]
    decisions = [*passed_over, *_unit_sentences(files, units)]
    for sentence in decisions:
        say(sentence)
    plan = {
        "kind": "files",
        "files": [[str(file), file.stat().st_size] for file in files],
        "options": asdict(options),
    } | _label_files(files)
    reused = 0
    with only_writer(out):
        if not is_complete(out, plan):
            agree_on_plan(out, plan, "of other files or with other options")
            try:
                jobs = _divide(files, units, out, options)
                _read_into_parts(jobs, cores)
                reused = _join_parts(jobs, out, plan, decisions, cores)
            except OcpgemError:
                _discard(out)
                raise
            (out / PLAN_FILE).unlink()
        shutil.rmtree(out / PARTS, ignore_errors=True)
    return _conversion(out, reused, time.monotonic() - started)


def _label_files(files: list[Path]) -> dict[str, Any]:
    """What a plan says of the txt files of raw OC20 chunks; nothing where there are none."""
    labels = [chunk.labels for file in files if (chunk := chunk_of(file)) is not None]
    return {"labels": [[str(file), file.stat().st_size] for file in labels]} if labels else {}


def _unit_of(file: Path, options: Options) -> EnergyUnit | None:
    """The unit of a file; None for a damaged one, which is left to the reading."""
    if options.units is not None:
        unit = EnergyUnit(parse_unit(options.units, "--units"), "as --units says")
        if unit.in_ev != 1.0 and chunk_of(file) is not None:
            raise RequestError(f"{file} is a chunk of a raw OC20 archive, which is in eV; leave out --units")
        return unit
    try:
        return energy_unit(file)
    except DataError:
        return None


def _unit_sentences(files: list[Path], units: list[EnergyUnit | None]) -> list[str]:
    groups: dict[EnergyUnit, list[Path]] = {}
    for file, unit in zip(files, units, strict=True):
        if unit is not None:
            groups.setdefault(unit, []).append(file)
    sentences = []
    for unit, members in groups.items():
        which = str(members[0]) if len(members) == 1 else f"{len(members)} files, the first is {members[0]}"
        guessed = "guessed: " if unit.is_guess else ""
        factor = "" if unit.name == "eV" else f"; 1 {unit.name} = {unit.in_ev:.9g} eV"
        sentences.append(
            f"energies in {unit.name}, forces in {unit.name}/A ({guessed}{unit.reason}{factor}): {which}"
        )
    return sentences


def _divide(files: list[Path], units: list[EnergyUnit | None], out: Path, options: Options) -> list[_Job]:
    """Jobs of consecutive pieces, at most 128; what they are does not depend on the number of workers."""
    pieces: list[Piece] = []
    for number, (file, unit) in enumerate(zip(files, units, strict=True)):
        try:
            pieces += pieces_of(number, file, 1.0 if unit is None else unit.in_ev)
        except DataError:
            if not options.skip_unreadable:
                raise
            pieces.append(Piece(number, file, 1.0))
    size = -(-len(pieces) // MOST_PARTS)
    groups = [tuple(pieces[first : first + size]) for first in range(0, len(pieces), size)]
    return [_Job(group, out / PARTS / shard_name(i), options) for i, group in enumerate(groups)]


def _read_into_parts(jobs: list[_Job], workers: int) -> None:
    jobs[0].part.parent.mkdir(exist_ok=True)
    missing = [job for job in jobs if not is_written(job.part, job.provenance)]
    sizes = [piece.last - piece.first for job in missing for piece in job.pieces if piece.last is not None]
    known = len(sizes) == sum(len(job.pieces) for job in missing)
    run_jobs(_read_part, missing, workers, sum(sizes) if known else None, "reading frames")


def _read_part(job: _Job, done: Counter) -> None:
    """Write rows and report of a part and then the part itself, which says that all are there."""
    report, rule = Report(), TagRule.parse(job.options.tags)
    rows: list[tuple[int, int, int, bool, int, bool, int]] = []
    with ShardWriter(job.part, job.provenance) as writer:
        for piece in job.pieces:
            for frame in _frames(piece, report, job.options.skip_unreadable):
                report.n_read += 1
                reason = _add(writer, frame, rule, job.options.limits)
                where = f"{piece.path}, record {frame.record}"
                if reason is not None:
                    report.left_out.add(reason, where)
                elif isinstance(frame, Frame):
                    rows.append(_row(piece, frame))
                    for remark in frame.remarks:
                        report.remarks.add(remark, where)
                done.add(1)
        write_atomically(job.part.with_suffix(".npy"), np.array(rows, dtype=ROWS))
        write_atomically(job.part.with_suffix(".json"), asdict(report))


def _frames(piece: Piece, report: Report, skip_unreadable: bool) -> Iterator[Frame | Unfit]:
    """The frames of a piece that can be read; the others, and what is wrong with the file, go into the report."""
    before = report.n_read
    try:
        for frame in read_frames(piece):
            if not isinstance(frame, Unreadable):
                yield frame
                continue
            if not skip_unreadable:
                raise DataError(frame.error)
            report.n_read += 1
            report.left_out.add("damaged or refused", frame.error)
    except DataError as error:
        if not skip_unreadable:
            raise DataError(f"{error}; --skip-unreadable leaves out what cannot be read") from None
        report.files.add("cannot be read to their end", str(error))
    else:
        if report.n_read == before:
            report.files.add("hold no records", str(piece.path))


def _add(writer: ShardWriter, frame: Frame | Unfit, rule: TagRule, limits: Limits) -> str | None:
    """Write a frame, or say why it is left out."""
    if isinstance(frame, Unfit):
        return frame.reason
    fault = limits.fault(frame.system)
    if fault is not None:
        return fault
    n_edges, fault = edges_or_fault(frame.system)
    if fault is None:
        rule.apply(frame.system)
        writer.add(frame.system, n_edges)
    return fault


def _row(piece: Piece, frame: Frame) -> tuple[int, int, int, bool, int, bool, int]:
    system, sid, fid = frame.system, frame.sid, frame.fid
    atoms = zlib.crc32(system.pbc.tobytes(), zlib.crc32(system.atomic_numbers.tobytes()))
    return piece.file, frame.record, atoms, sid is not None, sid or 0, fid is not None, fid or 0


def _join_parts(jobs: list[_Job], out: Path, plan: dict[str, Any], decisions: list[str], workers: int) -> int:
    report = Report()
    for job in jobs:
        report.add(json.loads(job.part.with_suffix(".json").read_text()))
    rows = np.concatenate([np.load(job.part.with_suffix(".npy")) for job in jobs])
    if len(rows) == 0:
        raise DataError(f"nothing can be converted; {'; '.join(line.strip() for line in report.lines())}")
    numbers = number_records(rows, [file for file, _ in plan["files"]], plan["options"]["renumber"])
    parts = tuple(job.part for job in jobs)
    selection = Selection(parts, np.arange(len(rows)), numbers.sids, numbers.fids)
    provenance = plan | {"decisions": decisions, "numbering": numbers.rule, "report": asdict(report)}
    return write_selection(out, selection, provenance, workers)


def _discard(out: Path) -> None:
    """Remove what a conversion that failed has written."""
    shutil.rmtree(out / PARTS, ignore_errors=True)
    for file in (*out.glob("data.*.lmdb"), out / SIZES_FILE, out / PLAN_FILE):
        file.unlink(missing_ok=True)


def _conversion(out: Path, n_reused_shards: int, seconds: float) -> Conversion:
    provenance = LmdbDataset(out).metadata["provenance"]
    report = Report()
    report.add(provenance["report"])
    return Conversion(summary_of(out, n_reused_shards, seconds), provenance["numbering"], report)
