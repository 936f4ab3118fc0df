"""What a submission must hold, taken from the test data themselves: every id, and how many atoms it has."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ocpgem.data.dataset import Dataset
from ocpgem.errors import DataError, RequestError
from ocpgem.evaluate.leaderboard.format import SPLITS, Array, Format, ids_of


@dataclass(frozen=True)
class SplitManifest:
    """The systems of one split: ids [n] as text, and the rows that each has in forces or positions [n]."""

    ids: Array
    counts: Array

    @property
    def by_id(self) -> dict[str, int]:
        """The rows by id."""
        return dict(zip(self.ids.tolist(), self.counts.tolist(), strict=True))


def read_manifest(sets: Mapping[str, Dataset], form: Format) -> dict[str, SplitManifest]:
    """The manifest of the test sets by split. Raises RequestError for unknown splits, DataError for an id twice."""
    unknown = sorted(set(sets) - set(SPLITS))
    if unknown:
        raise RequestError(f"there is no split {', '.join(unknown)}; the splits are {', '.join(SPLITS)}")
    return {split: _manifest_of(sets[split], form) for split in SPLITS if split in sets}


def _manifest_of(dataset: Dataset, form: Format) -> SplitManifest:
    sid, fid = np.asarray(dataset.sids), np.asarray(dataset.fids)
    several = len(np.unique(sid)) < len(sid)
    ids = ids_of(sid, fid, form.id_has_frame(several))
    values, n = np.unique(ids, return_counts=True)
    if n.max() > 1:
        raise DataError(
            f"{dataset.path} holds the id {values[n.argmax()]} {n.max()} times; it is no test set of {form.task}"
        )
    return SplitManifest(ids, np.asarray(dataset.n_free if form.free_atoms_only else dataset.n_atoms))
