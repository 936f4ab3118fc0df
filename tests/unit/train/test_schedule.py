"""The learning rate is a pure function of the step."""

import math
from itertools import pairwise

import pytest

from ocpgem.train.config import OptimSection, PlateauSection, ScheduleSection
from ocpgem.train.schedule import Plateau, learning_rate


def optim(**schedule: object) -> OptimSection:
    return OptimSection(lr=0.1, schedule=ScheduleSection.model_validate(schedule))


def rates(settings: OptimSection, n_steps: int) -> list[float]:
    return [learning_rate(settings, step, n_steps) for step in range(n_steps)]


def test_constant_stays() -> None:
    assert rates(optim(name="constant"), 4) == [0.1] * 4


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warm_up_rises_in_equal_steps_and_never_is_zero(name: str) -> None:
    found = rates(optim(name=name, warmup_steps=4), 20)
    assert found[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])


def test_cosine_falls_from_lr_to_the_final_factor_over_the_steps_after_warm_up() -> None:
    found = rates(optim(name="cosine", warmup_steps=2, final_factor=0.05), 13)
    assert found[2] == pytest.approx(0.1)
    assert found[7] == pytest.approx(0.1 * (1 + 0.05) / 2)
    assert found[12] == pytest.approx(0.005)
    assert all(later < earlier for earlier, later in pairwise(found[2:]))
    quarter = 0.1 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 3 / 10)))
    assert found[5] == pytest.approx(quarter)


def test_cosine_stays_at_its_end_and_works_in_the_shortest_runs() -> None:
    assert learning_rate(optim(name="cosine", final_factor=0.05), 50, 10) == pytest.approx(0.005)
    assert rates(optim(name="cosine"), 1) == pytest.approx([0.1])
    assert rates(optim(name="cosine", warmup_steps=5), 2) == pytest.approx([0.1 / 6, 0.2 / 6])


def test_step_multiplies_by_gamma_at_every_milestone() -> None:
    found = rates(optim(name="step", milestones=[2, 3], gamma=0.5, warmup_steps=1), 5)
    assert found == pytest.approx([0.05, 0.1, 0.05, 0.025, 0.025])


def test_the_same_step_always_gives_the_same_rate() -> None:
    settings = optim(name="cosine", warmup_steps=3)
    forward = rates(settings, 10)
    assert [learning_rate(settings, step, 10) for step in reversed(range(10))] == forward[::-1]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "step"}, "milestones must be given"),
        ({"name": "cosine", "milestones": [3]}, "milestones must be given"),
        ({"name": "step", "milestones": [3, 2]}, "must increase"),
        ({"name": "step", "milestones": [2, 2]}, "must increase"),
    ],
)
def test_milestones_belong_to_the_step_schedule_and_increase(schedule: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleSection.model_validate(schedule)


def test_exponential_falls_by_the_final_factor_in_every_period() -> None:
    settings = optim(name="exponential", decay_steps=10, final_factor=0.01, warmup_steps=2)
    assert learning_rate(settings, 2, 100) == pytest.approx(0.1)
    assert learning_rate(settings, 12, 100) == pytest.approx(0.001)
    assert learning_rate(settings, 7, 100) == pytest.approx(0.01)


def test_plateau_lowers_the_rate_after_more_bad_validations_than_its_patience() -> None:
    plateau = Plateau(PlateauSection(factor=0.5, patience=2))
    falls = [plateau.validated(metric) for metric in (3.0, 2.0, 2.0, 2.1, 2.0, 1.0, 1.5, 1.5, 1.5)]
    assert falls == [False] * 4 + [True] + [False] * 3 + [True]
    assert plateau.factor == 0.25


def test_plateau_agrees_with_torch() -> None:
    import torch

    metrics = [5, 4, 4, 4.1, 4, 3.9996, 4, 3, 3.1, 3.2, 3.3, 3.4, 3.5, 2.9, 3, 3, 3, 3, 3, 3, 3, 3]
    for patience, cooldown in ((0, 0), (1, 2), (2, 0), (3, 1)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.8, patience=patience, cooldown=cooldown
        )
        ours = Plateau(PlateauSection(factor=0.8, patience=patience, cooldown=cooldown))
        for metric in metrics:
            theirs.step(metric)
            ours.validated(metric)
            assert ours.factor == pytest.approx(optimizer.param_groups[0]["lr"]), (patience, cooldown)


def test_plateau_goes_on_from_its_state() -> None:
    section = PlateauSection(factor=0.5, patience=1, cooldown=1)
    whole, first, second = Plateau(section), Plateau(section), Plateau(section)
    metrics = [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    expected = [whole.validated(metric) for metric in metrics]
    found = [first.validated(metric) for metric in metrics[:4]]
    second.load_state_dict(first.state_dict())
    assert found + [second.validated(metric) for metric in metrics[4:]] == expected
    assert second.state_dict() == whole.state_dict()


def test_without_a_section_the_rate_is_left_alone() -> None:
    plateau = Plateau(optim(name="cosine").schedule.on_plateau)
    assert not any(plateau.validated(1.0) for _ in range(20))
    assert optim(name="plateau").schedule.on_plateau == PlateauSection()
    with pytest.raises(ValueError, match="decay_steps must be given"):
        ScheduleSection(name="exponential")
