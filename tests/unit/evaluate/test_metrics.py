"""S2EF metrics: hand-computed values, a plain numpy reference, and what the definitions leave open."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from ocpgem.errors import DataError
from ocpgem.evaluate import metrics as metrics_module
from ocpgem.evaluate.metrics import METRICS, ROW, S2EFMetrics

FORCE_NAMES = {metric.name for metric in METRICS if "forces" in metric.name}


def make_batch(
    n_atoms: list[int], energy: object, forces: object | None, fixed: object | None = None, first_sid: int = 0
) -> Batch:
    total = sum(n_atoms)
    fields = {"energy": torch.as_tensor(energy, dtype=torch.float64)}
    if forces is not None:
        fields["forces"] = torch.as_tensor(forces).reshape(total, 3)
    return Batch(
        _base_cls=Data,
        fixed=torch.zeros(total, dtype=torch.bool) if fixed is None else torch.as_tensor(fixed),
        natoms=torch.tensor(n_atoms),
        batch=torch.arange(len(n_atoms)).repeat_interleave(torch.tensor(n_atoms)),
        sid=torch.arange(len(n_atoms)) + first_sid,
        fid=torch.full((len(n_atoms),), 7),
        **fields,
    )


def predictions(energy: object, forces: object) -> SimpleNamespace:
    forces = torch.as_tensor(forces, dtype=torch.float64).reshape(-1, 3)
    return SimpleNamespace(energy=torch.as_tensor(energy, dtype=torch.float64), forces=forces)


def score(predicted: SimpleNamespace, batch: Batch) -> dict[str, float]:
    metrics = S2EFMetrics()
    metrics.update(predicted, batch)
    return metrics.result()


def random_set(n_systems: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Systems with 1 to 6 atoms; every fourth wholly fixed, many close to the thresholds."""
    rng = np.random.default_rng(seed)
    systems = []
    for index in range(n_systems):
        n = int(rng.integers(1, 7))
        fixed = np.ones(n, dtype=bool) if index % 4 == 3 else rng.random(n) < 0.4
        energy, forces = rng.normal(), rng.normal(size=(n, 3)).astype(np.float32)
        systems.append(
            {
                "energy": np.array(energy),
                "forces": forces,
                "fixed": fixed,
                "energy_pred": np.array(energy + rng.normal() * 0.03),
                "forces_pred": forces + rng.normal(size=(n, 3)).astype(np.float32) * 0.02,
            }
        )
    return systems


def as_batch(systems: list[dict[str, np.ndarray]]) -> tuple[SimpleNamespace, Batch]:
    join = {key: np.concatenate([np.atleast_1d(s[key]) for s in systems]) for key in systems[0]}
    batch = make_batch([len(s["fixed"]) for s in systems], join["energy"], join["forces"], join["fixed"])
    return predictions(join["energy_pred"], join["forces_pred"]), batch


