"""How good relaxed structures are where the data know the true ones: IS2RE and IS2RS."""

import dataclasses

import numpy as np

from ocpgem.evaluate.positions import mean_distances, share_within
from ocpgem.evaluate.prediction_set import PredictionSet, score

ADWT = "average_distance_within_threshold"


def relaxed_scores(predictions: PredictionSet) -> dict[str, float]:
    """IS2RE energy metrics and IS2RS ADwT (a share), as far as there are labels."""
    if predictions.energy_true is not None:
        return score(dataclasses.replace(predictions, forces=None))
    if predictions.pos is None or predictions.pos_true is None:
        return {}
    assert predictions.cell is not None, "distances need the cell"
    assert predictions.pbc is not None, "distances need to know what repeats"
    away = np.asarray(predictions.pos - predictions.pos_true)
    distances = mean_distances(away, predictions.natoms, predictions.cell, predictions.pbc, predictions.fixed)
    return {ADWT: float(share_within(distances).mean())}
