"""Learning rates as pure functions of the step, so that a resumed run follows the same curve."""

import math

from ocpgem.train.config import OptimSection


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
    progress = min(1.0, (step - warmup) / max(1, n_steps - 1 - warmup))
    factor = schedule.final_factor + (1 - schedule.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * factor
