"""An engine and a moving average that can take steps, for tests of what is around them."""

from pathlib import Path
from typing import Any

import torch

from ocpgem.data.dataset import InMemoryDataset
from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.models.potential import Normalization, Potential
from ocpgem.train.config import LossSection, OptimSection
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.engine import Engine
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.parallel_section import ParallelSection
from ocpgem.train.scale_fitting import scale_factors
from ocpgem.train.state import Checkpoints
from tests.tiny_runs import random_systems, tiny_config


class Run:
    """An engine and a moving average that have done some steps."""

    def __init__(
        self, seed: int = 0, stage: int = 1, exchange: dict[str, Any] | None = None, **model: Any
    ) -> None:
        torch.manual_seed(seed)
        self.potential = Potential(tiny_config(model=model).model, Normalization(energy_mean=-3.0))
        for number, scale in enumerate(scale_factors(self.potential).values()):
            scale.set(1 + 0.1 * number)
        self.engine = Engine(
            self.potential,
            OptimSection(lr=1e-2),
            ParallelSection.model_validate({"zero_stage": stage} | (exchange or {})),
            torch.device("cpu"),
        )
        self.ema = ExponentialMovingAverage(self.potential, 0.9)

    def train(self, first: int, last: int) -> None:
        dataset = InMemoryDataset(list(random_systems(6)))
        steps = TrainLoader(Recipe(dataset, self.potential.graph_spec), 3, seed=0).steps(first)
        for step in range(first, last):
            step_batch = next(steps)
            (batch, topology), *_ = step_batch.micro_batches
            counts = GlobalCounts(step_batch.n_systems_global, step_batch.n_free_atoms_global)
            predictions = self.engine.forward(batch, topology)
            loss = loss_share(predictions, batch, LossSection(), self.potential.normalization, counts)
            self.engine.backward(loss, last=True)
            self.engine.step(1e-2)
            self.ema.update(step + 1)

    def restored_step(self, checkpoints: Checkpoints, folder: Path) -> int:
        return checkpoints.load(folder, self.engine, self.ema).step

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.potential.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)
