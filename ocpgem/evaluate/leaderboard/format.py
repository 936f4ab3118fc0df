"""What a submission to the Open Catalyst leaderboard holds, by task, benchmark and host.

One `np.savez_compressed` file; every key begins with its split (`id_`, `ood_ads_`, `ood_cat_`, `ood_both_`):

- S2EF: ids ("sid_fid"), energy [n], forces [sum of counted atoms, 3], chunk_idx = cumsum(counts)[:-1]
- IS2RE: ids ("sid"), energy [n]
- IS2RS: ids ("sid"), pos [sum of all atoms, 3], chunk_idx

The first host (dialect `ocp`) takes forces of free atoms, sorted by id, float16 for OC20 and float32 for OC22; the
present one (`hub`) all atoms, uncast. Positions are float32 with both: float16 would move atoms by up to 0.004 A.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Task = Literal["s2ef", "is2re", "is2rs"]
Benchmark = Literal["oc20", "oc22"]
DialectName = Literal["ocp", "hub"]

TASKS: tuple[str, ...] = get_args(Task)
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
DIALECTS: tuple[str, ...] = get_args(DialectName)
SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")


@dataclass(frozen=True)
class Format:
    """The form of a submission.

    task, dialect, benchmark: what it is for, for which host and data.
    """

    task: Task
    dialect: DialectName = "ocp"
    benchmark: Benchmark = "oc20"

    @property
    def keys(self) -> tuple[str, ...]:
        """The arrays of each split, without its name."""
        return {
            "s2ef": ("ids", "energy", "forces", "chunk_idx"),
            "is2re": ("ids", "energy"),
            "is2rs": ("ids", "pos", "chunk_idx"),
        }[self.task]

    @property
    def vectors(self) -> str | None:
        """The array with a row per atom."""
        return {"s2ef": "forces", "is2re": None, "is2rs": "pos"}[self.task]

    @property
    def free_atoms_only(self) -> bool:
        """Whether rows of fixed atoms are left out."""
        return self.task == "s2ef" and self.dialect == "ocp"

    @property
    def sorted_by_id(self) -> bool:
        """Whether systems stand in the order of their ids as text."""
        return self.dialect == "ocp"

    def dtype(self, key: str) -> DTypeLike | None:
        """The type of a float array; None where it stays as predicted: any but float16, which is only ever a cast."""
        if key == "pos":
            return np.float32
        if self.dialect == "hub":
            return None
        return np.float16 if self.benchmark == "oc20" else np.float32

    def id_has_frame(self, several_frames: bool) -> bool:
        """Whether ids are "sid_fid"; several_frames: a sid occurs more than once in the split."""
        return self.task == "s2ef" and (self.dialect == "ocp" or several_frames)


def ids_of(sid: Array, fid: Array, with_frame: bool) -> Array:
    """The ids [n] of systems as text."""
    if not with_frame:
        return np.asarray(sid).astype(str)
    return np.char.add(np.char.add(np.asarray(sid).astype(str), "_"), np.asarray(fid).astype(str))
