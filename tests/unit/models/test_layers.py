"""Chains of dense layers: the numbers of torch's own operations, with less kept for the gradient."""

import pytest
import torch

from ocpgem.models.gemnet.layers import DenseChain, plain_chain, residual_stack, widening_stack
from ocpgem.train.live_memory import LiveMemory


def chain(kind: str, dtype: torch.dtype = torch.float64) -> DenseChain:
    torch.manual_seed(0)
    stacks = {
        "blocks": lambda: residual_stack(8, 3),
        "one block": lambda: residual_stack(8, 1),
        "wider": lambda: widening_stack(8, 12, 2),
        "dense": lambda: widening_stack(8, 6, 0),
    }
    return stacks[kind]().to(dtype)


def of_plain(layers: DenseChain, x: torch.Tensor) -> torch.Tensor:
    return plain_chain(x, list(layers.parameters()), leading=len(list(layers.parameters())) % 2 == 1)


@pytest.mark.parametrize("kind", ["blocks", "one block", "wider", "dense"])
def test_values_and_gradients_are_those_of_torch(kind: str) -> None:
    layers = chain(kind)
    x = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *layers.parameters()]
    y, expected = layers(x), of_plain(layers, x)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-13)
    weights = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, weights)
    wanted = torch.autograd.grad(expected, inputs, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(layers(x), expected.detach(), rtol=1e-13, atol=1e-13)
        assert torch.equal(x, before)


@pytest.mark.parametrize("twice", [False, True])
def test_second_derivatives_are_right(twice: bool) -> None:
    layers = chain("wider")
    layers.twice_differentiated = twice
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layers(x), (x, *layers.parameters()), fast_mode=True)


def test_frozen_weights_and_inputs_without_gradient() -> None:
    layers = chain("wider")
    x = torch.randn(4, 8, dtype=torch.float64)
    first, *others = layers.parameters()
    first.requires_grad_(False)
    layers(x).sum().backward()
    expected = torch.autograd.grad(of_plain(layers, x).sum(), others)
    assert first.grad is None
    torch.testing.assert_close([p.grad for p in others], list(expected))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_bf16_stays_within_its_rounding(x_dtype: torch.dtype) -> None:
    layers = chain("wider", torch.float32)
    x = torch.randn(50, 8).to(x_dtype).requires_grad_(True)
    inputs = [x, *layers.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        y, plain = layers(x), of_plain(layers, x)
    assert y.dtype == plain.dtype
    torch.testing.assert_close(y, plain, rtol=0.03, atol=0.03)
    found = torch.autograd.grad(y.float().sum(), inputs)
    wanted = torch.autograd.grad(plain.float().sum(), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() < 0.02 * theirs.float().norm()


def test_only_the_input_and_the_pre_activations_are_kept() -> None:
    layers = chain("blocks", torch.float32)
    x = torch.randn(1000, 8, requires_grad=True)
    with LiveMemory() as memory:
        y = layers(x)
        kept = memory.now - y.untyped_storage().nbytes()
        del y
    assert kept == 6 * x.untyped_storage().nbytes()  # two a block; plain_chain keeps 11
