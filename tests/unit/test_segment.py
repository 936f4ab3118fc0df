"""Segment sums: both backends against a plain loop, their derivatives, and how the backend is chosen."""

import importlib.util
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ocpgem import segment
from ocpgem.errors import RequestError
from ocpgem.segment import ordered_sum, segment_sum

needs_scatter = pytest.mark.skipif(
    importlib.util.find_spec("torch_scatter") is None,
    reason="torch-scatter is not installed (make setup-full)",
)
BACKENDS = ["torch", pytest.param("scatter", marks=needs_scatter)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "scatter":
        import torch_scatter  # noqa: F401
    monkeypatch.setattr(segment, "BACKEND", request.param)
    return request.param


def pointers(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def by_loop(values: torch.Tensor, ptr: torch.Tensor) -> torch.Tensor:
    rows = [values[begin:end].sum(0) for begin, end in pairwise(ptr.tolist())]
    return torch.stack(rows) if rows else values.new_zeros((0, *values.shape[1:]))


SHAPES = [(), (1,), (5,), (2, 3), (0,)]


@pytest.mark.parametrize("lengths", [[2, 0, 3], [0], [0, 0, 4, 0], [], [1] * 20], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_sum_equals_a_plain_loop(
    backend: str, lengths: list[int], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    ptr = pointers(lengths)
    values = torch.randint(-9, 9, (int(ptr[-1]), *shape)).to(dtype)
    result = segment_sum(values, ptr)
    assert result.dtype == dtype
    assert result.equal(by_loop(values, ptr))


def test_a_view_with_strides_is_summed_as_it_reads(backend: str) -> None:
    values = torch.arange(24.0).view(4, 6).t()[::2]
    assert segment_sum(values, pointers([1, 2])).equal(by_loop(values, pointers([1, 2])))


@pytest.mark.parametrize("lengths", [[2, 0, 3], [4], [1, 1]], ids=str)
@pytest.mark.parametrize("shape", [(), (2,), (2, 2)], ids=str)
def test_first_and_second_derivatives_are_exact(
    backend: str, lengths: list[int], shape: tuple[int, ...]
) -> None:
    ptr = pointers(lengths)
    values = torch.randn(int(ptr[-1]), *shape, dtype=torch.float64, requires_grad=True)

    def cubed(x: torch.Tensor) -> torch.Tensor:
        return segment_sum(x**3, ptr) ** 2

    assert torch.autograd.gradcheck(cubed, values)
    assert torch.autograd.gradgradcheck(cubed, values)


def test_a_gradient_of_a_gradient_reaches_the_parameters(backend: str) -> None:
    """Forces as derivatives: the loss depends on a weight only through a first derivative."""
    ptr = pointers([2, 3])
    pos = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)
    energy = segment_sum((pos @ weight).tanh(), ptr).square().sum()
    (force,) = torch.autograd.grad(energy, pos, create_graph=True)
    (gradient,) = torch.autograd.grad(force.square().sum(), weight)

    reference = by_loop((pos @ weight).tanh(), ptr).square().sum()
    (force,) = torch.autograd.grad(reference, pos, create_graph=True)
    (expected,) = torch.autograd.grad(force.square().sum(), weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_the_same_input_gives_the_same_bits(backend: str) -> None:
    ptr = pointers([700] * 40)
    values = torch.randn(700 * 40, 33)
    first = segment_sum(values, ptr)
    assert all(segment_sum(values, ptr).equal(first) for _ in range(5))


@needs_scatter
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 40), st.integers(0, 2**30))
def test_both_backends_agree(lengths: list[int], width: int, seed: int) -> None:
    ptr = pointers(lengths)
    values = torch.randn(int(ptr[-1]), width, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        results = []
        for name in ("torch", "scatter"):
            patch.setattr(segment, "BACKEND", name)
            results.append(segment_sum(values, ptr))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", BACKENDS)
def test_the_environment_forces_a_backend(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(segment.ENVIRONMENT_VARIABLE, choice)
    assert segment._choose_backend()[0] == choice


def test_without_torch_scatter_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(segment.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    assert segment._choose_backend()[0] == "torch"


@needs_scatter
@pytest.mark.parametrize(("gpu", "chosen"), [(False, "torch"), (True, "scatter")])
def test_torch_scatter_is_chosen_for_gpus(gpu: bool, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(segment.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert segment._choose_backend()[0] == chosen


def test_rows_in_another_order_are_summed_as_they_are_read(backend: str) -> None:
    values, ptr = torch.randn(7, 3), pointers([4, 0, 5])
    order = torch.tensor([6, 0, 0, 3, 1, 2, 5, 4, 1])
    torch.testing.assert_close(ordered_sum(values, order, ptr), by_loop(values[order], ptr))


def test_asking_for_a_missing_torch_scatter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(segment.ENVIRONMENT_VARIABLE, "scatter")
    monkeypatch.setitem(sys.modules, "torch_scatter", None)
    with pytest.raises(RequestError, match="make setup-full"):
        segment._choose_backend()


def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(segment.ENVIRONMENT_VARIABLE, "cuda")
    with pytest.raises(RequestError, match="must be torch or scatter"):
        segment._choose_backend()


@pytest.mark.gpu
def test_sums_on_a_gpu_equal_those_on_the_cpu(backend: str) -> None:
    ptr = pointers([3, 0, 50, 7])
    values = torch.randn(60, 17)
    torch.testing.assert_close(segment_sum(values.cuda(), ptr.cuda()).cpu(), segment_sum(values, ptr))
