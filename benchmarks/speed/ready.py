"""A model of published size with its systems, as a run has them when it begins to compute."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.costs import MODELS, keep_as_autograd, systems_of, train_config
from benchmarks.speed.structures import prepared
from ocpgem.graph.buckets import Buckets
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Normalization, Potential, Predictions
from ocpgem.parallel.device import hand_back_large_blocks, keep_freed_memory
from ocpgem.train.compiling import compile_blocks, compile_full
from ocpgem.train.config import TrainConfig
from ocpgem.train.ema import ExponentialMovingAverage
from ocpgem.train.loss import GlobalCounts, loss_share
from ocpgem.train.run import set_precision

PRECISIONS = ("highest", "high", "bf16")
"""As in a training configuration; "high" is "highest" on a CPU."""
COMPILED = ("blocks", "full")
"""As in a training configuration."""
WAYS = (*PRECISIONS, "plain", "checkpointing", *COMPILED)
"""How a step is computed: in a precision; with dense chains as autograd would keep them; with activations computed
again; or translated by torch.compile. All but precisions in float32."""


@dataclass(frozen=True)
class Ready:
    """What computes, and what is computed."""

    config: TrainConfig
    potential: Potential
    batch: Any
    topology: Topology

    def predictions(self) -> Predictions:
        """Energies and forces without gradients of weights."""
        with torch.no_grad():
            found: Predictions = self.potential(self.batch, self.topology)
        return found

    def training_step(self) -> Callable[[], None]:
        """Forward, loss, backward, AdamW and moving average."""
        potential, config = self.potential, self.config
        optimizer = torch.optim.AdamW(potential.parameters(), lr=1e-6, fused=True)
        average = ExponentialMovingAverage(potential, 0.999)
        counts = GlobalCounts(self.topology.n_systems, self.topology.n_atoms)

        def step() -> None:
            predictions = potential(self.batch, self.topology)
            loss_share(predictions, self.batch, config.loss, potential.normalization, counts).backward()
            optimizer.step()
            average.update(1000)
            optimizer.zero_grad()

        return step


def ready(
    model: str,
    sizes: tuple[int, ...],
    device: str,
    way: str = "highest",
    set_allocator: Callable[[], None] | None = None,
) -> Ready:
    """One of `MODELS` and systems of some numbers of atoms; sets up this process as a run does.

    way: one of `WAYS`; set_allocator: tells the allocator what to do with freed memory, if not what a run tells it.
    """
    config = config_of(model, way)
    set_precision(config, torch.device(device))
    if device == "cpu":
        usual = hand_back_large_blocks if config.activation_checkpointing else keep_freed_memory
        (set_allocator or usual)()
    batch, topology = prepared(systems_of(model, sizes), config.model.graph_spec)
    potential = potential_of(model, device)
    potential.train_in_bf16 = config.precision == "bf16"
    potential.model.checkpoint_activations = config.activation_checkpointing
    if way == "plain":
        keep_as_autograd(potential)
    if way == "blocks":
        compile_blocks(potential, torch.device(device))
    if way == "full":
        compile_full(potential, torch.device(device))
        topology = Buckets().pad(topology)
    return Ready(config, potential, batch.to(device), topology.to(device))


def potential_of(model: str, device: str) -> Potential:
    """One of `MODELS` with the weights that all measurements share, in training mode."""
    torch.manual_seed(0)
    return Potential(train_config(MODELS[model]).model, Normalization()).to(device)


def config_of(model: str, way: str) -> TrainConfig:
    """A training configuration of one of `MODELS`; way: one of `WAYS`. Raises ValueError for what cannot be trained."""
    return train_config(
        MODELS[model],
        activation_checkpointing=way == "checkpointing",
        precision=way if way in PRECISIONS else "highest",
        compile=way if way in COMPILED else "off",
    )