def reference(systems: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The definitions once more, one system and one atom at a time."""
    lists: dict[str, list[float]] = {metric.name: [] for metric in METRICS}
    for s in systems:
        error = abs(float(s["energy_pred"]) - float(s["energy"]))
        lists["energy_mae"].append(error)
        lists["energy_per_atom_mae"].append(error / len(s["fixed"]))
        lists["energy_within_threshold"].append(error < 0.02)
        worst = 0.0
        for ours, true, fixed in zip(s["forces_pred"], s["forces"], s["fixed"], strict=True):
            if fixed:
                continue
            p, t = ours.astype(np.float64), true.astype(np.float64)
            worst = max(worst, np.abs(p - t).max())
            lists["forces_mae"].extend(np.abs(p - t))
            for axis, name in enumerate("xyz"):
                lists[f"forces{name}_mae"].append(abs(p[axis] - t[axis]))
            size = np.sqrt(p @ p) * np.sqrt(t @ t)
            lists["forces_cosine_similarity"].append(p @ t / size if size else 0.0)
            lists["forces_magnitude_error"].append(abs(np.sqrt(p @ p) - np.sqrt(t @ t)))
        lists["energy_forces_within_threshold"].append(error < 0.02 and worst < 0.03)
    return {name: float(np.mean(values)) for name, values in lists.items()}


def test_values_computed_by_hand() -> None:
    # Two systems: one atom off by (3, 4, 0) against (0, 0, 5); two atoms, the second fixed and hopelessly
    # wrong.
    batch = make_batch([1, 2], [1.0, -2.0], [[0.0, 0, 5], [1, 0, 0], [0, 0, 0]], [False, False, True])
    result = score(predictions([1.01, -2.5], [[3.0, 4, 5], [-2, 0, 0], [99, 99, 99]]), batch)
    expected = {
        "energy_mae": (0.01 + 0.5) / 2,
        "energy_per_atom_mae": (0.01 + 0.25) / 2,
        "energy_within_threshold": 0.5,
        "forces_mae": (3 + 4 + 0 + 3 + 0 + 0) / 6,
        "forcesx_mae": 3.0,
        "forcesy_mae": 2.0,
        "forcesz_mae": 0.0,
        "forces_cosine_similarity": (1 / np.sqrt(2) - 1) / 2,
        "forces_magnitude_error": (np.sqrt(50) - 5 + 1) / 2,
        "energy_forces_within_threshold": 0.0,
    }
    assert result == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("per_batch", [1, 7, 40])
def test_any_batch_size_gives_the_numpy_reference(per_batch: int) -> None:
    systems = random_set(40, seed=1)
    metrics = S2EFMetrics()
    for start in range(0, len(systems), per_batch):
        metrics.update(*as_batch(systems[start : start + per_batch]))
    result = metrics.result()
    assert 0 < result["energy_forces_within_threshold"] < result["energy_within_threshold"] < 1
    assert result == pytest.approx(reference(systems), rel=1e-12)


@pytest.mark.parametrize(("shift", "within"), [(0.02, 0.0), (0.0199999, 1.0)])
def test_the_energy_threshold_is_strict(shift: float, within: float) -> None:
    batch = make_batch([1], [0.0], [[0.0, 0, 0]])
    assert score(predictions([shift], [0.0, 0, 0]), batch)["energy_within_threshold"] == within
    assert score(predictions([-shift], [0.0, 0, 0]), batch)["energy_within_threshold"] == within


@pytest.mark.parametrize(("shift", "within"), [(0.03, 0.0), (0.0299999, 1.0)])
def test_the_force_threshold_is_strict_and_takes_the_worst_component(shift: float, within: float) -> None:
    batch = make_batch([2], [0.0], np.zeros((2, 3)))
    forces = [[0.0, 0, 0], [0, -shift, 0]]
    assert score(predictions([0.0], forces), batch)["energy_forces_within_threshold"] == within


def test_a_zero_force_has_cosine_zero() -> None:
    batch = make_batch([3], [0.0], [[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    result = score(predictions([0.0], [[1.0, 0, 0], [0, 0, 0], [5, 0, 0]]), batch)
    assert result["forces_cosine_similarity"] == pytest.approx(1 / 3, rel=1e-12)


def test_tiny_forces_still_have_a_direction() -> None:
    batch = make_batch([1], [0.0], [[1e-30, 0, 0]])
    assert score(predictions([0.0], [-1e-30, 0, 0]), batch)["forces_cosine_similarity"] == pytest.approx(-1)


def test_a_system_without_free_atoms_counts_by_its_energy_alone() -> None:
    batch = make_batch([1, 1], [0.0, 0.0], [[1.0, 1, 1], [0, 0, 0]], [True, False])
    result = score(predictions([0.0, 0.0], [[9.0, 9, 9], [0.5, 0, 0]]), batch)
    assert result["energy_forces_within_threshold"] == 0.5
    assert result["forces_mae"] == pytest.approx(0.5 / 3)


def test_a_set_without_any_free_atom_has_no_force_error() -> None:
    result = score(predictions([0.0], [9.0, 9, 9]), make_batch([1], [0.0], [[1.0, 1, 1]], [True]))
    assert "forces_mae" not in result
    assert result["energy_forces_within_threshold"] == 1.0


def test_energies_alone_are_scored_without_force_labels() -> None:
    result = score(predictions([0.5], [9.0, 9, 9]), make_batch([1], [0.0], None))
    assert result == {"energy_mae": 0.5, "energy_per_atom_mae": 0.5, "energy_within_threshold": 0.0}


def test_a_model_without_forces_is_scored_by_its_energies() -> None:
    predicted = predictions([0.5], [9.0, 9, 9])
    predicted.forces = None
    assert "forces_mae" not in score(predicted, make_batch([1], [0.0], [[0.0, 0, 0]]))


def test_nothing_seen_gives_nothing() -> None:
    assert S2EFMetrics().result() == {}


def test_a_large_energy_loses_no_digits() -> None:
    batch = make_batch([1], [-123456.75], [[0.0, 0, 0]])
    result = score(predictions([-123456.75 + 1e-7], [0.0, 0, 0]), batch)
    assert result["energy_mae"] == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prediction_that_is_not_finite_names_its_system(bad: float) -> None:
    batch = make_batch([1, 2], [0.0, 0.0], np.zeros((3, 3)), first_sid=40)
    with pytest.raises(DataError, match="predictions for sid 41, frame 7"):
        score(predictions([0.0, bad], np.zeros((3, 3))), batch)
    forces = np.zeros((3, 3))
    forces[2, 1] = bad
    with pytest.raises(DataError, match="predictions for sid 41, frame 7"):
        score(predictions([0.0, 0.0], forces), batch)


def test_a_label_that_is_not_finite_names_its_system() -> None:
    batch = make_batch([1, 2], [float("nan"), 0.0], np.zeros((3, 3)), first_sid=40)
    with pytest.raises(DataError, match="labels for sid 40, frame 7"):
        score(predictions([0.0, 0.0], np.zeros((3, 3))), batch)


def test_data_without_labels_are_refused() -> None:
    batch = make_batch([1], [0.0], None)
    del batch.energy
    with pytest.raises(DataError, match="no energy labels"):
        score(predictions([0.0], [0.0, 0, 0]), batch)


def test_predictions_may_carry_gradients() -> None:
    predicted = predictions([0.5], [9.0, 9, 9])
    predicted.energy.requires_grad_()
    predicted.forces.requires_grad_()
    assert score(predicted, make_batch([1], [0.0], [[0.0, 0, 0]]))["energy_mae"] == 0.5


def by_system(sids: list[int], errors: list[float]) -> S2EFMetrics:
    """Metrics of frames of one atom with these energy errors."""
    metrics = S2EFMetrics()
    for sid, error in zip(sids, errors, strict=True):
        predicted = predictions([error], [0.0, 0, 0])
        metrics.update(predicted, make_batch([1], [0.0], [[0.0, 0, 0]], first_sid=sid))
    return metrics


def test_totals_are_kept_by_system_in_float64() -> None:
    sids, terms = by_system([7, 3, 7], [0.25, 1.0, 0.5]).totals()
    assert sids.tolist() == [3, 7]
    assert terms.dtype == np.float64
    assert terms[:, ROW["energy_mae"]].tolist() == [[1.0, 1.0], [0.75, 2.0]]


def test_the_interval_resamples_systems_not_frames() -> None:
    # Two systems of 50 equal frames each: a sample of systems holds 0, 1 or 2 of the bad one.
    scores = by_system([1] * 50 + [2] * 50, [0.0] * 50 + [1.0] * 50).scores(resamples=400)
    assert (scores.n_systems, scores.n_frames) == (2, 100)
    assert sorted(set(scores.samples["energy_mae"])) == [0.0, 0.5, 1.0]
    assert scores.intervals()["energy_mae"] == (0.0, 1.0)


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    errors = rng.exponential(size=400)
    scores = by_system(list(range(400)), errors.tolist()).scores()
    low, high = scores.intervals()["energy_mae"]
    half = 1.96 * errors.std() / 20
    assert low == pytest.approx(errors.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(errors.mean() + half, abs=0.15 * half)
    assert scores.intervals(0.5)["energy_mae"][0] > low


def test_one_system_has_no_interval() -> None:
    assert by_system([4, 4], [0.0, 1.0]).scores().intervals() == {}


def test_many_frames_are_added_up_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sids, errors = [i % 5 for i in range(40)], [i / 8 for i in range(40)]
    whole = by_system(sids, errors).totals()
    monkeypatch.setattr(metrics_module, "_MANY_ROWS", 7)
    for one, other in zip(by_system(sids, errors).totals(), whole, strict=True):
        np.testing.assert_array_equal(one, other)
