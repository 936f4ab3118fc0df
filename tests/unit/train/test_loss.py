"""The loss of one optimiser step, whoever computes which part of it."""

import math
from types import SimpleNamespace

import pytest
import torch

from ocpgem.data.batch import collate
from ocpgem.errors import DataError
from ocpgem.models.potential import Normalization, Predictions
from ocpgem.train.config import LossSection
from ocpgem.train.loss import GlobalCounts, loss_share, require_labels
from tests.tiny_runs import random_systems

WEIGHTS = LossSection(energy=2.0, forces=5.0)
NORM = Normalization(energy_mean=-1.0, energy_std=4.0, forces_std=0.5)


def test_a_hand_computed_loss() -> None:
    batch = SimpleNamespace(
        energy=torch.tensor([1.0, -2.0], dtype=torch.float64),
        forces=torch.zeros(3, 3),
        fixed=torch.tensor([False, True, False]),
    )
    forces = torch.tensor([[3.0, 4.0, 0.0], [100.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
    predictions = Predictions(torch.tensor([2.0, 1.0]), forces)
    energy_term = 2.0 * (1 + 3) / 2 / 4.0
    force_term = 5.0 * (5 + 2) / 2 / 0.5
    share = loss_share(predictions, batch, WEIGHTS, NORM, GlobalCounts(2, 2))
    assert float(share) == pytest.approx(energy_term + force_term, rel=1e-6)


def predictions_of(batch: object) -> Predictions:
    generator = torch.Generator().manual_seed(int(batch.sid.sum()))  # type: ignore[attr-defined]
    shift = torch.randn(batch.forces.shape, generator=generator)  # type: ignore[attr-defined]
    return Predictions(batch.energy.float() + batch.sid.float() - 3, batch.forces + shift)  # type: ignore[attr-defined]


@pytest.mark.parametrize("split", [[7], [1, 6], [3, 3, 1], [1] * 7])
def test_the_shares_add_up_to_the_mean_whatever_the_split(split: list[int]) -> None:
    systems = list(random_systems(7))
    singles = [collate([system]) for system in systems]
    outputs = [predictions_of(single) for single in singles]
    counts = GlobalCounts(7, sum(int((~s.fixed).sum()) for s in systems))
    total, start = 0.0, 0
    for size in split:
        part = slice(start, start + size)
        joined = Predictions(
            torch.cat([p.energy for p in outputs[part]]),
            torch.cat([p.forces for p in outputs[part] if p.forces is not None]),
        )
        total += float(loss_share(joined, collate(systems[part]), WEIGHTS, NORM, counts))
        start += size
    energy = [abs(float(p.energy) - float(s.energy)) for p, s in zip(outputs, singles, strict=True)]
    norms = [
        float((p.forces - s.forces)[atom].norm())
        for p, s in zip(outputs, singles, strict=True)
        for atom in torch.nonzero(~s.fixed).flatten()
    ]
    expected = 2.0 * sum(energy) / len(energy) / 4.0 + 5.0 * sum(norms) / len(norms) / 0.5
    assert total == pytest.approx(expected, rel=1e-5)


def test_fixed_atoms_get_no_gradient_and_a_perfect_force_gets_a_finite_one() -> None:
    batch = collate(list(random_systems(3)))
    forces = batch.forces.clone()
    forces[1:] += 0.3
    forces.requires_grad_()
    counts = GlobalCounts(3, int((~batch.fixed).sum()))
    loss_share(Predictions(batch.energy.float(), forces), batch, WEIGHTS, NORM, counts).backward()
    assert forces.grad is not None
    assert torch.isfinite(forces.grad).all()
    assert (forces.grad[batch.fixed] == 0).all()
    assert (forces.grad[1:][~batch.fixed[1:]] != 0).all()


def test_a_step_of_fixed_atoms_only_has_a_loss_of_its_energy() -> None:
    batch = collate(list(random_systems(1)))
    batch.fixed[:] = True
    predictions = Predictions(batch.energy.float() + 1, batch.forces + 1)
    share = loss_share(predictions, batch, WEIGHTS, NORM, GlobalCounts(1, 0))
    assert float(share) == pytest.approx(0.5)


def test_a_model_of_energies_only_has_a_loss_of_energies() -> None:
    batch = collate(list(random_systems(2)))
    predictions = Predictions(batch.energy.float() + 1, None)
    assert math.isclose(
        float(loss_share(predictions, batch, WEIGHTS, NORM, GlobalCounts(2, 5))), 0.5, rel_tol=1e-6
    )


@pytest.mark.parametrize("key", ["energy", "forces"])
def test_a_batch_without_labels_is_refused_by_name(key: str) -> None:
    systems = list(random_systems(2))
    for system in systems:
        setattr(system, key, None)
    with pytest.raises(DataError, match=f"sid 0, frame 0 has no {key}"):
        require_labels(collate(systems), forces=True)
    if key == "forces":
        require_labels(collate(systems), forces=False)


@pytest.mark.parametrize(("progress", "softening"), [(0.0, 0.2), (0.25, 0.1), (0.5, 0.0), (0.9, 0.0)])
def test_small_force_errors_are_softened_at_the_start_of_a_run_only(
    progress: float, softening: float
) -> None:
    batch = SimpleNamespace(energy=torch.zeros(1), forces=torch.zeros(1, 3), fixed=torch.tensor([False]))
    predictions = Predictions(torch.zeros(1), torch.tensor([[0.3, 0.0, 0.0]]))
    weights = LossSection(energy=0.0, forces=1.0, forces_softening=0.2)
    share = loss_share(predictions, batch, weights, Normalization(), GlobalCounts(1, 1), progress)
    assert float(share) == pytest.approx(math.hypot(0.3, softening) - softening, rel=1e-5)
