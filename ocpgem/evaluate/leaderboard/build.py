"""From the predictions or relaxations of four splits to one submission."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ocpgem.errors import DataError, OcpgemError, RequestError
from ocpgem.evaluate.leaderboard.format import SPLITS, Array, Format, ids_of
from ocpgem.evaluate.metrics import ENERGY_THRESHOLD
from ocpgem.evaluate.prediction_set import PredictionSet, chunks_of, read_raw
from ocpgem.files import written_whole

_LOSS_SHARE = 0.1  # of the energy threshold that a cast may lose before it is worth a warning


def build_submission(files: Mapping[str, Path], form: Format) -> tuple[dict[str, Array], list[str]]:
    """The arrays of a submission from a raw prediction or relaxation file per split, and warnings.

    Raises RequestError unless all four splits are there, DataError for a file that lacks what the task needs, holds an
    id twice, or a value that is not finite or beyond the range of the type.
    """
    missing = [split for split in SPLITS if split not in files]
    unknown = sorted(set(files) - set(SPLITS))
    if missing or unknown:
        wrong = f"{', '.join(missing)} missing" if missing else f"there is no split {', '.join(unknown)}"
        raise RequestError(f"a submission needs the splits {', '.join(SPLITS)} once each: {wrong}")
    content: dict[str, Array] = {}
    warnings: list[str] = []
    for split in SPLITS:
        found, said = split_columns(read_raw(files[split]), form, str(files[split]))
        content |= {f"{split}_{key}": value for key, value in found.items()}
        warnings += [f"{split}: {sentence}" for sentence in said]
    return content, warnings


def split_columns(predictions: PredictionSet, form: Format, where: str) -> tuple[dict[str, Array], list[str]]:
    """The arrays of one split, in the order of the dialect, and warnings; where: the file, for messages."""
    needed = form.vectors
    if needed is not None and getattr(predictions, needed) is None:
        made_by = "relax" if needed == "pos" else "predict with a model that has forces"
        raise DataError(f"{where} has no {needed}, which {form.task} needs; make it with {made_by}")
    several = len(np.unique(predictions.sid)) < len(predictions)
    ids = ids_of(predictions.sid, predictions.fid, form.id_has_frame(several))
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise DataError(
            f"{where} holds the id {values[counts.argmax()]} {counts.max()} times; every id may occur once"
        )
    if form.sorted_by_id:
        order = np.argsort(ids)
        predictions, ids = predictions.take(order), ids[order]
    content, warnings = {"ids": ids}, []
    if "energy" in form.keys:
        content["energy"] = _cast(predictions.energy, form.dtype("energy"), f"{where}: energy")
        lost = np.abs(content["energy"].astype(np.float64) - predictions.energy)
        spoiled = lost > _LOSS_SHARE * ENERGY_THRESHOLD
        if spoiled.any():
            warnings.append(
                f"{content['energy'].dtype} moves {spoiled.sum()} of {len(lost)} energies by more than a tenth of the "
                f"{ENERGY_THRESHOLD} eV threshold, at most by {lost.max():.2g} eV"
            )
    if needed is not None:
        keep = ~predictions.fixed if form.free_atoms_only else np.ones_like(predictions.fixed)
        system = np.repeat(np.arange(len(ids)), predictions.natoms)
        content[needed] = _cast(getattr(predictions, needed)[keep], form.dtype(needed), f"{where}: {needed}")
        content["chunk_idx"] = chunks_of(np.bincount(system[keep], minlength=len(ids)))
    return {key: content[key] for key in form.keys}, warnings


def write_submission(content: Mapping[str, Array], path: Path) -> None:
    """Write a submission; it is complete or absent."""
    save: Any = np.savez_compressed
    try:
        with written_whole(path) as file:
            save(file, allow_pickle=False, **content)
    except OSError as error:
        raise OcpgemError(f"{path} cannot be written: {error.strerror}") from error


def describe(form: Format) -> dict[str, str]:
    """The format as plain facts."""
    return {key: str(value) for key, value in dataclasses.asdict(form).items()}


def _cast(values: Array, dtype: DTypeLike | None, what: str) -> Array:
    if not np.isfinite(values).all():
        raise DataError(f"{what} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
    if dtype is None:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise DataError(f"{what}: {np.abs(values).max():.6g} is beyond the range of {np.dtype(dtype)}")
    return cast
