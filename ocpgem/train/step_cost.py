"""What one training step costs, found by taking it with tensors that have a size and no content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from ocpgem.graph.topology import Topology
from ocpgem.kernels import torch_only
from ocpgem.models.potential import Normalization, Potential
from ocpgem.parallel.graph import GraphGroup
from ocpgem.parallel.partition import partition
from ocpgem.train.config import TrainConfig
from ocpgem.train.live_memory import LiveMemory
from ocpgem.train.loss import GlobalCounts, loss_share

_COUNTS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],  # which torch does not list
}


@dataclass(frozen=True)
class StepCost:
    """Of one forward and one backward pass over one micro-batch."""

    kept_bytes: int
    """What the forward pass leaves for the backward pass."""
    peak_bytes: int
    """The most bytes at one time beside the weights; gradients of weights are part of it."""
    flops: int
    """Operations of all matrix products; a multiplication and an addition are two."""
    sent_bytes: int = 0
    """What a rank sends to others of its graph group."""
    sent_messages: int = 0
    """In how many messages, each to one other rank."""


class _Counter(LiveMemory):
    """Counts operations as well. torch's FlopCounterMode would keep what checkpointing is to free."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        counts = _COUNTS.get(func.overloadpacket)
        if counts is not None:
            self.flops += counts(*args, **(kwargs or {}), out_val=result)
        return result


def step_cost(
    config: TrainConfig, batch: Any, topology: Topology, normalization: Normalization, rank: int = 0
) -> StepCost:
    """The cost of a training step of `config` on a batch; takes seconds and hardly any memory for any model.

    The model, its loss and their gradients are run as they are, with torch's fake tensors, so whatever the model does
    is counted. rank: of the graph group, whose ranks have about as many edges. Sums over segments count as torch's own
    operations, whichever library will do them.
    """
    size = config.parallel.graph
    graph = None if size == 1 else GraphGroup(rank, size, None)
    own = partition(topology, graph)
    with FakeTensorMode(allow_non_fake_inputs=True):
        potential = Potential(config.model, normalization)
        potential.train_in_bf16 = config.precision == "bf16"
        potential.model.checkpoint_activations = config.activation_checkpointing
        potential.train()
        counts = GlobalCounts(topology.n_systems, topology.n_atoms)
        with _Counter() as memory:
            loss = loss_share(potential(batch, own), batch, config.loss, normalization, counts)
            kept = memory.now
            loss.backward()
    sent = (0, 0) if graph is None else (graph.sent_bytes, graph.sent_messages)
    return StepCost(kept, memory.peak, memory.flops, *sent)


def operations_of(call: Callable[[], object]) -> int:
    """Operations of all matrix products that a call takes, which is made."""
    with torch_only(), _Counter() as counter:
        call()
    return counter.flops


def validation_bytes(config: TrainConfig, batch: Any, topology: Topology) -> int:
    """The most bytes at one time, beside the weights, of predicting a batch in validation."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        potential = Potential(config.model, Normalization()).eval()
        with LiveMemory() as memory:
            potential(batch, topology)
    return memory.peak
