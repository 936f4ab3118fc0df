"""What a run needs, before it is started: memory of a rank and hours, from its configuration and its data."""

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ocpgem.data.loader import Recipe, TrainLoader
from ocpgem.data.plan import plan_evaluation
from ocpgem.errors import RequestError
from ocpgem.graph.topology import Topology
from ocpgem.models.potential import Normalization
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import open_training_set, open_validation_sets
from ocpgem.train.engine import REDUCE_BUCKET
from ocpgem.train.step_cost import StepCost, step_cost, validation_bytes

_PLANNED_STEPS = 300
"""Steps whose plans are looked through for the largest micro-batch."""
_FLOAT = 4
_PER_PARAMETER = {False: 2, True: 3}  # moments that AdamW keeps, without and with amsgrad
_GPU_PROCESS = 1_500_000_000
"""Assumed bytes on a GPU for the CUDA context, libraries and what the allocator holds beside the tensors."""
_GPU_FRAGMENTATION = 1.1


@dataclass(frozen=True)
class Device:
    """What a step is computed on."""

    name: str
    memory: int | None
    """Bytes; None: that of the machine, not compared."""
    tflops: dict[str, float]
    """Peak of matrix products by `precision`, as the maker states it (dense)."""


GPUS = {
    "V100-32GB": Device("V100-32GB", 32 * 2**30, {"highest": 15.7, "high": 15.7, "bf16": 15.7}),
    "A100-40GB": Device("A100-40GB", 40 * 2**30, {"highest": 19.5, "high": 156, "bf16": 312}),
    "A100-80GB": Device("A100-80GB", 80 * 2**30, {"highest": 19.5, "high": 156, "bf16": 312}),
    "H100-80GB": Device("H100-80GB", 80 * 2**30, {"highest": 67, "high": 495, "bf16": 989}),
    "H200-141GB": Device("H200-141GB", 141 * 10**9, {"highest": 67, "high": 495, "bf16": 989}),
}
SHARE_OF_PEAK = {"highest": 0.5, "high": 0.2, "bf16": 0.12}
"""Assumed share of a device's peak that a step reaches: faster products leave more of the time to everything else."""


@dataclass(frozen=True)
class Batch:
    """The largest micro-batch that was found, and how a step is made of micro-batches."""

    n_systems: int
    n_atoms: int
    n_edges: int
    micro_batches: int
    """Of a rank in the step that has most of them."""


@dataclass(frozen=True)
class Estimate:
    """What one rank of a run needs, and how long the run takes."""

    n_parameters: int
    world_size: int
    zero_stage: int
    batch: Batch
    memory: dict[str, int]
    """Bytes by what they are for; they add up to the most that is needed at one time."""
    flops_per_step: float
    """Of all ranks together."""
    steps: int
    steps_per_epoch: int
    seconds_per_step: float
    device: Device

    @property
    def total_bytes(self) -> int:
        """The most bytes of a rank at one time."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether a rank fits on its device."""
        return self.device.memory is None or self.total_bytes <= self.device.memory

    @property
    def hours(self) -> float:
        """Wall time of the whole run, validation left out."""
        return self.steps * self.seconds_per_step / 3600

    @property
    def device_hours(self) -> float:
        """GPU hours (or core hours) of the whole run."""
        return self.hours * self.world_size

    @property
    def device_hours_per_epoch(self) -> float:
        """The same of one pass over the data set."""
        return self.steps_per_epoch * self.seconds_per_step / 3600 * self.world_size


def estimate(config: TrainConfig, world_size: int = 1, device: Device | None = None) -> Estimate:
    """Memory and time of a run of `config` on `world_size` ranks; None: on this machine's CPU.

    The data must be there: the largest micro-batch of the plan is looked for and its graph is built. Then the model makes
    one step on it with tensors that have no content (`step_cost`). Assumptions: float32 weights and AdamW; DeepSpeed's
    copies and buffers as measured in benchmarks/memory.py; a GPU reaches `SHARE_OF_PEAK` and a CPU what a product of
    matrices reaches just now; loader processes are left out. Raises what reading the data raises.
    """
    train_set = open_training_set(config.data)
    if config.data.batch_size < world_size:
        raise RequestError(
            f"data.batch_size is {config.data.batch_size} systems over all ranks, fewer than the {world_size} ranks; "
            "raise it or use fewer ranks"
        )
    recipe = Recipe(train_set, config.model.graph_spec, config.model.n_elements)
    loader = TrainLoader(
        recipe, config.data.batch_size, config.seed, 0, world_size, max_edges=config.data.max_edges
    )
    systems, micro_batches, edges_per_step = _largest(loader, world_size)
    batch, topology = recipe.prepare(systems)
    cost = _cost(config, recipe, systems, (batch, topology))
    n_edges = max(1, int(train_set.n_edges[systems].sum()))
    flops = cost.flops * edges_per_step / n_edges
    found = Batch(len(systems), topology.n_atoms, topology.main.n_edges, micro_batches)
    n_parameters = _n_parameters(config)
    working = max(cost.peak_bytes, _validation(config, recipe))
    chosen = device or cpu()
    return Estimate(
        n_parameters=n_parameters,
        world_size=world_size,
        zero_stage=config.parallel.zero_stage,
        batch=found,
        memory=_memory(config, n_parameters * _FLOAT, world_size, working, micro_batches)
        | _process(device, working),
        flops_per_step=flops,
        steps=config.steps,
        steps_per_epoch=loader.steps_per_epoch,
        seconds_per_step=flops / world_size / _rate(chosen, config.precision),
        device=chosen,
    )


