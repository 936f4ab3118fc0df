"""The moving average of the weights."""

import pytest
import torch
from torch import nn

from ocpgem.train.ema import ExponentialMovingAverage


def module() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    return layer


@torch.no_grad()
def disturb(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_the_average_is_that_of_a_loop_with_the_decay_ramped_up(decay: float) -> None:
    layer = module()
    ema = ExponentialMovingAverage(layer, decay)
    expected = layer.weight.detach().double().clone()
    for step in range(1, 31):
        disturb(layer)
        ema.update(step)
        now = min(decay, (1 + step) / (10 + step))
        expected = now * expected + (1 - now) * layer.weight.detach().double()
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_decay_zero_follows_the_weights() -> None:
    layer = module()
    ema = ExponentialMovingAverage(layer, 0.0)
    disturb(layer)
    ema.update(1)
    torch.testing.assert_close(ema.average["weight"], layer.weight.detach())


def test_only_trainable_parameters_are_averaged() -> None:
    assert set(ExponentialMovingAverage(module(), 0.9).average) == {"weight"}


def test_applied_shows_the_average_and_restores_every_bit_even_after_an_error() -> None:
    layer = module()
    ema = ExponentialMovingAverage(layer, 0.9)
    for step in range(1, 4):
        disturb(layer)
        ema.update(step)
    weights, average = layer.weight.detach().clone(), ema.average["weight"].clone()
    place = layer.weight.data_ptr()

    def fail_inside() -> None:
        with ema.applied():
            assert torch.equal(layer.weight, average)
            assert layer.weight.data_ptr() == place  # DeepSpeed holds views of this storage
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(layer.weight, weights)
    assert torch.equal(ema.average["weight"], average)


def test_a_restored_average_goes_on_as_if_never_interrupted() -> None:
    layer = module()
    ema = ExponentialMovingAverage(layer, 0.9)
    disturb(layer)
    ema.update(1)
    saved = {name: value.clone() for name, value in ema.state_dict().items()}
    other = ExponentialMovingAverage(layer, 0.9)
    other.load_state_dict(saved)
    disturb(layer)
    ema.update(2)
    other.update(2)
    assert torch.equal(ema.average["weight"], other.average["weight"])
    assert not torch.equal(saved["weight"], other.average["weight"])
