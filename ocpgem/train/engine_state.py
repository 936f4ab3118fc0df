"""Weights and optimiser state by parameter name, whatever ZeRO stage and number of ranks divided them.

DeepSpeed's own checkpoint files are pickles that could run code, and belong to one number of ranks; these maps of
tensors do neither. They hold for optimisers whose state has, for every parameter, tensors of its shape (AdamW: the
moments) and numbers that are the same for all parameters (the step).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocpgem.errors import CheckpointError, one_line
from ocpgem.parallel import group

_MASTER_COPIES = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups"}
_MASTER_COPIES[3] = "fp32_partitioned_groups_flat"


@dataclass
class OptimizerState:
    """What an optimiser remembers; empty before its first step."""

    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By kind (exp_avg, ...) and parameter, in the parameter's shape."""
    numbers: dict[str, float] = field(default_factory=dict)


def gather(module: nn.Module, zero: Any, stage: int) -> OptimizerState:
    """The whole optimiser state on the CPU of rank 0, nothing on the others; a collective.

    zero: DeepSpeed's optimiser.
    """
    states = [state for state in _torch_optimizer(zero, stage).state.values() if state]
    if not states:
        return OptimizerState()
    if stage in (1, 2):
        # DeepSpeed links parameters to their state when the first of several groups has stepped, the others not yet.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    kinds = [kind for kind, value in states[0].items() if _is_moment(value)]
    found = OptimizerState({kind: {} for kind in kinds})
    found.numbers = {
        kind: float(max(state[kind] for state in states)) for kind in states[0] if kind not in kinds
    }
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            for kind in kinds:
                whole = _whole(parameter, kind, zero, stage)
                if group.is_main():
                    found.moments[kind][name] = whole.cpu()
    return found


def restore(module: nn.Module, zero: Any, stage: int, saved: OptimizerState) -> None:
    """Give this rank its part of a gathered state; raises CheckpointError where it is not that of this model."""
    if not saved.moments:
        return
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    shapes = {name: _shape(parameter, stage) for name, parameter in trained.items()}
    for kind, values in saved.moments.items():
        if {name: value.shape for name, value in values.items()} != shapes:
            raise CheckpointError(f"its optimiser state ({kind}) is that of another model")
    optimizer = _torch_optimizer(zero, stage)
    flat = list(trained.values()) if stage == 0 else getattr(zero, _MASTER_COPIES[stage])
    for parameter in flat:
        # Fused kernels read numbers where the parameters are, as float32.
        optimizer.state[parameter] = {
            kind: torch.tensor(number, dtype=torch.float32, device=parameter.device)
            for kind, number in saved.numbers.items()
        } | {kind: torch.zeros_like(parameter) for kind in saved.moments}
    try:
        if stage in (1, 2):
            zero._lazy_init_hp_params_optimizer_state()
        for kind, values in saved.moments.items():
            for name, parameter in trained.items():
                _set_whole(parameter, kind, values[name], zero, stage)
    except (AssertionError, RuntimeError) as error:  # how DeepSpeed and torch refuse a part
        raise CheckpointError(f"its optimiser state could not be restored ({one_line(error)})") from error


def gather_weights(module: nn.Module, stage: int) -> dict[str, Tensor]:
    """The parameters and buffers of a module on the CPU of rank 0, nothing on the others; a collective."""
    found = {}
    if group.is_main():
        found = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    if stage == 3:
        import deepspeed

        for name, parameter in module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if group.is_main():
                    found[name] = parameter.detach().cpu().clone()
    return found


@torch.no_grad()
def restore_weights(module: nn.Module, zero: Any, stage: int, weights: dict[str, Tensor]) -> None:
    """Set parameters and buffers on every rank, and the optimiser's own copy of them; a collective under ZeRO-3.

    Raises CheckpointError on every rank, before anything is exchanged, where they are not those of this model.
    """
    current = dict(module.named_parameters()) | dict(module.named_buffers())
    saved = {name: value for name, value in weights.items() if name in current}
    shapes = {name: _shape(current[name], stage) for name in module.state_dict()}
    if {name: value.shape for name, value in saved.items()} != shapes:
        raise CheckpointError("its weights are those of another model")
    if stage == 3:
        import deepspeed

        for name, value in current.items():
            if name in saved:
                with deepspeed.zero.GatheredParameters([value], modifier_rank=0):
                    value.copy_(saved[name])
    else:
        module.load_state_dict(saved)
    if stage > 0:
        zero.refresh_fp32_params()


def _torch_optimizer(zero: Any, stage: int) -> torch.optim.Optimizer:
    found = zero if stage == 0 else zero.optimizer
    assert isinstance(found, torch.optim.Optimizer)
    return found


def _shape(tensor: Tensor, stage: int) -> torch.Size:
    """Of a parameter or buffer when it is not divided."""
    divided = stage == 3 and isinstance(tensor, nn.Parameter)
    return tensor.ds_shape if divided else tensor.shape  # type: ignore[attr-defined]


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _whole(parameter: nn.Parameter, kind: str, zero: Any, stage: int) -> Tensor:
    if stage == 0:
        state = zero.state.get(parameter)
        # A parameter that no loss depends on is never stepped; ZeRO would hold zeros for it.
        return state[kind].clone() if state else torch.zeros_like(parameter)
    from deepspeed.utils import safe_get_full_optimizer_state

    whole = safe_get_full_optimizer_state(parameter, kind)
    assert isinstance(whole, Tensor)
    return whole.clone()


def _set_whole(parameter: nn.Parameter, kind: str, value: Tensor, zero: Any, stage: int) -> None:
    if stage == 0:
        zero.state[parameter][kind].copy_(value)
        return
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if stage == 3:
        safe_set_local_optimizer_state(parameter, _own_part(value, parameter), kind)
    else:
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), kind)


def _own_part(whole: Tensor, parameter: Any) -> Tensor:
    """What this rank holds of a tensor that ZeRO-3 divides as `parameter`: equal parts, the last filled up with zeros.

    DeepSpeed's own division of whole states takes no parameter that the number of ranks does not divide.
    """
    size = parameter.ds_tensor.ds_numel
    padded = F.pad(whole.flatten(), (0, size * group.world_size() - whole.numel()))
    return padded[size * group.rank() :][:size].to(parameter.device)
