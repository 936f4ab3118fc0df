"""Both sums over quadruplets, factorised and in blocks, equal the explicit one, also in first and second gradients."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ocpgem.graph.spec import GraphSpec, Limit
from ocpgem.graph.topology import Topology, TripletTable
from ocpgem.models.gemnet import spherical_sums
from ocpgem.models.gemnet.geometry import all_geometry, pad_by_middle
from ocpgem.models.gemnet.legendre_angles import LegendreAngles
from ocpgem.models.gemnet.spherical_angles import SphericalAngles
from tests.edge_lists import quadruplet_members
from tests.explicit_sums import assert_same_derivatives, sum_over_quadruplets
from tests.quadruplet_structures import DEGENERATE, GENERIC, branched_row, small_cells
from tests.structures import molecule, topology_of

N_SPHERICAL = 5
each_basis = pytest.mark.parametrize("two_angle", ["legendre_outer", "spherical_harmonics"])


def forms(
    batch: SimpleNamespace, topology: Topology, two_angle: str
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
    """The sum as the model computes it and the explicit one, of x [n_inner, channels] and positions."""
    tables = topology.quadruplets
    assert tables is not None

    def factorised(x: Tensor, pos: Tensor) -> Tensor:
        geometry = all_geometry(pos, batch.cell, topology)
        if two_angle == "legendre_outer":
            angles = LegendreAngles.of(geometry, topology, N_SPHERICAL)
        else:
            angles = SphericalAngles.of(geometry, topology, N_SPHERICAL, in_angstrom=False)
        n_functions = N_SPHERICAL**2
        every = torch.eye(n_functions, dtype=pos.dtype).expand(topology.main.n_edges, -1, -1)
        padded = pad_by_middle(x, tables.inner, topology.quadruplet.n_edges)
        return angles.sum(padded, angles.arranged(every, topology), topology)

    def explicit(x: Tensor, pos: Tensor) -> Tensor:
        geometry = all_geometry(pos, batch.cell, topology)
        return sum_over_quadruplets(x, geometry.main, geometry.middle, topology, N_SPHERICAL, two_angle)

    return factorised, explicit


def inner_values(topology: Topology) -> Tensor:
    n_inner = len(topology.quadruplets.inner.main_edge)
    x = torch.randn(n_inner, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x.requires_grad_()


@pytest.fixture(params=["one block", "many blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(spherical_sums, "_BLOCK", 3000)


@each_basis
@pytest.mark.parametrize("structure", GENERIC | DEGENERATE)
@pytest.mark.usefixtures("blocks")
def test_sum_equals_the_explicit_one(structure: str, two_angle: str) -> None:
    batch, topology = (GENERIC | DEGENERATE)[structure]()
    factorised, explicit = forms(batch, topology, two_angle)
    x = inner_values(topology)
    expected = explicit(x, batch.pos)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(factorised(x, batch.pos), expected, rtol=1e-11, atol=1e-11)


@each_basis
@pytest.mark.parametrize("structure", GENERIC)
@pytest.mark.usefixtures("blocks")
def test_gradients_and_second_gradients_equal_those_of_the_explicit_sum(
    structure: str, two_angle: str
) -> None:
    batch, topology = GENERIC[structure]()
    factorised, explicit = forms(batch, topology, two_angle)
    pos = batch.pos.clone().requires_grad_()
    assert_same_derivatives(factorised, explicit, inner_values(topology), pos)


@each_basis
@pytest.mark.parametrize("structure", DEGENERATE)
def test_gradients_are_finite_and_free_of_noise_where_planes_are_undefined(
    structure: str, two_angle: str
) -> None:
    batch, topology = DEGENERATE[structure]()
    factorised, _ = forms(batch, topology, two_angle)
    cell, derivatives = batch.cell, []
    for dtype in (torch.float64, torch.float32):
        batch.cell = cell.to(dtype)
        x = inner_values(topology).detach().to(dtype).requires_grad_()
        pos = batch.pos.to(dtype).requires_grad_()
        first = torch.autograd.grad(factorised(x, pos).square().sum(), (x, pos), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, pos))
        derivatives.append([*first, *second])
    exact, single = derivatives
    for order in (slice(0, 2), slice(2, 4)):
        scale = max(float(of_one.detach().abs().max()) for of_one in exact[order])
        for of_exact, of_single in zip(exact[order], single[order], strict=True):
            assert torch.isfinite(of_exact).all()
            torch.testing.assert_close(of_single.double(), of_exact, rtol=0, atol=1e-4 * scale)


def test_these_structures_hold_what_they_should() -> None:
    _, topology = small_cells()
    assert len(topology.quadruplets.excluded_outer) > 100
    assert len(quadruplet_members(topology)) > 3000
    batch, topology = branched_row()
    geometry = all_geometry(batch.pos, batch.cell, topology)
    angles = LegendreAngles.of(geometry, topology, N_SPHERICAL)
    to_a, via, to_b = quadruplet_members(topology).T
    tables = topology.quadruplets

    def flat_rows(table: TripletTable, collinear: Tensor) -> set[tuple[int, int]]:
        flat = collinear > 0
        return set(zip(table.main_edge[flat].tolist(), table.middle_edge[flat].tolist(), strict=True))

    flat_at_a = flat_rows(tables.outer, angles.outer.collinear)
    flat_at_b = flat_rows(tables.inner, angles.inner.collinear)
    kinds = {
        ((c, q) in flat_at_a, (d, q) in flat_at_b)
        for c, q, d in zip(to_a.tolist(), via.tolist(), to_b.tolist(), strict=True)
    }
    assert len(kinds) == 4  # neither side, either side, both sides


def test_a_small_block_makes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, topology = small_cells()
    factorised, _ = forms(batch, topology, "spherical_harmonics")
    calls = []

    def count(x: Tensor, *rest: Any, **sizes: int) -> Tensor:
        calls.append(len(x))
        return original(x, *rest, **sizes)

    original = spherical_sums._sum_block
    monkeypatch.setattr(spherical_sums, "_sum_block", count)
    with torch.no_grad():
        factorised(inner_values(topology), batch.pos)
        assert calls == [topology.n_atoms]
        monkeypatch.setattr(spherical_sums, "_BLOCK", 3000)
        calls.clear()
        factorised(inner_values(topology), batch.pos)
    assert len(calls) > 3
    assert sum(calls) == topology.n_atoms


@each_basis
@pytest.mark.parametrize("tags", [[2, 2], [0, 0]], ids=["no main edges to meet", "no middle edges"])
def test_an_empty_set_of_quadruplets_sums_to_zero(two_angle: str, tags: list[int]) -> None:
    batch = molecule([[0.0, 0, 0], [1.0, 0.5, 0]])
    batch.tags = torch.tensor(tags)
    spec = GraphSpec(3.0, 0, quadruplet=Limit(3.0, 0), quadruplet_tags=(1, 2))
    topology = topology_of(batch, spec)
    assert topology.quadruplet.n_edges == (2 if tags[0] else 0)
    factorised, _ = forms(batch, topology, two_angle)
    pos = batch.pos.clone().requires_grad_()
    x = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    summed = factorised(x, pos)
    assert summed.shape == (2, N_SPHERICAL**2, 3)
    assert summed.abs().sum() == 0
    (gradient,) = torch.autograd.grad(summed.sum(), pos, create_graph=True, allow_unused=True)
    assert gradient is None or gradient.abs().sum() == 0


def test_four_atoms_in_a_plane_are_not_pushed_out_of_it() -> None:
    """sin(m theta) of an angle without sign has a kink there: no gradient, instead of one of a random sign."""
    batch = molecule([[0.0, 0, 0], [0.3, 1.1, 0.2], [1.4, 1.3, 0.6], [1.8, 2.4, 0.7]])
    batch.pos[:, 2] = 0.3 * batch.pos[:, 0] - 0.7 * batch.pos[:, 1]
    topology = topology_of(batch, GraphSpec(1.6, 0, quadruplet=Limit(1.6, 0)))
    assert len(quadruplet_members(topology)) == 2
    factorised, _ = forms(batch, topology, "spherical_harmonics")
    x = inner_values(topology).detach()
    weights = torch.arange(1.0, N_SPHERICAL**2 + 1, dtype=torch.float64)[:, None]
    normal = torch.tensor([0.3, -0.7, -1.0], dtype=torch.float64)
    for shift in (0.0, 0.1, 0.7, 13.0):
        pos = (batch.pos + shift).requires_grad_()
        (gradient,) = torch.autograd.grad((weights * factorised(x, pos)).sum(), pos)
        assert gradient.abs().max() > 0.1
        assert (gradient @ normal).abs().max() < 1e-10 * gradient.abs().max()
