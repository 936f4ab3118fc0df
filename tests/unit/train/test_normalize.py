"""The normalisation fitted to a data set."""

import numpy as np
import pytest

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.errors import DataError
from ocpgem.train import normalize
from ocpgem.train.normalize import fit_normalization
from tests.tiny_runs import random_systems


def test_it_is_mean_and_deviation_of_the_energy_and_rms_of_the_free_force_components() -> None:
    systems = list(random_systems(9))
    found = fit_normalization(InMemoryDataset(systems), forces=True)
    energies = np.array([s.energy for s in systems])
    free = np.concatenate([s.forces[~s.fixed].ravel() for s in systems if s.forces is not None])
    assert found.energy_mean == pytest.approx(energies.mean())
    assert found.energy_std == pytest.approx(energies.std())
    assert found.forces_std == pytest.approx(np.sqrt((free.astype(float) ** 2).mean()))


def test_a_large_set_is_sampled_evenly_from_its_first_to_its_last_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    systems = list(random_systems(9))
    monkeypatch.setattr(normalize, "MAX_RECORDS", 3)
    found = fit_normalization(InMemoryDataset(systems), forces=True)
    assert found.energy_mean == pytest.approx(np.mean([systems[i].energy for i in (0, 4, 8)]))


def test_data_without_spread_keep_their_scale() -> None:
    system = next(random_systems(1))
    assert system.forces is not None
    system.forces = np.zeros_like(system.forces)
    found = fit_normalization(InMemoryDataset([system] * 3), forces=True)
    assert (found.energy_std, found.forces_std) == (1.0, 1.0)


def test_labels_are_needed_only_where_they_are_trained_on() -> None:
    systems = list(random_systems(3))
    systems[2].forces = None
    assert fit_normalization(InMemoryDataset(systems), forces=False).forces_std > 0
    with pytest.raises(DataError, match="sid 2, frame 2 has no forces"):
        fit_normalization(InMemoryDataset(systems), forces=True)
    systems[1].energy = None
    with pytest.raises(DataError, match="sid 1, frame 1 has no energy"):
        fit_normalization(InMemoryDataset(systems), forces=False)


def test_a_label_that_is_not_a_number_is_refused_by_name() -> None:
    systems = list(random_systems(3))
    systems[1].energy = float("nan")
    with pytest.raises(DataError, match="sid 1, frame 1: energy holds a value that is not finite"):
        fit_normalization(InMemoryDataset(systems), forces=True)