def _largest(loader: TrainLoader, world_size: int) -> tuple[Any, int, float]:
    """Rank 0's largest micro-batch, the most micro-batches of a step, and the mean edges of a step over all ranks.

    Rank 0 gets the largest micro-batch of every step.
    """
    plan, order = loader.plan, loader.plan.epoch_order(0)
    largest, most, most_edges, total = None, 1, -1, 0.0
    steps = min(_PLANNED_STEPS, loader.steps_per_epoch)
    for step in range(steps):
        planned = plan.step(step, order, 0, world_size)
        most = max(most, len(planned.micro_batches))
        for systems in planned.micro_batches:
            edges = int(plan.n_edges[systems].sum())
            if edges > most_edges:
                largest, most_edges = systems, edges
    sample = order[: min(len(order), 100_000)]
    total = float(np.mean(plan.n_edges[sample], dtype=np.float64)) * len(order) / loader.steps_per_epoch
    assert largest is not None
    return largest, most, total


def _cost(config: TrainConfig, recipe: Recipe, systems: Any, whole: tuple[Any, Topology]) -> StepCost:
    """The cost of a step on the systems.

    Quadruplets that are summed in blocks take as many operations as there are blocks; there one and two systems are
    computed and the line through them is followed.
    """
    normalization = Normalization() if config.normalization == "fit" else config.normalization
    streamed = (
        config.model.quadruplets is not None
        and config.model.angular_basis.two_angle == "spherical_harmonics"
    )
    if not streamed or len(systems) <= 2:
        return step_cost(config, *whole, normalization)
    edges, costs = [], []
    for number in (1, 2):
        batch, topology = recipe.prepare(systems[:number])
        edges.append(topology.main.n_edges)
        costs.append(step_cost(config, batch, topology, normalization))
    beyond = (whole[1].main.n_edges - edges[0]) / max(1, edges[1] - edges[0])

    def follow(name: str) -> int:
        first, second = getattr(costs[0], name), getattr(costs[1], name)
        return int(first + (second - first) * beyond)

    return StepCost(follow("kept_bytes"), follow("peak_bytes"), follow("flops"))


def _validation(config: TrainConfig, recipe: Recipe) -> int:
    """The most bytes that a validation batch needs at one time; 0 without validation."""
    largest = 0
    for dataset in open_validation_sets(config.data).values():
        batches = plan_evaluation(
            np.ascontiguousarray(dataset.n_edges), 0, 1, config.data.eval_batch_size, config.data.max_edges
        )
        own = Recipe(dataset, recipe.graph, recipe.max_atomic_number)
        largest = max(largest, validation_bytes(config, *own.prepare(batches[0])))
    return largest


def _memory(
    config: TrainConfig, weights: int, world_size: int, working: int, micro_batches: int
) -> dict[str, int]:
    """Bytes beside those of the process; weights: bytes of all parameters in float32."""
    stage, share = config.parallel.zero_stage, 1 / world_size
    moments = _PER_PARAMETER[config.optim.amsgrad] * weights
    bucket = min(REDUCE_BUCKET * _FLOAT, weights)
    if stage == 0:
        optimizer, own, buffers = moments, weights, 0
        gradients, stepping = weights, 2 * weights
    elif stage in (1, 2):
        optimizer, own = int((moments + weights) * share), weights
        buffers, gradients, stepping = bucket, int(weights * share), int(3 * weights * share)
    else:
        optimizer, own = int((moments + 2 * weights) * share), int(weights * share)
        buffers, gradients, stepping = bucket, int(weights * share), int(weights + 3 * weights * share)
    average = int(weights * share) + weights if stage == 3 else weights
    accumulated = gradients if micro_batches > 1 else 0
    return {
        "weights": own,
        "optimiser state": optimizer,
        "moving average": average,
        "buffers of DeepSpeed": buffers,
        "activations and gradients": max(working + accumulated, 2 * weights, stepping),
    }


def _process(device: Device | None, working: int) -> dict[str, int]:
    if device is None:
        import deepspeed  # noqa: F401  (what a training process has loaded)

        return {"process and libraries": _resident()}
    return {"context and allocator": _GPU_PROCESS + int((_GPU_FRAGMENTATION - 1) * working)}


def _resident() -> int:
    """Bytes of memory that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _n_parameters(config: TrainConfig) -> int:
    from ocpgem.models.gemnet.model import GemNet

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GemNet(config.model).parameters())


def cpu() -> Device:
    """This machine's CPU, with the rate at which it multiplies matrices just now."""
    x, w = torch.randn(2048, 512), torch.randn(512, 512)
    fastest = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        x @ w
        fastest = min(fastest, time.perf_counter() - start)
    rate = 2 * x.numel() * w.shape[1] / fastest / 1e12
    return Device(f"CPU, {torch.get_num_threads()} thread(s)", None, dict.fromkeys(SHARE_OF_PEAK, rate))


_CPU_SHARE = 0.6


def _rate(device: Device, precision: str) -> float:
    """Operations per second that a step is assumed to reach."""
    share = _CPU_SHARE if device.memory is None else SHARE_OF_PEAK[precision]
    return device.tflops[precision] * share * 1e12
