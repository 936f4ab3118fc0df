"""Everything that can be wrong with a submission, each as a sentence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ocpgem.errors import DataError
from ocpgem.evaluate.leaderboard.format import SPLITS, Array, Format
from ocpgem.evaluate.leaderboard.manifest import SplitManifest
from ocpgem.evaluate.metrics import ENERGY_THRESHOLD
from ocpgem.files import require_file
from ocpgem.zip_errors import ZIP_ERRORS

Columns = dict[str, Array]
_LOSS_SHARE = 0.1  # of the energy threshold that rounding may lose before it is worth a warning


@dataclass
class Findings:
    """What `check_submission` found: faults, for which a host refuses a file or scores it wrongly, and warnings."""

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_submission(path: Path) -> Columns:
    """All arrays of a file.

    Raises RequestError where there is no file, DataError where it is cut off, damaged, or holds objects instead of
    numbers.
    """
    require_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise DataError(f"{path} holds a single array; a submission is an npz file")
        with loaded as file:
            return dict(file)
    except ZIP_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as an npz file, it is cut off, damaged or of another kind: {error}"
        ) from error


def check_submission(columns: Columns, form: Format, manifest: Mapping[str, SplitManifest]) -> Findings:
    """Compare the arrays of a submission with what the test sets ask for."""
    found = Findings()
    expected = {f"{split}_{key}" for split in SPLITS for key in form.keys}
    for name in sorted(set(columns) - expected):
        found.faults.append(f"{name} does not belong into a submission of {form.task}")
    for split in SPLITS:
        missing = [f"{split}_{key}" for key in form.keys if f"{split}_{key}" not in columns]
        if missing:
            found.faults.append(f"{split}: {', '.join(missing)} missing")
            continue
        each = {key: columns[f"{split}_{key}"] for key in form.keys}
        others = {other: known for other, known in manifest.items() if other != split}
        found.faults += [f"{split}: {fault}" for fault in _faults(each, form, manifest.get(split), others)]
        found.warnings += [f"{split}: {warning}" for warning in _warnings(each)]
    for split in sorted(set(SPLITS) - set(manifest)):
        found.warnings.append(f"{split}: not compared with its test set, which is not given")
    return found


def _faults(
    each: Columns, form: Format, wanted: SplitManifest | None, others: Mapping[str, SplitManifest]
) -> Iterator[str]:
    ids = each["ids"]
    if ids.ndim != 1 or ids.dtype.kind not in "US":
        yield f"ids should be text of shape [n]; they are {ids.dtype} of shape {list(ids.shape)}"
        return
    ids = ids.astype(str)
    yield from _faults_of_ids(ids, form, wanted, others)
    if "energy" in each:
        yield from _faults_of_floats("energy", each["energy"], (len(ids),), form)
    if form.vectors is not None:
        yield from _faults_of_vectors(each, ids, form, wanted)


def _faults_of_ids(
    ids: Array, form: Format, wanted: SplitManifest | None, others: Mapping[str, SplitManifest]
) -> Iterator[str]:
    values, n = np.unique(ids, return_counts=True)
    twice = values[n > 1]
    if len(twice):
        yield f"{len(twice)} ids occur more than once, such as {twice[0]} ({n.max()} times)"
    if form.sorted_by_id and not np.array_equal(ids, np.sort(ids)):
        yield "the ids are not sorted as text, which this host asks for"
    if wanted is None:
        return
    missing, unknown = np.setdiff1d(wanted.ids, values), np.setdiff1d(values, wanted.ids)
    if len(missing):
        yield f"{len(missing)} of {len(wanted.ids)} ids are missing, such as {missing[0]}"
    for other, known in others.items():
        theirs = np.intersect1d(unknown, known.ids)
        if len(theirs):
            yield f"{len(theirs)} ids belong to the split {other}, such as {theirs[0]}"
            unknown = np.setdiff1d(unknown, theirs)
    if len(unknown):
        own = wanted.ids[0]
        yield f"{len(unknown)} ids are unknown to the test set, such as {unknown[0]} (its own look like {own})"


def _faults_of_vectors(
    each: Columns, ids: Array, form: Format, wanted: SplitManifest | None
) -> Iterator[str]:
    name = form.vectors
    assert name is not None, "the task has a row per atom"
    vectors, chunks = each[name], each["chunk_idx"]
    rows = len(vectors) if vectors.ndim else 0
    yield from _faults_of_floats(name, vectors, (rows, 3), form)
    if chunks.shape != (max(len(ids) - 1, 0),) or chunks.dtype.kind not in "iu":
        yield (
            f"chunk_idx should be {max(len(ids) - 1, 0)} whole numbers, one fewer than ids; "
            f"it is {chunks.dtype} of shape {list(chunks.shape)}"
        )
        return
    counts = np.diff(np.concatenate([[0], chunks.astype(np.int64), [rows]]))
    if (counts < 0).any():
        yield f"chunk_idx cuts {name} at rows that decrease or lie beyond its {rows} rows"
        return
    if wanted is None:
        return
    by_id = wanted.by_id
    pairs = [
        (system, by_id[system], got)
        for system, got in zip(ids.tolist(), counts.tolist(), strict=True)
        if system in by_id
    ]
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    atoms = "free atoms" if form.free_atoms_only else "atoms"
    total = sum(pair[1] for pair in pairs)
    if len(pairs) == len(ids) and total != rows:
        yield f"{name} has {rows} rows, but these systems have {total} {atoms}"
    if wrong:
        system, right, got = wrong[0]
        yield (
            f"chunk_idx gives {len(wrong)} systems another number of {atoms} than they have, such as {system}: "
            f"{got} instead of {right}"
        )


def _faults_of_floats(name: str, values: Array, shape: tuple[int, ...], form: Format) -> Iterator[str]:
    if values.shape != shape:
        yield f"{name} has shape {list(values.shape)}; it should be {list(shape)}"
    dtype = form.dtype(name)
    if dtype is None and values.dtype == np.float16:
        yield f"{name} has been cast to float16; build with --dialect {form.dialect}, which casts nothing"
    elif values.dtype.kind != "f" or (dtype is not None and values.dtype != dtype):
        asked = "a floating-point type" if dtype is None else str(np.dtype(dtype))
        yield f"{name} is {values.dtype}; the {form.dialect} dialect for {form.benchmark} asks for {asked}"
    if values.dtype.kind == "f":
        bad = int((~np.isfinite(values)).sum())
        if bad:
            yield f"{name} holds {bad} values that are NaN or infinite"


def _warnings(each: Columns) -> Iterator[str]:
    energy = each.get("energy")
    if energy is not None and energy.dtype == np.float16 and energy.ndim == 1:
        finite = energy[np.isfinite(energy)]
        harmed = (
            np.abs(np.spacing(finite.astype(np.float16))).astype(float) / 2 > _LOSS_SHARE * ENERGY_THRESHOLD
        )
        if harmed.any():
            worst = float(np.abs(finite[harmed]).max())
            yield (
                f"float16 rounds {harmed.sum()} of {len(energy)} energies by up to "
                f"{np.spacing(np.float16(worst)) / 2:.2g} eV (the largest is {worst:.4g} eV), "
                f"more than a tenth of the {ENERGY_THRESHOLD} eV threshold of EwT"
            )
    forces = each.get("forces")
    if forces is not None and forces.size and forces.dtype.kind == "f" and not forces.any():
        yield "all forces are zero"
