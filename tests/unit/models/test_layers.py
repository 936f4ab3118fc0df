"""Chains of dense layers: the numbers of torch's own operations, with less kept for the gradient."""

import pytest
import torch

from ocpgem.models.gemnet import in_blocks
from ocpgem.models.gemnet.chains import DenseChain, plain_chain, residual_stack, widening_stack
from ocpgem.models.gemnet.layers import ForceGradient
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


@pytest.mark.parametrize("as_autograd", [False, True])
def test_second_derivatives_are_right(as_autograd: bool) -> None:
    layers = chain("wider")
    layers.as_autograd = as_autograd
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: layers(x), (x, *layers.parameters()), fast_mode=True)


@pytest.mark.parametrize("n_rows", [5, 600])
@pytest.mark.parametrize("kind", ["blocks", "one block", "wider", "dense"])
def test_gradients_of_forces_are_those_of_torch(
    kind: str, n_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_blocks, "_CACHED", 1)  # 256 rows at a time, the least there is
    layers = chain(kind)
    layers.forces = ForceGradient()
    results = []
    for run in (layers, lambda x: of_plain(layers, x)):
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(n_rows, 8, dtype=torch.float64, generator=generator, requires_grad=True)
        y = run(torch.sin(x))
        weights = torch.randn(y.shape, dtype=torch.float64, generator=generator)
        layers.forces.is_taken = True
        (force,) = torch.autograd.grad((y * weights).square().sum(), x, create_graph=True)
        layers.forces.is_taken = False
        loss = y.sum() + (force * torch.randn(x.shape, dtype=torch.float64, generator=generator)).tanh().sum()
        results.append((y, force, *torch.autograd.grad(loss, [x, *layers.parameters()])))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_forces_that_are_not_trained_take_no_gradients_of_weights() -> None:
    layers = chain("wider")
    layers.forces = ForceGradient()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    layers.forces.is_taken = True
    force, *of_weights = torch.autograd.grad(layers(x).sum(), [x, *layers.parameters()], allow_unused=True)
    torch.testing.assert_close(force, torch.autograd.grad(of_plain(layers, x).sum(), x)[0])
    assert of_weights == [None] * 5


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


def test_weights_that_chains_share_get_the_gradient_of_each_once() -> None:
    layers = chain("blocks")
    x = torch.randn(4, 8, dtype=torch.float64)
    wanted = torch.autograd.grad(layers(layers(x)).sum(), list(layers.parameters()))
    found = torch.autograd.grad(layers(layers(x)).sum(), list(layers.parameters()), create_graph=True)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
