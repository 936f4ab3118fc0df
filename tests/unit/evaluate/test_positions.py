"""ADwT: hand-computed distances, images, and the strict thresholds."""

import itertools

import numpy as np
import pytest
from make_run import make_predictions

from ocpgem.evaluate.positions import THRESHOLDS, mean_distances, share_within
from ocpgem.evaluate.prediction_set import PredictionSet, score

BOX = np.diag([4.0, 5.0, 6.0])
PERIODIC = np.ones(3, dtype=bool)
FREE = np.zeros(20, dtype=bool)


def test_the_distance_is_that_of_the_nearest_image() -> None:
    difference = np.array([[0.3, 0.4, 0.0], [3.9, 0.0, 0.0], [0.0, 5.2, 0.0]])
    found = mean_distances(
        difference, np.array([1, 2]), np.stack([BOX, BOX]), np.stack([PERIODIC] * 2), FREE[:3]
    )
    np.testing.assert_allclose(found, [0.5, 0.15], rtol=1e-6)


def test_fixed_atoms_are_left_out_and_a_system_without_free_ones_is_where_it_should_be() -> None:
    difference = np.array([[0.5, 0, 0], [0, 0, 0], [0, 0, 0], [3.0, 0, 0]])
    natoms, fixed = np.array([3, 1]), np.array([False, True, True, True])
    found = mean_distances(difference, natoms, np.stack([BOX, BOX]), np.stack([PERIODIC] * 2), fixed)
    np.testing.assert_allclose(found, [0.5, 0.0])


def test_an_axis_that_does_not_repeat_has_no_images() -> None:
    pbc = np.array([[False, True, True]])
    assert mean_distances(np.array([[3.9, 0, 0]]), np.array([1]), BOX[None], pbc, FREE[:1])[
        0
    ] == pytest.approx(3.9)


def test_a_skewed_cell_is_searched_as_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0, 0], [9.3, 4.1, 0], [1.0, 7.9, 5.0]])
    difference = rng.normal(size=(20, 3)) * 2
    images = np.array(list(itertools.product(range(-15, 16), repeat=3))) @ cell
    expected = np.linalg.norm(difference[:, None] + images, axis=-1).min(axis=1).mean()
    found = mean_distances(difference, np.array([20]), cell[None], PERIODIC[None], FREE)
    assert found[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("distance", "share"),
    [(0.0, 1.0), (0.5, 0.0), (0.25, 249 / 490), (0.2499999, 250 / 490), (0.01, 489 / 490)],
)
def test_the_thresholds_are_strict_and_490(distance: float, share: float) -> None:
    assert (len(THRESHOLDS), THRESHOLDS[0], THRESHOLDS[-1]) == (490, 0.01, 0.499)
    assert share_within(np.array([distance]))[0] == pytest.approx(share, rel=1e-12)


def test_relaxed_structures_are_scored_by_energy_and_position() -> None:
    columns = make_predictions(2).columns() | {"natoms": np.array([1, 2])}
    for name in ("forces", "forces_true"):
        del columns[name]
    columns |= {name: columns[name][:3] for name in ("fixed", "atomic_numbers")}
    columns["pos_true"] = np.zeros((3, 3))
    columns["pos"] = np.array([[0.25, 0, 0], [0, 0, 6.2005], [0, 0, 0.2005]])
    columns |= {"cell": np.stack([BOX, BOX]), "pbc": np.stack([PERIODIC] * 2)}
    found = score(PredictionSet(**columns))
    assert found["average_distance_within_threshold"] == pytest.approx((249 + 299) / 2 / 490, rel=1e-9)
    assert found["energy_mae"] == pytest.approx(np.abs(columns["energy"] - columns["energy_true"]).mean())
