"""A data set divided at random into parts: by system, so that no system is in two of them, or by frame."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ocpgem.data.folder import Summary, agree_on_plan, check_folder, is_complete, only_writer, summary_of
from ocpgem.data.lmdb_store import METADATA_FILE, PLAN_FILE, LmdbDataset
from ocpgem.data.selection import Selection, identity, open_own, write_selection
from ocpgem.data.workers import available_cores, check_workers
from ocpgem.errors import RequestError

By = Literal["system", "frame"]
_OF_OTHER = "of another split"


@dataclass(frozen=True)
class Part:
    """A part to make: `size` is a share (above 0, at most 1) or a number of systems or frames."""

    name: str
    size: Fraction | int


@dataclass(frozen=True)
class Split:
    """What a split made.

    Attributes:
        source, by, seed: what was divided, and how.
        n_units: systems (or frames) there were to divide.
        parts: summary of each part.
        n_unused: systems (or frames) that are in no part.
        n_shared: systems with frames in several parts.
    """

    source: Path
    by: By
    seed: int
    n_units: int
    parts: dict[str, Summary]
    n_unused: int
    n_shared: int

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.n_units} {self.by}s divided at random by {self.by}, seed {self.seed}"]
        lines += [f"{name}: {summary}" for name, summary in self.parts.items()]
        lines.append(f"in no part: {self.n_unused} {self.by}s")
        if self.n_shared:
            lines.append(
                f"systems with frames in several parts: {self.n_shared}; errors on one part say nothing of systems "
                "that a model trained on another has not seen"
            )
        return "\n".join(lines)


def parse_parts(texts: Sequence[str]) -> list[Part]:
    """Parts from texts such as `train=0.8` (a share) and `test=100` (a number); raises RequestError."""
    parts = []
    for text in texts:
        name, separator, size = text.partition("=")
        if not separator or re.fullmatch(r"\w[\w.-]*", name) is None:
            raise RequestError(
                f"--parts {text!r} cannot be read; write NAME=SHARE or NAME=NUMBER, as train=0.8"
            )
        if re.fullmatch(r"\d+", size):
            parts.append(Part(name, int(size)))
        elif re.fullmatch(r"\d*\.\d+", size) and 0 < Fraction(size) <= 1:
            parts.append(Part(name, Fraction(size)))
        else:
            raise RequestError(
                f"--parts {text}: {size!r} is neither a share above 0 and up to 1.0, nor a whole number"
            )
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"--parts names {twice[0]} twice")
    return parts


def part_sizes(parts: Sequence[Part], total: int, unit: str) -> list[int]:
    """How many of `total` each part gets; raises RequestError where a part stays empty or there are too few.

    Shares are rounded down and what rounding leaves over goes to those with the largest remainders, so shares that
    add up to 1 use everything.
    """
    shares = [part.size if isinstance(part.size, Fraction) else Fraction(0) for part in parts]
    if sum(shares) > 1:
        raise RequestError(f"the shares add up to {float(sum(shares)):g}; they may be 1 at most")
    exact = [share * total for share in shares]
    sizes = [math.floor(x) for x in exact]
    left_over = math.floor(sum(exact)) - sum(sizes)
    by_remainder = sorted(range(len(parts)), key=lambda i: (sizes[i] - exact[i], i))
    for place in by_remainder[:left_over]:
        sizes[place] += 1
    sizes = [part.size if isinstance(part.size, int) else n for part, n in zip(parts, sizes, strict=True)]
    for part, size in zip(parts, sizes, strict=True):
        if size == 0:
            raise RequestError(f"part {part.name} would be empty: there are only {total} {unit}s to divide")
    if sum(sizes) > total:
        raise RequestError(f"the parts need {sum(sizes)} {unit}s; there are {total}")
    return sizes


def choose(sids: NDArray[np.int64], sizes: Sequence[int], by: By, seed: int) -> list[NDArray[np.int64]]:
    """The records of each part, in their order in the data set; the same seed chooses the same."""
    units, member = np.unique(sids, return_inverse=True)
    if by == "frame":
        units, member = np.arange(len(sids)), np.arange(len(sids))
    place = np.empty(len(units), dtype=np.int64)
    place[np.random.default_rng(seed).permutation(len(units))] = np.arange(len(units))
    ends = np.cumsum([0, *sizes])
    owner = np.searchsorted(ends, place, side="right") - 1
    return [np.flatnonzero(owner[member] == part) for part in range(len(sizes))]


def split_dataset(
    source: str | Path,
    out: str | Path,
    parts: Sequence[Part],
    by: By = "system",
    seed: int = 0,
    workers: int | None = None,
) -> Split:
    """Write each part of a data set to `out`/NAME; what was killed is continued.

    Raises RequestError for parts that cannot be filled and for a folder that holds something else.
    """
    source, out = Path(source), Path(out)
    cores = available_cores() if workers is None else workers
    check_workers(cores)
    dataset = open_own(source)
    sids = np.asarray(dataset.sids)
    n_units = len(np.unique(sids)) if by == "system" else len(sids)
    sizes = _sizes(source, parts, n_units, len(sids), by)
    chosen = choose(sids, sizes, by, seed)
    if (out / METADATA_FILE).exists():
        raise RequestError(f"{out} is a data set itself; choose another folder for the parts")
    plan = {"kind": "split", "of": identity(dataset), "by": by, "seed": seed}
    names = [part.name for part in parts]
    sizes_by_name = dict(zip(names, sizes, strict=True))
    plans = [plan | {"parts": sizes_by_name, "part": name} for name in names]
    with only_writer(out):
        missing = _begin([out / name for name in names], plans)
        summaries = {}
        for name, plan, records, to_do in zip(names, plans, chosen, missing, strict=True):
            started = time.monotonic()
            reused = _write(out / name, dataset, records, plan, cores) if to_do else 0
            summaries[name] = summary_of(out / name, reused, time.monotonic() - started)
    systems = np.concatenate([np.unique(sids[records]) for records in chosen])
    return Split(
        source=source,
        by=by,
        seed=seed,
        n_units=n_units,
        parts=summaries,
        n_unused=n_units - sum(sizes),
        n_shared=int((np.unique(systems, return_counts=True)[1] > 1).sum()),
    )


def _sizes(source: Path, parts: Sequence[Part], n_units: int, n_frames: int, by: By) -> list[int]:
    try:
        return part_sizes(parts, n_units, by)
    except RequestError as error:
        hint = f"; --by frame would divide its {n_frames} frames" if n_units < n_frames else ""
        raise RequestError(f"{source}: {error}{hint}") from None


def _begin(folders: list[Path], plans: list[dict[str, Any]]) -> list[bool]:
    """Which parts are still to be made; their folders are claimed, all of them or, where one is refused, none."""
    pairs = list(zip(folders, plans, strict=True))
    missing = [not is_complete(folder, plan) for folder, plan in pairs]
    to_do = [pair for pair, is_missing in zip(pairs, missing, strict=True) if is_missing]
    for folder, plan in to_do:
        check_folder(folder, plan, _OF_OTHER)
    for folder, plan in to_do:
        folder.mkdir(parents=True, exist_ok=True)
        agree_on_plan(folder, plan, _OF_OTHER)
    return missing


def _write(
    folder: Path, dataset: LmdbDataset, records: NDArray[np.int64], plan: dict[str, Any], workers: int
) -> int:
    selection = Selection((dataset.path,), records, dataset.sids[records], dataset.fids[records])
    reused = write_selection(folder, selection, plan, workers, label=f"writing {folder.name}")
    (folder / PLAN_FILE).unlink()
    return reused
