"""Predictions against labels while a data set is scored, drawn for a sample of its systems."""

import numpy as np

from ocpgem.data.loader import EvalBatch
from ocpgem.evaluate.prediction_set import PredictionSet, as_arrays, join
from ocpgem.models.potential import Predictions
from ocpgem.parallel import group

_SEED = 0


class ParitySample:
    """Up to so many systems of a data set, chosen at random but always the same ones, over all ranks."""

    def __init__(self, n_systems: int, at_most: int) -> None:
        """at_most: 0 samples nothing."""
        self._chosen = np.zeros(n_systems, dtype=bool)
        count = min(n_systems, at_most)
        self._chosen[np.random.default_rng(_SEED).choice(n_systems, count, replace=False)] = True
        self._any = count > 0
        self._mine: list[PredictionSet] = []

    def take(self, item: EvalBatch, predictions: Predictions) -> None:
        """Keep what belongs to the sample of a batch of this rank."""
        wanted = np.flatnonzero(self._chosen[item.indices])
        if len(wanted):
            self._mine.append(as_arrays(predictions, item.batch).take(wanted))

    def gathered(self) -> PredictionSet | None:
        """The whole sample on rank 0, None elsewhere and where there is none; a collective."""
        if not self._any:
            return None
        parts = group.gather_objects(self._mine)
        return None if parts is None else join([each for part in parts for each in part])

    def png(self, title: str) -> bytes | None:
        """Parity of energies and forces as a PNG, on rank 0; None elsewhere. A collective."""
        found = self.gathered()
        if found is None:
            return None
        from ocpgem.evaluate.figures import LIGHT, parity

        return parity(LIGHT, title, found)
