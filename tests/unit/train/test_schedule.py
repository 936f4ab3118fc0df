"""The learning rate is a pure function of the step."""

import math
from itertools import pairwise

import pytest

from ocpgem.train.config import OptimSection, ScheduleSection
from ocpgem.train.schedule import learning_rate


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
