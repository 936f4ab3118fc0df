"""How good relaxed structures are where the data know the true ones: IS2RE and IS2RS."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocpgem.evaluate.prediction_set import PredictionSet, score

Floats = NDArray[Any]
THRESHOLDS = np.arange(10, 500) / 1000  # A
ADWT = "average_distance_within_threshold"


def relaxed_scores(predictions: PredictionSet) -> dict[str, float]:
    """IS2RE energy metrics and IS2RS ADwT (a share), as far as there are labels."""
    found: dict[str, float] = {}
    if predictions.energy_true is not None:
        found |= score(dataclasses.replace(predictions, forces=None))
    distances = mean_distances(predictions)
    if distances is not None:
        found[ADWT] = float((distances[:, None] < THRESHOLDS).mean())
    return found


def mean_distances(predictions: PredictionSet) -> Floats | None:
    """The mean distance [n] in A of all atoms from where they should be, by the nearest image; None without labels."""
    from ase.geometry import find_mic

    if predictions.pos is None or predictions.pos_true is None:
        return None
    assert predictions.cell is not None
    assert predictions.pbc is not None
    ends = np.cumsum(predictions.natoms)
    means = []
    for place, (end, count) in enumerate(zip(ends, predictions.natoms, strict=True)):
        mine = slice(end - count, end)
        away = predictions.pos[mine] - predictions.pos_true[mine]
        cell, pbc = predictions.cell[place].astype(float), predictions.pbc[place]
        means.append(float(find_mic(away, cell, pbc)[1].mean()))
    return np.array(means)
