"""What a run needs, before it is started: memory of a rank and hours, from its configuration and its data."""

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ocpgem.data.cost import fit_edge_cost
from ocpgem.data.dataset import Dataset
from ocpgem.data.draws import all_once
from ocpgem.data.loader import EvalLoader, Recipe
from ocpgem.data.plan import TrainPlan
from ocpgem.errors import RequestError
from ocpgem.graph.topology import Topology
from ocpgem.models.gemnet.in_blocks import rows_as_on_gpu
from ocpgem.models.potential import Normalization
from ocpgem.parallel.graph import require_groups
from ocpgem.train.batching import Costs, eval_batching, require_work_for_all, train_batching, unbalanced
from ocpgem.train.config import TrainConfig
from ocpgem.train.datasets import edges_to_read, open_data_sets
from ocpgem.train.engine import import_deepspeed
from ocpgem.train.scaling import LINKS, Message, Prediction, messages, predict, seconds_within
from ocpgem.train.step_cost import StepCost, step_cost, validation_bytes
from ocpgem.train.unusable import leave_out_unusable

_PLANNED_STEPS = 300
"""Steps whose plans are looked through for the largest micro-batch."""
_FLOAT = 4
_PER_PARAMETER = {False: 2, True: 3}  # moments that AdamW keeps, without and with amsgrad
_GPU_PROCESS = 1_500_000_000
"""Assumed bytes on a GPU for the CUDA context, libraries and what the allocator holds beside the tensors."""
_GPU_FRAGMENTATION = 1.1
_HEAP_FRAGMENTATION = 1.6
"""Measured on CPUs, 1.4 to 1.9: the heap keeps gaps between tensors that are smaller than `_OWN_MAPPING`."""
_OWN_MAPPING = 32 * 2**20
"""Bytes from which on glibc gives every tensor a mapping of its own, which leaves no gaps."""
_CPU_PROCESS = 50_000_000
"""Measured: what a run holds beside tensors and imported libraries."""


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
    precision: str
    batch: Batch
    memory: dict[str, int]
    """Bytes by what they are for; they add up to the most that is needed at one time."""
    flops_per_step: float
    """Of all ranks together."""
    steps: int
    steps_per_epoch: int
    seconds_per_step: float
    device: Device
    between_ranks: Prediction | None
    """What ranks wait for each other in a step, which is no part of the seconds above; None on a CPU."""

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


