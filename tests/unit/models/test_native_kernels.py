"""Compiled functions: exact to the last digits, alike wherever an element stands; reasons where they are missing."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ocpgem import kernels
from ocpgem.errors import RequestError
from ocpgem.kernels import native
from ocpgem.models.gemnet.activation import silu_and_gradient, silu_sum, silu_tangents, silu_terms
from tests.compilers import gcc_can_compile_ours
from tests.structures import case_config, random_potential, random_slabs, topology_of

LIBRARY, REASON = native.library()
needs_library = pytest.mark.skipif(LIBRARY is None, reason=REASON)
ULP = 2.0**-23


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def by_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKEND", "native")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (4 * torch.randn(*shape, dtype=torch.float64)).to(dtype)


def exact(x: Tensor, order: int) -> Tensor:
    """A derivative of SiLU in float64."""
    value = x.double().requires_grad_()
    found = F.silu(value)
    for _ in range(order):
        (found,) = torch.autograd.grad(found.sum(), value, create_graph=True)
    return found.detach()


def test_set_up_compiled_it_where_there_is_a_compiler() -> None:
    if not gcc_can_compile_ours():
        pytest.skip("needs gcc 12 or later")
    assert REASON == "compiled" or "OpenMP" in REASON


@needs_library
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_values_are_exact_to_the_last_digits(by_native: None, order: int) -> None:
    x = torch.cat([torch.linspace(-120, 100, 400_001), random(1000) * 1e-6, torch.zeros(3)])
    found = silu_terms(x, (torch.ones_like(x),) if order else (), order=order).double()
    expected = exact(x, order)
    terms, least = expected.abs(), 2e-36  # what is smaller is taken as 0
    if order:  # sums of terms that cancel where they change their sign; torch's in float64, too
        terms, least = terms + torch.sigmoid(-x.abs()).double() * (3 + x.abs()), 1e-13
    assert bool(((found - expected).abs() <= 3 * ULP * terms + least).all())


@needs_library
def test_infinite_numbers_and_no_numbers_are_those_of_torch(by_native: None) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, -0.0])
    torch.testing.assert_close(silu_terms(x), F.silu(x), rtol=0, atol=0, equal_nan=True)
    assert silu_terms(x)[5].signbit()
    slopes = silu_terms(x, (torch.ones_like(x),), order=1)
    assert bool(slopes[0].isnan())
    assert slopes[3:].tolist() == [1.0, 0.0, 0.5]


@needs_library
def test_an_element_is_computed_alike_wherever_it_stands(by_native: None, threads: None) -> None:
    """By one thread or several, and in rows of any number: recomputed values equal kept ones."""
    x, grad, base = random(70_003), random(70_003), random(70_003)
    torch.set_num_threads(2)
    value, of_x = silu_and_gradient(x, grad, base)
    whole = [*silu_tangents(x, grad.clone(), base), value, of_x]
    assert torch.equal(value, silu_terms(x))
    assert torch.equal(of_x, silu_terms(x, (grad,), base, order=1))
    for n_threads, size in ((1, 70_003), (2, 35_001), (2, 1_111), (3, 13)):
        torch.set_num_threads(n_threads)
        for first in range(0, 5 * size, size):
            rows = slice(first, first + size)
            own = x[rows].clone(), grad[rows].clone(), base[rows].clone()
            parts = [*silu_tangents(own[0], own[1].clone(), own[2]), *silu_and_gradient(*own)]
            for part, all_rows in zip(parts, whole, strict=True):
                assert torch.equal(part, all_rows[rows])


@needs_library
@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("n_factors", [0, 1, 2])
@pytest.mark.parametrize("with_base", [False, True])
def test_terms_are_those_of_torch(
    by_native: None, monkeypatch: pytest.MonkeyPatch, order: int, n_factors: int, with_base: bool
) -> None:
    x, factors = random(300, 7), tuple(random(300, 7) for _ in range(n_factors))
    base = random(300, 7) if with_base else None

    def found() -> Tensor:
        return silu_terms(x, factors, base, order=order, alpha=1.3, scale=0.7)

    ours = found()
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    expected = found()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=5e-6 * float(expected.abs().max()))


@needs_library
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_results_may_overwrite_what_they_are_made_of(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKEND", backend)
    for order in range(4):
        for number in range(3):
            x, factor, base = given = random(500), random(500), random(500)
            expected = silu_terms(x, (factor,), base, order=order, alpha=0.5, scale=0.7)
            out = given[number]
            assert silu_terms(x, (factor,), base, order=order, alpha=0.5, scale=0.7, out=out) is out
            assert torch.equal(out, expected)


@needs_library
@pytest.mark.parametrize(("backend", "limit"), [("native", 1e-5), ("torch", 1e-4)])
def test_tangents_are_exact(backend: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BACKEND", backend)
    x, tangent, grad = random(5000), random(5000), random(5000)
    first, second = exact(x, 1), exact(x, 2)
    behind, bent, of_x = silu_tangents(x, tangent.clone(), grad)
    for found, expected in ((behind, tangent * first), (bent, tangent * grad * second), (of_x, grad * first)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=limit)


@needs_library
def test_torch_computes_what_the_compiled_functions_do_not_know(
    by_native: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(native, "silu", fails)
    with pytest.raises(AssertionError):
        silu_sum(random(8, 8), 1.0)
    for x in (random(8, 8).t(), random(8, dtype=torch.float64), random(8, dtype=torch.bfloat16)):
        torch.testing.assert_close(silu_sum(x, 2.0), 2 * F.silu(x), rtol=1e-2, atol=1e-2)
    mixed = silu_sum(random(8, dtype=torch.bfloat16), 1.0, random(8))
    assert mixed.dtype == torch.float32
    fourth = silu_terms(random(8), (random(8),), order=4)
    assert bool(fourth.isfinite().all())


@needs_library
@pytest.mark.parametrize("case", ["gemnet_dT", "gemnet_T", "gemnet_OC", "gemnet_OC gradient"])
def test_models_have_the_numbers_that_they_have_by_torch(
    by_native: None, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Energies, forces and gradients of all weights; gradient forces need second derivatives for those."""
    wide = {"in_dim": 8}
    parts = {"triplets": {"in_dim": 8, "circular_dim": 8, "out_dim": 8}}
    if case.startswith("gemnet_OC"):
        parts |= {"quadruplets": wide, "atom_edge": wide, "atom_atom": wide}
    potential = random_potential(case_config(case, **parts))
    potential = potential.float().train()
    batch = random_slabs((6, 4))
    topology = topology_of(batch, potential.graph_spec)
    started = []
    for name in (
        "silu",
        "silu_and_gradient",
        "silu_tangents",
        "times_transposed",
        "read",
        "accumulate",
        "weigh",
    ):
        function = getattr(native, name)

        def noticing(*given: object, function: Callable[..., object] = function, name: str = name) -> object:
            found = function(*given)
            started.extend([name] if found is not None or name == "silu" else [])
            return found

        monkeypatch.setattr(native, name, noticing)

    def outputs() -> list[Tensor]:
        potential.zero_grad()
        predicted = potential(batch, topology)
        (predicted.energy.sum() + predicted.forces.pow(2).sum()).backward()
        of_weights = [p.grad for p in potential.parameters() if p.grad is not None]
        return [predicted.energy.detach(), predicted.forces.detach(), *of_weights]

    ours = outputs()
    wanted = {"silu", "silu_and_gradient", "times_transposed", "read", "accumulate"}
    wanted |= {"silu_tangents"} if case in ("gemnet_T", "gemnet_OC gradient") else set()
    wanted |= (
        {"weigh"} if case != "gemnet_dT" else set()
    )  # of GemNet-OC by radial functions, which are trained
    assert wanted == set(started)
    monkeypatch.setattr(kernels, "BACKEND", "torch")
    for one, other in zip(ours, outputs(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


@needs_library
@pytest.mark.parametrize(
    "size",
    [
        (5, 16, 64, 7),
        (3, 1, 20, 13),
        (70, 5, 8, 1),
        (2, 13, 9, 15),
        (300, 33, 40, 4),
        (0, 3, 8, 8),
        (2, 0, 8, 8),
    ],
)
def test_products_with_the_transpose_of_small_matrices(size: tuple[int, int, int, int]) -> None:
    """Factors that are parts of larger ones."""
    n, rows, terms, columns = size
    left, right = random(n, rows + 2, terms)[:, 1:-1], random(n, columns, terms + 3)[:, :, 2:-1]
    found = native.times_transposed(left, right)
    assert found is not None
    expected = left.double() @ right.double().transpose(1, 2)
    most = left.double().abs() @ right.double().abs().transpose(1, 2)
    assert found.shape == expected.shape
    assert bool(((found - expected).abs() <= 2 * ULP * math.sqrt(terms) * most).all())


@needs_library
def test_a_product_does_not_depend_on_the_others_nor_on_threads(threads: None) -> None:
    left, right = random(900, 18, 50), random(900, 7, 50)
    torch.set_num_threads(2)
    whole = native.times_transposed(left, right)
    assert whole is not None
    for n_threads, first in ((1, 0), (2, 450), (3, 899)):
        torch.set_num_threads(n_threads)
        part = native.times_transposed(left[first:], right[first:])
        assert part is not None
        assert torch.equal(part, whole[first:])


@needs_library
def test_factors_that_do_not_fit_are_left_to_torch(by_native: None) -> None:
    left, right = random(3, 5, 9), random(1, 8, 9)
    for fits in (random(3, 8, 9).transpose(1, 2).contiguous().transpose(1, 2), random(3, 20, 9), right):
        assert native.times_transposed(left, fits) is None
    assert native.times_transposed(left, random(3, 8, 8)) is None
    assert native.times_transposed(left[:, :, :7], random(3, 8, 7)) is None
    assert native.times_transposed(left[0], random(8, 9)) is None
    with pytest.raises(RuntimeError, match="size"):
        silu_sum(random(4, 4), 1.0, random(3, 4))


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.library(tmp_path) == (
        None,
        "what is written in C is not compiled: that takes gcc 12 or later and `make setup`",
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / native._FILE).write_text("no library")
    found, reason = native.library(broken)
    assert found is None
    assert reason.startswith(f"{native._FILE} cannot be used (")
    monkeypatch.setattr(native, "library", lambda: (None, reason))
    monkeypatch.delenv("OCPGEM_KERNELS", raising=False)
    assert kernels._choose_backend() == ("torch", reason)
    monkeypatch.setenv("OCPGEM_KERNELS", "native")
    with pytest.raises(RequestError, match=r"OCPGEM_KERNELS is native, but _native\..* cannot be used"):
        kernels._choose_backend()


@needs_library
def test_a_library_of_other_sources_is_not_used(tmp_path: Path) -> None:
    """Its functions might take other arguments."""
    place = Path(native.__file__).parent
    for name in (*native._SOURCES, native._FILE):
        shutil.copy(place / name, tmp_path / name)
    assert native.library(tmp_path)[1] == "compiled"
    native.library.cache_clear()
    with (tmp_path / "silu.c").open("a") as source:
        source.write("/* changed */\n")
    reason = f"{native._FILE} was compiled from other sources than these; run `make setup`"
    assert native.library(tmp_path) == (None, reason)
    native.library.cache_clear()
    (tmp_path / "silu.c").unlink()  # as in an installed package
    assert native.library(tmp_path)[1] == "compiled"
    native.library.cache_clear()


@needs_library
def test_negated_views_are_left_to_torch(by_native: None) -> None:
    x = random(50)
    torch.testing.assert_close(silu_terms(torch._neg_view(x)), silu_terms(-x))


@needs_library
def test_two_libraries_of_threads_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    native.library.cache_clear()
    monkeypatch.setattr(native, "_threads_come_from", lambda: {"libgomp.so.1", "libiomp5.so"})
    try:
        assert native.library() == (
            None,
            "torch brings an OpenMP of its own here (libgomp.so.1, libiomp5.so)",
        )
    finally:
        native.library.cache_clear()
