"""What the ranks of a training step send each other, counted where torch hands it to the process group."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "reduce_": "reduce",
    "broadcast_": "broadcast",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
}
"""Operations of torch.distributed, and what they are called."""
LARGEST_AGREEMENT = 256
"""Bytes up to which a message carries numbers that ranks agree on (norms, flags, means), not gradients or weights."""
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}


@dataclass(frozen=True)
class Sent:
    """One collective: its kind, the bytes of its largest side, and how many matrix products came before it."""

    kind: str
    size: int
    products_before: int

    @property
    def is_agreement(self) -> bool:
        """Whether it carries a few numbers only."""
        return self.size <= LARGEST_AGREEMENT


@dataclass
class StepTraffic:
    """The collectives of one step, in their order."""

    sent: list[Sent] = field(default_factory=list)
    products: int = 0
    """Matrix products of the step: the last one belongs to the backward pass."""

    def calls(self, kind: str) -> int:
        """Collectives of a kind that carry gradients or weights."""
        return sum(each.kind == kind and not each.is_agreement for each in self.sent)

    def size(self, kind: str) -> int:
        """Their bytes."""
        return sum(each.size for each in self.sent if each.kind == kind and not each.is_agreement)

    @property
    def agreements(self) -> int:
        """Collectives that carry a few numbers."""
        return sum(each.is_agreement for each in self.sent)

    @property
    def gradients(self) -> list[Sent]:
        """The sums of gradients."""
        sums = ("all_reduce", "reduce", "reduce_scatter")
        return [each for each in self.sent if each.kind in sums and not each.is_agreement]

    @property
    def sent_during_backward(self) -> float:
        """Share of the gradients' bytes that are sent while matrix products of the backward pass are still to come."""
        total = sum(each.size for each in self.gradients)
        early = sum(each.size for each in self.gradients if each.products_before < self.products)
        return early / total if total else 0.0


class CountedTraffic(TorchDispatchMode):
    """Counts collectives and products of this thread; `next_step` begins a new list."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [StepTraffic()]

    def next_step(self) -> None:
        """What follows belongs to the next step."""
        self.steps.append(StepTraffic())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        namespace, _, name = str(func.overloadpacket).partition(".")  # type: ignore[attr-defined]
        step = self.steps[-1]
        if namespace == "c10d" and name in KINDS:
            # The larger of what goes in and what comes out: the gathered, or the not yet scattered tensor.
            size = max(sum(t.nbytes for t in _tensors(arg)) for arg in args)
            step.sent.append(Sent(KINDS[name], size, step.products))
        elif name in _PRODUCTS:
            step.products += 1
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
