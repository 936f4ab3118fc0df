"""One layer of a model alone, ours or the released. Imports nothing of ocpgem, so that both are measured alike."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.process import seconds


def of_layer(layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of a layer alone, with arguments as `captured` returns them.

    `magnitude` is the mean magnitude of what the layer returns: it does not depend on the order of the edges, so two
    codes can be compared by it.
    """
    needed = [*leaves([args, kwargs]), *(weight for weight in layer.parameters() if weight.requires_grad)]

    def without_gradient() -> Tensor:
        with torch.no_grad():
            return layer(*args, **kwargs)

    def forward_backward() -> None:
        torch.autograd.grad(layer(*args, **kwargs).mean(), needed, allow_unused=True)

    return {
        "magnitude": float(without_gradient().abs().mean()),
        "forward_s": seconds(without_gradient, repeats),
        "forward_backward_s": seconds(forward_backward, repeats),
    }


def captured(layer: nn.Module, forward: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the layer's first call within `forward`, cut off from what computed them.

    forward: computes the whole model once, with gradients, and calls the layer. Arguments that need a gradient in
    training need one here.
    """
    found: list[Any] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(cut_off((args, kwargs)))

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    forward()
    hook.remove()
    args, kwargs = found[0]
    return args, kwargs


def cut_off(value: Any) -> Any:
    """The same tensors, also those in tuples, lists, dicts and dataclasses, without what computed them."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, tuple | list):
        return type(value)(cut_off(each) for each in value)
    if isinstance(value, dict):
        return {key: cut_off(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {field.name: cut_off(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **own)
    return value


def leaves(value: Any) -> list[Tensor]:
    """The tensors in what `cut_off` returned that need a gradient."""
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    if isinstance(value, tuple | list):
        return [leaf for each in value for leaf in leaves(each)]
    if isinstance(value, dict):
        return leaves(list(value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return leaves([getattr(value, field.name) for field in dataclasses.fields(value)])
    return []
