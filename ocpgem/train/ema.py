"""The exponential moving average of the weights, which validation and the saved model use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocpgem.models.potential import Potential
from ocpgem.parallel import group


def moving_average(potential: Potential, decay: float, zero_stage: int) -> "ExponentialMovingAverage":
    """The average of a potential that a DeepSpeed engine already holds, for any ZeRO stage."""
    return (DividedMovingAverage if zero_stage == 3 else ExponentialMovingAverage)(potential, decay)


class ExponentialMovingAverage:
    """Follows the trainable parameters of `module`; every rank computes the same average."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._module = module
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after optimiser step `step` (from 1); early on the average forgets faster."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.decay else 0.0
        torch._foreach_lerp_(list(self.average.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[Any]:
        """Within the context, a module that holds the averaged weights: the one that is followed."""
        self._swap()
        try:
            yield self._module
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            current = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(state[name])


class DividedMovingAverage(ExponentialMovingAverage):
    """The same under ZeRO-3: each rank averages its part of the parameters; `state_dict` and `applied` are collectives.

    Predictions come from a whole copy of the potential, because a divided one can only be used by all ranks at once.
    """

    def __init__(self, potential: Potential, decay: float) -> None:
        super().__init__(potential, decay)
        self._divided = self._parameters
        self._parameters = {name: p.ds_tensor for name, p in self._divided.items()}  # type: ignore[attr-defined]
        self.average = {name: part.detach().clone() for name, part in self._parameters.items()}
        self._potential = potential
        self._copy: Potential | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {name: _joined(part, self._divided[name]) for name, part in self.average.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, part in self.average.items():
            whole = state[name].flatten()
            start = group.rank() * part.numel()
            mine = whole[start : start + part.numel()]
            part.zero_()
            part[: mine.numel()].copy_(mine)

    @contextmanager
    def applied(self) -> Iterator[Any]:
        if self._copy is None:
            # Its first weights must draw nothing from the random numbers of the run.
            with torch.random.fork_rng(devices=[]):
                self._copy = Potential(self._potential.config, self._potential.normalization)
            self._copy.to(next(iter(self.average.values())).device)
        weights = dict(self._potential.named_buffers()) | self.state_dict()
        for name, frozen in self._potential.named_parameters():
            if name not in weights:
                weights[name] = _joined(frozen.ds_tensor, frozen)  # type: ignore[attr-defined]
        self._copy.load_state_dict({name: weights[name] for name in self._copy.state_dict()})
        yield self._copy.eval()


def _joined(part: Tensor, parameter: Any) -> Tensor:
    """The whole of a tensor that is divided over the ranks as ZeRO-3 divides `parameter`."""
    parts = [part]
    if group.world_size() > 1:
        parts = [torch.empty_like(part) for _ in range(group.world_size())]
        dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
