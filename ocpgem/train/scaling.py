"""How long a training step takes on many GPUs, predicted from one rank's step, its messages and the links.

The assumptions are those of docs/scaling.md, "From one GPU to 512". Traffic is what DeepSpeed 0.19.8 sends, as counted
by benchmarks/scaling.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_FLOAT = 4
BACKWARD = 2 / 3
"""Share of a step in which gradients become ready, one after the other."""

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
"""How often each byte passes (n - 1)/n of the links."""


@dataclass(frozen=True)
class Links:
    """How ranks are connected; rates in bytes/s of one GPU in one direction, latencies in s of one message."""

    gpus_per_node: int
    in_node: float
    between_nodes: float
    latency_in_node: float = 3e-6
    latency_between_nodes: float = 8e-6
    reached: float = 0.7
    """Share of the stated rates that collectives reach."""


LINKS = {
    # DGX-1: NVLink 300 GB/s and four EDR adapters of 100 Gb/s for eight GPUs
    "V100-32GB": Links(8, 150e9, 6.25e9),
    # DGX A100: NVLink 600 GB/s and eight HDR adapters of 200 Gb/s
    "A100-40GB": Links(8, 300e9, 25e9),
    "A100-80GB": Links(8, 300e9, 25e9),
    # DGX H100 and H200: NVLink 900 GB/s and eight NDR adapters of 400 Gb/s
    "H100-80GB": Links(8, 450e9, 50e9),
    "H200-141GB": Links(8, 450e9, 50e9),
}
"""Of NVIDIA's own machines, from their data sheets (which count both directions of NVLink)."""


@dataclass(frozen=True)
class Message:
    """Collectives of one kind in a step: all their bytes, and in how many calls."""

    kind: Kind
    size: int
    calls: int
    during_backward: bool = False

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends, by a ring."""
        return ROUNDS[self.kind] * self.size * (ranks - 1) / ranks


@dataclass(frozen=True)
class Prediction:
    """A step on a number of ranks; seconds."""

    ranks: int
    alone: float
    """On one rank with the mean share of the work."""
    uneven: float
    """Until the rank with the largest share is done."""
    exchange: float
    """Of all messages, whether or not anything is computed meanwhile."""
    exposed: float
    """Of the messages, in which nothing is computed."""
    within: float = 0.0
    """Of the messages within graph groups, during which nothing is computed either."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.alone + self.uneven + self.exposed + self.within

    @property
    def efficiency(self) -> float:
        """Share of the step that a rank alone would need for its share of the systems."""
        return self.alone / self.seconds if self.seconds else 1.0


def messages(
    n_parameters: int, zero_stage: int, reduce_bucket: int, overlap: bool = False
) -> tuple[Message, ...]:
    """What a step with so many trained parameters sends beside a few numbers."""
    size, calls = n_parameters * _FLOAT, -(-n_parameters // min(n_parameters, reduce_bucket))
    if zero_stage == 3:
        gather = Message("all_gather", 2 * size, 2 * calls)  # forward, and again for the gradient
        return (gather, Message("reduce_scatter", size, calls, overlap))
    gradients = Message("all_reduce", size, calls, overlap)
    return (gradients,) if zero_stage == 0 else (gradients, Message("all_gather", size, 1))


def seconds_of(message: Message, ranks: int, links: Links) -> float:
    """Time of the collectives of a message: rings within nodes and trees between them, one after the other."""
    local = min(ranks, links.gpus_per_node)
    nodes = math.ceil(ranks / local)
    rounds = ROUNDS[message.kind]
    bandwidth = message.size * (local - 1) / local / links.in_node
    # Each GPU of a node exchanges its part with the same part of the other nodes.
    bandwidth += message.size / local * (nodes - 1) / nodes / links.between_nodes
    hops = (local - 1) * links.latency_in_node + math.ceil(math.log2(nodes)) * links.latency_between_nodes
    return rounds * (bandwidth / links.reached + message.calls * hops)


def seconds_within(size: int, calls: int, links: Links) -> float:
    """Time of a rank's messages to others of its graph group, which is within a node: bytes, and how many messages.

    Layers wait for them, so nothing hides them.
    """
    return size / links.in_node / links.reached + calls * links.latency_in_node


def predict(
    alone: float,
    sent: Sequence[Message],
    ranks: int,
    links: Links,
    unevenness: float = 0.0,
    within: float = 0.0,
) -> Prediction:
    """A step on `ranks` ranks.

    alone: measured seconds of a step on one rank with its share of the systems. unevenness: the largest share of the
    work over the mean, minus 1. Messages during the backward pass are hidden by it but for their last bucket.
    within: seconds of messages within graph groups in a step (`seconds_within`).
    """
    slowest = alone * (1 + unevenness)
    exchange = exposed = 0.0
    for message in sent:
        seconds = seconds_of(message, ranks, links)
        exchange += seconds
        hidden = min(seconds * (1 - 1 / message.calls), BACKWARD * slowest) if message.during_backward else 0
        exposed += seconds - hidden
    return Prediction(ranks, alone, slowest - alone, exchange, exposed, within)
