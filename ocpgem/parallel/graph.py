"""Graph parallelism: the ranks of a group share the edges of one batch (GemNet-XL, Sriram et al., ICLR 2022).

Each rank owns consecutive atoms and all edges that end at them (`partition`). What layers say of atoms and edges stays
where it is computed; three functions move it:

- `gather`: rows of other ranks that this one needs (sources of edges, reverse edges), and no others;
- `shard`: of something that all ranks know, the rows of the own atoms;
- `reduce`: the sum over the ranks.

All are the identity where a batch is not divided. Each is a linear map of what all ranks hold together, and its
derivative the transposed map, so they may be differentiated any number of times: the gradient that a rank gets is that
of the sum of all ranks' results by its own copy. Weights' gradients therefore add up over ranks as under data
parallelism.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ocpgem.errors import RequestError
from ocpgem.graph.exchange import Exchange, Part
from ocpgem.parallel import group as world
from ocpgem.segment import ordered_sum


@dataclass
class GraphGroup:
    """Ranks that share the edges of a batch.

    handle: their process group; None where only sizes matter, as in estimates: then zeros come from the other ranks.
    """

    rank: int
    size: int
    handle: Any
    sent_bytes: int = field(default=0, compare=False)
    """What this rank has sent to others so far."""
    sent_messages: int = field(default=0, compare=False)
    """In how many messages, each to one other rank."""


def require_groups(size: int, n_ranks: int) -> None:
    """Raise RequestError where the ranks cannot be divided into groups of `size`."""
    if n_ranks % size:
        raise RequestError(
            f"parallel.graph is {size}, but there are {n_ranks} ranks, which cannot be divided into groups of {size}; "
            f"start a multiple of {size} ranks, or set parallel.graph to a divisor of {n_ranks}"
        )


def graph_group(size: int) -> GraphGroup | None:
    """The group of this rank, of consecutive ranks; None for a size of 1. Every rank calls it once.

    Raises RequestError where the ranks cannot be divided into groups of `size`.
    """
    n_ranks = world.world_size()
    require_groups(size, n_ranks)
    if size == 1:
        return None
    handles = [dist.new_group(list(range(first, first + size))) for first in range(0, n_ranks, size)]
    number, place = divmod(world.rank(), size)
    return GraphGroup(place, size, handles[number])


def gather(x: Tensor, exchange: Exchange | None) -> Tensor:
    """The rows of all ranks that this one needs: [n_own, ...] -> [n_needed, ...]."""
    return x if exchange is None else _Gather.apply(x, exchange)


def shard(x: Tensor, part: Part | None) -> Tensor:
    """Of what all ranks know of all atoms, that of the own atoms: [n_atoms, ...] -> [n_own, ...]."""
    return x if part is None else x.narrow(0, part.first, part.n_atoms)


def reduce(x: Tensor, part: Part | None) -> Tensor:
    """The sum over the ranks of the group, on each of them."""
    return x if part is None else _Reduce.apply(x, part.group)


def unshard(x: Tensor, part: Part | None, n_atoms: int) -> Tensor:
    """What each rank says of its own atoms, of all atoms and on every rank: [n_own, ...] -> [n_atoms, ...]."""
    if part is None:
        return x
    after = n_atoms - part.first - part.n_atoms
    whole = torch.cat([x.new_zeros(part.first, *x.shape[1:]), x, x.new_zeros(after, *x.shape[1:])])
    return reduce(whole, part)


class _Gather(torch.autograd.Function):
    """Rows to whoever needs them; the transpose sums what comes back at the rank that owns the row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        rows = x.index_select(0, exchange.send)
        return _all_to_all(rows, exchange.send_counts, exchange.receive_counts, exchange.group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _SumBack.apply(grads[0], ctx.exchange), None


class _SumBack(torch.autograd.Function):
    """The transpose of `_Gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        rows = _all_to_all(x.contiguous(), exchange.receive_counts, exchange.send_counts, exchange.group)
        return ordered_sum(rows, exchange.by_row, exchange.row_ptr)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grads[0], ctx.exchange), None


class _Reduce(torch.autograd.Function):
    """The sum over ranks; as each rank uses it, the derivatives are summed as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: GraphGroup) -> Tensor:
        ctx.group = group
        result = x.clone(memory_format=torch.contiguous_format)
        # A ring sends each byte (n - 1)/n times to be summed and as often to be known to all.
        group.sent_bytes += 2 * (group.size - 1) * result.nbytes // group.size
        group.sent_messages += 2 * (group.size - 1)
        if group.handle is not None:
            dist.all_reduce(result, group=group.handle)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Reduce.apply(grads[0], ctx.group), None


def _all_to_all(x: Tensor, send: tuple[int, ...], receive: tuple[int, ...], group: GraphGroup) -> Tensor:
    """x: [sum of send, ...], by receiving rank -> [sum of receive, ...], by sending rank."""
    result = x.new_zeros(sum(receive), *x.shape[1:])
    width = x.shape[1:].numel()
    group.sent_bytes += (sum(send) - send[group.rank]) * width * x.element_size()
    group.sent_messages += group.size - 1
    if group.handle is None:
        return result
    # As bytes: gloo does not know all types.
    outgoing, incoming = (each.view(each.shape[0], width).view(torch.uint8) for each in (x, result))
    dist.all_to_all_single(incoming, outgoing, list(receive), list(send), group=group.handle)
    return result