def estimate(
    config: TrainConfig,
    world_size: int = 1,
    device: Device | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Estimate:
    """Memory and time of a run of `config` on `world_size` ranks; None: on this machine's CPU.

    The data must be there: the largest micro-batch of the plan is looked for and its graph is built. Then the model
    makes one step on it with tensors that have no content (`step_cost`). Assumptions: float32 weights and AdamW;
    DeepSpeed's copies and buffers as measured with version 0.19.8; a GPU reaches `SHARE_OF_PEAK` and a CPU what a
    product of matrices reaches just now; loader processes are left out. Records that the run would skip are looked
    for as the run does; `say` is told how many. Raises what reading the data raises.
    """
    data = leave_out_unusable(config, open_data_sets(config.data, edges_to_read(config)), None, say)
    train_set = data.training_set
    recipe = Recipe(train_set, config.model.graph_spec, config.model.n_elements)
    costs = Costs(edges=fit_edge_cost(train_set, recipe.graph))
    batching = train_batching(config.data, costs)
    require_groups(config.parallel.graph, world_size)
    n_groups = world_size // config.parallel.graph
    require_work_for_all(config.data, batching, train_set, n_groups)
    if remark := unbalanced(batching, train_set, n_groups):
        say(remark)
    plan = TrainPlan(
        train_set.draws(config.seed) or all_once(len(train_set), config.seed), train_set.rows, batching
    )
    steps = _steps(plan, n_groups)
    batch, topology = recipe.prepare(steps.largest)
    with nullcontext() if device is None else rows_as_on_gpu():
        cost = _cost(config, recipe, steps.largest, (batch, topology))
        working = max(cost.peak_bytes, _validation(config, recipe, data.val, costs))
    found = Batch(len(steps.largest), topology.n_atoms, topology.main.n_edges, steps.micro_batches)
    n_parameters = _n_parameters(config)
    chosen = device or cpu()
    flops = config.parallel.graph * cost.flops * steps.work / max(1, steps.work_of_largest)
    seconds = flops / world_size / _rate(chosen, config.precision)
    return Estimate(
        n_parameters=n_parameters,
        world_size=world_size,
        zero_stage=config.parallel.zero_stage,
        precision=config.precision,
        batch=found,
        memory=_memory(config, n_parameters * _FLOAT, world_size, working, steps.micro_batches)
        | _process(device, working, topology.main.n_edges * config.model.edge_dim * _FLOAT),
        flops_per_step=flops,
        steps=config.steps,
        steps_per_epoch=steps.per_epoch,
        seconds_per_step=seconds,
        device=chosen,
        between_ranks=_between_ranks(
            _messages(config, n_parameters), world_size, chosen, seconds, steps, cost
        ),
    )


@dataclass(frozen=True)
class _Steps:
    """What the plan of the first steps says."""

    largest: Any
    """The systems of rank 0's largest micro-batch; rank 0 has the most work in every step."""
    micro_batches: int
    """The most of a step."""
    work: float
    """Of an average step, over all ranks, in the unit that is balanced."""
    work_of_largest: int
    unevenness: float
    """Mean over steps of rank 0's share over the mean share, minus 1."""
    per_epoch: int


def _steps(plan: TrainPlan, world_size: int) -> _Steps:
    work_of, length = plan.batching.work.of, plan.draws.per_epoch
    largest, most_work, most, total, drawn, n_steps = None, -1, 1, 0, 0, 0
    over_mean = 0.0
    for step in islice(plan.steps(), _PLANNED_STEPS):
        if step.drawn > length and n_steps:  # one epoch has them all
            break
        n_steps, drawn = n_steps + 1, step.drawn
        of_step = int(work_of(step.rows).sum())
        total += of_step
        share = plan.share(step, 0, world_size)
        most = max(most, len(share.micro_batches))
        works = [int(work_of(plan.rows(systems)).sum()) for systems in share.micro_batches]
        for systems, work in zip(share.micro_batches, works, strict=True):
            if work > most_work:
                largest, most_work = systems, work
        over_mean += sum(works) * world_size / max(1, of_step) - 1
    assert largest is not None
    per_epoch = -(-n_steps * length // drawn)
    return _Steps(largest, most, total / n_steps, most_work, over_mean / n_steps, per_epoch)


def _messages(config: TrainConfig, n_parameters: int) -> tuple[Message, ...]:
    """What all ranks exchange in a step."""
    chosen = config.parallel
    return messages(n_parameters, chosen.zero_stage, chosen.reduce_bucket, chosen.overlap)


def _between_ranks(
    sent: Sequence[Message], world_size: int, device: Device, seconds: float, steps: _Steps, cost: StepCost
) -> Prediction | None:
    """How long ranks wait for each other; seconds: of the mean rank; cost: of the largest micro-batch."""
    if device.name not in LINKS:
        return None
    links = LINKS[device.name]
    within = steps.micro_batches * seconds_within(cost.sent_bytes, cost.sent_messages, links)
    return predict(seconds, sent, world_size, links, max(0.0, steps.unevenness), within)


def _cost(config: TrainConfig, recipe: Recipe, systems: Any, whole: tuple[Any, Topology]) -> StepCost:
    """The cost of a step on the systems.

    Quadruplets that are summed in blocks take as many operations as there are blocks; there one and two systems are
    computed and the line through them is followed.
    """
    normalization = Normalization()
    streamed = (
        config.model.quadruplets is not None and config.model.angular_basis.two_angle == "spherical_harmonics"
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

    names = ("kept_bytes", "peak_bytes", "flops", "sent_bytes", "sent_messages")
    return StepCost(**{name: follow(name) for name in names})


def _validation(config: TrainConfig, recipe: Recipe, val: dict[str, Dataset], costs: Costs) -> int:
    """The most bytes that a validation batch needs at one time; 0 without validation."""
    largest = 0
    for dataset in val.values():
        own = Recipe(dataset, recipe.graph, recipe.max_atomic_number)
        first = next(iter(EvalLoader(own, eval_batching(config.data, costs))))  # the largest comes first
        largest = max(largest, validation_bytes(config, first.batch, first.topology))
    return largest


def _memory(
    config: TrainConfig, weights: int, world_size: int, working: int, micro_batches: int
) -> dict[str, int]:
    """Bytes beside those of the process; weights: bytes of all parameters in float32."""
    stage, share = config.parallel.zero_stage, 1 / world_size
    moments = _PER_PARAMETER[config.optim.amsgrad] * weights
    bucket = min(config.parallel.reduce_bucket * _FLOAT, weights) * (2 if config.parallel.overlap else 1)
    if stage == 0:
        optimizer, own, buffers = moments, weights, 0
        gradients, stepping = weights, 3 * weights
    elif stage in (1, 2):  # a rank's whole gradient is there before any of it is exchanged
        optimizer, own = int((moments + weights) * share), weights
        buffers, gradients, stepping = bucket, weights, weights + int(max(2, 3 * share) * weights)
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


def _process(device: Device | None, working: int, tensor: int) -> dict[str, int]:
    """What is not in tensors; tensor: bytes of a typical one."""
    if device is None:
        import_deepspeed()
        for module in ("torch.utils.tensorboard", "matplotlib.figure", "scipy.ndimage"):
            import_module(module)  # what a training process has loaded

        lost = int((_HEAP_FRAGMENTATION - 1) * working) if tensor < _OWN_MAPPING else 0
        return {
            "process and libraries": _resident() + _CPU_PROCESS,
            "gaps between tensors": lost,
        }
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


def device_named(name: str | None) -> Device | None:
    """The GPU of this name; without a name that of this machine, None if it has none. Raises RequestError."""
    if name is not None:
        if name not in GPUS:
            raise RequestError(f"the GPU {name!r} is not known; known are {', '.join(GPUS)}")
        return GPUS[name]
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    for gpu in GPUS.values():
        if gpu.name.split("-")[0] in found.name and abs(found.total_memory / (gpu.memory or 1) - 1) < 0.1:
            return gpu
    raise RequestError(
        f"this machine's {found.name} is not known; name a similar one with --gpu: {', '.join(GPUS)}"
    )


def as_text(found: Estimate) -> str:
    """The estimate for people, several lines."""
    batch, gigabyte = found.batch, 1e9
    ranks = "1 rank" if found.world_size == 1 else f"each of {found.world_size} ranks"
    lines = [
        f"largest micro-batch: {batch.n_systems} systems, {batch.n_atoms:,} atoms, {batch.n_edges:,} edges; "
        f"at most {batch.micro_batches} micro-batch(es) per step and rank",
        f"memory of {ranks} under ZeRO-{found.zero_stage}, {found.n_parameters:,} parameters:",
        *(f"  {name:<28}{size / gigabyte:8.3f} GB" for name, size in found.memory.items()),
        f"  {'total':<28}{found.total_bytes / gigabyte:8.3f} GB",
    ]
    if found.device.memory is not None:
        verdict = "fits on" if found.fits else "DOES NOT FIT on"
        lines[-1] += f", {verdict} {found.device.name} ({found.device.memory / gigabyte:.0f} GB)"
    waits = found.between_ranks
    between = (
        []
        if waits is None or waits.ranks == 1
        else [
            f"  and between ranks: {1e3 * waits.exposed:.3g} ms a step for gradients and weights, "
            + (f"{1e3 * waits.within:.3g} ms within graph groups, " if waits.within else "")
            + f"{1e3 * waits.uneven:.3g} ms for the rank with most edges ({1 / waits.efficiency - 1:.1%} more; "
            "links as assumed in docs/scaling.md)"
        ]
    )
    unit = "GPU hours" if found.device.memory is not None else "hours of this CPU"
    return "\n".join(
        [
            *lines,
            f"time on {found.world_size} x {found.device.name}: {found.flops_per_step / 1e12:.3g} TFLOP and "
            f"{found.seconds_per_step:.3g} s per step",
            *between,
            f"  one epoch ({found.steps_per_epoch:,} steps): {found.device_hours_per_epoch:,.3g} {unit}",
            f"  the run ({found.steps:,} steps): {found.device_hours:,.3g} {unit}, {found.hours:,.3g} h by the clock, "
            "validation left out",
            f"assumed: a step reaches {_share(found.device, found.precision):.0%} of the "
            + ("peak that the maker states" if found.device.memory else "rate of a single matrix product")
            + f" ({found.device.tflops[found.precision]:.3g} TFLOP/s, precision: {found.precision})",
        ]
    )


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


def _share(device: Device, precision: str) -> float:
    return _CPU_SHARE if device.memory is None else SHARE_OF_PEAK[precision]


def _rate(device: Device, precision: str) -> float:
    """Operations per second that a step is assumed to reach."""
    return device.tflops[precision] * _share(device, precision) * 1e12
