"""Learning rates: pure functions of the step, so that a resumed run follows them, times what validations have done."""

import math

from ocpgem.train.config import OptimSection, PlateauSection


def learning_rate(optim: OptimSection, step: int, n_steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0) in a run of `n_steps`."""
    schedule = optim.schedule
    warmup = schedule.warmup_steps
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    if schedule.name == "constant":
        return optim.lr
    if schedule.name == "step":
        return optim.lr * schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    if schedule.name == "plateau":
        return optim.lr
    if schedule.name == "exponential":
        assert schedule.decay_steps is not None
        return optim.lr * schedule.final_factor ** ((step - warmup) / schedule.decay_steps)
    progress = min(1.0, (step - warmup) / max(1, n_steps - 1 - warmup))
    factor = schedule.final_factor + (1 - schedule.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * factor


def schedule_notes(optim: OptimSection, n_steps: int) -> list[str]:
    """What of its schedule a run of `n_steps` does not reach, in sentences; meant only where it is to be extended."""
    schedule, notes = optim.schedule, []
    if schedule.warmup_steps >= n_steps:
        last = learning_rate(optim, n_steps - 1, n_steps)
        notes.append(
            f"optim.schedule.warmup_steps is {schedule.warmup_steps:,} and the run has {n_steps:,} steps: it ends in "
            f"the warm-up, at a learning rate of {last:.3g} instead of {optim.lr:g}"
        )
    beyond = [milestone for milestone in schedule.milestones if milestone >= n_steps]
    if beyond:
        notes.append(
            f"optim.schedule.milestones: the run has {n_steps:,} steps, so the learning rate does not fall at "
            f"{', '.join(f'{milestone:,}' for milestone in beyond)}"
        )
    return notes


class Plateau:
    """Multiplies the learning rate by `factor`, which falls when validations stop to improve (smaller is better).

    Without a section the factor stays 1.
    """

    def __init__(self, section: PlateauSection | None) -> None:
        self._section = section
        self.factor = 1.0
        self._best: float | None = None
        self._bad = 0
        self._cooldown = 0

    def validated(self, metric: float) -> bool:
        """Take in a validation; returns whether the rate falls."""
        section = self._section
        if section is None:
            return False
        if self._best is None or metric < self._best - abs(self._best) * section.threshold:
            self._best, self._bad = metric, 0
        elif self._cooldown == 0:
            self._bad += 1
        self._cooldown = max(0, self._cooldown - 1)
        lower = max(section.lowest, self.factor * section.factor)
        if self._bad <= section.patience or lower >= self.factor:
            return False
        self.factor, self._bad, self._cooldown = lower, 0, section.cooldown
        return True

    def state_dict(self) -> dict[str, float]:
        """What a resumed run goes on from."""
        best = {} if self._best is None else {"best": self._best}
        return {"factor": self.factor, "bad": self._bad, "cooldown": self._cooldown, **best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from what `state_dict` returned; an empty one stands for the beginning."""
        self.factor = state.get("factor", 1.0)
        self._best = state.get("best")
        self._bad, self._cooldown = int(state.get("bad", 0)), int(state.get("cooldown", 0))
