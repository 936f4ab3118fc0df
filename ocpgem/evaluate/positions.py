"""How far relaxed positions lie from true ones: minimum-image distances, and the share of systems within a threshold.

Source: Chanussot et al., ACS Catal. 11, 6059 (2021), section 4 (IS2RS), and spec/oc20.md, section 3.
"""

from typing import Any

import numpy as np
from ase.geometry import find_mic
from numpy.typing import NDArray

Array = NDArray[Any]
THRESHOLDS = np.arange(10, 500) / 1000
"""A; 0.010, 0.011, ..., 0.499."""


def mean_distances(difference: Array, natoms: Array, cell: Array, pbc: Array, fixed: Array) -> Array:
    """The mean over the free atoms of each system of the shortest length of `difference`, over all images; [n] in A.

    difference: [N, 3] A; natoms: [n]; cell: [n, 3, 3] A, rows; pbc: [n, 3]; fixed: bool [N]. Exact for cells of any
    shape (ASE's search for the shortest image in a Minkowski-reduced cell). 0 where no atom is free to move.
    """
    ends = np.cumsum(natoms)[:-1]
    pieces = np.split(np.asarray(difference, dtype=np.float64), ends)
    free = np.split(~np.asarray(fixed, dtype=bool), ends)
    return np.array(
        [
            find_mic(piece[moves], box.astype(np.float64), repeats)[1].mean() if moves.any() else 0.0
            for piece, moves, box, repeats in zip(pieces, free, cell, pbc, strict=True)
        ]
    )


def share_within(distance: Array) -> Array:
    """Of each mean distance [n] in A, the share of `THRESHOLDS` that it lies strictly below; its mean is ADwT."""
    return np.asarray((distance[:, None] < THRESHOLDS).mean(axis=1))
