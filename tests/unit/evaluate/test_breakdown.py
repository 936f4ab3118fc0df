"""Errors by group, against loops; the spread of an ensemble against its error."""

import numpy as np
import pytest
from make_run import make_predictions

from ocpgem.evaluate import breakdown
from ocpgem.evaluate.prediction_set import PredictionSet


def small() -> PredictionSet:
    """CO on Pt and H on Pt; the first atom of each is fixed."""
    return PredictionSet(
        sid=np.array([1, 2]),
        fid=np.zeros(2, dtype=int),
        natoms=np.array([4, 2]),
        energy=np.array([0.0, 1.0]),
        energy_true=np.array([0.5, 0.0]),
        fixed=np.array([True, False, False, False, True, False]),
        atomic_numbers=np.array([78, 78, 8, 6, 78, 1], dtype=np.uint8),
        tags=np.array([0, 1, 2, 2, 0, 2], dtype=np.uint8),
        forces=np.zeros((6, 3)),
        forces_true=np.array([[9, 9, 9], [0.3, 0, 0], [0, 0.6, 0], [0, 0, 0.006], [9, 9, 9], [3, 0, 4.0]]),
    )


def test_adsorbates_are_formulas_of_the_atoms_with_their_tag() -> None:
    assert breakdown.adsorbates(small()) == ["*CO", "*H"]
    bare = PredictionSet(**small().columns() | {"tags": np.zeros(6, dtype=np.uint8)})
    assert breakdown.adsorbates(bare) == ["none", "none"]


def test_groups_hold_frames_for_energies_and_free_atoms_for_forces() -> None:
    energies = breakdown.by_adsorbate(small(), ["*H", "*CO"], forces=False)
    assert energies.counts.tolist() == [1, 1]
    assert energies.error.tolist() == [1.0, 0.5]
    forces = breakdown.by_adsorbate(small(), ["*H", "*CO"], forces=True)
    assert forces.counts.tolist() == [1, 3]
    np.testing.assert_allclose(forces.error, [7 / 3, (0.3 + 0.6 + 0.006) / 9])
    np.testing.assert_allclose(forces.guess, forces.error)


def test_magnitudes_are_lengths_of_true_forces() -> None:
    found = breakdown.by_magnitude(small())
    assert found.names == ["0-0.01", "0.01-0.03", "0.03-0.1", "0.1-0.3", "0.3-1", "1-3", ">3"]
    assert found.counts.tolist() == [1, 0, 0, 0, 2, 0, 1]
    assert np.isnan(found.error[1])
    assert found.error[-1] == pytest.approx(7 / 3)


@pytest.mark.parametrize("sizes", [[5], [5, 5, 5], [3, 4], list(range(20, 200, 7)), [10] * 50 + [300]])
def test_every_size_falls_into_one_group(sizes: list[int]) -> None:
    edges = breakdown.size_bins(np.array(sizes))
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= 7
    assert np.histogram(sizes, edges)[0].sum() == len(sizes)
    assert edges[0] == min(sizes)
    assert edges[-1] == max(sizes) + 1


def test_all_groups_together_are_the_mean() -> None:
    each = make_predictions(30)
    error, _ = breakdown.force_errors(each)
    for found in (
        breakdown.by_magnitude(each),
        breakdown.by_size(each, breakdown.size_bins(each.natoms), True),
    ):
        kept = found.counts > 0
        total = (found.error[kept] * found.counts[kept]).sum() / found.counts.sum()
        assert total == pytest.approx(error.mean(), rel=1e-12)


def test_a_calibrated_ensemble_has_ratio_one_and_an_overconfident_one_more() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.05, 0.5, 20_000)
    error = np.abs(rng.normal(size=20_000) * spread)
    found = breakdown.calibration(spread, error)
    assert found.ratio == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(found.error, found.spread, rtol=0.1)
    assert found.rank > 0.3
    assert breakdown.calibration(spread / 3, error).ratio == pytest.approx(3, abs=0.1)


def test_without_spread_there_is_no_calibration() -> None:
    assert breakdown.calibration(np.zeros(5), np.ones(5)) is None
    assert breakdown.calibration_of_energies(make_predictions(4)) is None
    assert breakdown.calibration_of_forces(make_predictions(4)) is None
